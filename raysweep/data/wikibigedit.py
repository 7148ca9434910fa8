"""WikiBigEdit: questions about what changed in Wikidata (JSON of the authors, and of StableEdit)."""

from __future__ import annotations

import math
from typing import ClassVar

from raysweep.data.fields import Row, field, locality_probe, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord, Probe, ProbeKind

# What is asked of an edited model beside the edit, and where its answer is.
_FOLLOWS = (("personas", "ans"), ("personas_formal", "ans"), ("mhop", "mhop_ans"))


class WikiBigEdit(JsonDataset):
    """Questions with new answers; what a row lacks is null, or NaN where pandas wrote the file.

    The subject is often not in the prompt as it is spelled; editors that look it up refuse such rows.
    """

    name: ClassVar[str] = "wikibigedit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "WikiBigEdit questions (JSON); a subject is often not in the prompt verbatim"
    places: ClassVar[tuple[str, ...]] = (
        "WikiBigEdit/wikibigedit_eval_17k.json",
        "WikiBigEdit/wikibigedit.json",
    )
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"update", "ans"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``update, ans, subject?, rephrase?, personas?, mhop?, mhop_ans?, loc?, loc_ans?``."""
        present = {key: value for key, value in row.items() if not _is_nan(value)}
        prompt, target = field(present, "update"), field(present, "ans")
        locality = locality_probe(present, "loc", "loc_ans")
        probes = standard_probes(prompt, target, optional(present, "rephrase"), locality)
        for name, where in _FOLLOWS:
            question, answer = optional(present, name), optional(present, where)
            if question.strip() and answer.strip():
                probes += (Probe(kind=ProbeKind.PORTABILITY, prompt=question, target=answer, name=name),)
        return EditRecord(id=uid, subject=optional(present, "subject"), prompt=prompt, target=target, probes=probes)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
