"""ZsRE question answering, in the SimIE/EasyEdit format (``zsre_mend_edit.json``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from raysweep.data.files import JsonDataset, Row, field, locality_probe, optional, standard_probes
from raysweep.records import EditRecord, Probe, ProbeKind


class Zsre(JsonDataset):
    """Questions whose answer is replaced; unrelated Natural Questions as locality; one-hop portability."""

    name: ClassVar[str] = "zsre"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "ZsRE questions (SimIE/EasyEdit JSON)"
    places: ClassVar[tuple[str, ...]] = ("ZsRE/zsre_mend_edit.json", "zsre/zsre_mend_edit.json")
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"src", "alt"}),)

    def remarks(self, row: Row) -> Iterator[str]:
        """Say whether the row has a third target beside ``alt`` and ``answers``, as those of RLEdit and UltraEdit do."""
        other = optional(row, "ans")
        if other and other != row["alt"]:
            yield f"the target is 'alt', {row['alt']!r}; RLEdit and UltraEdit edit 'ans', {other!r} (data.name: zsre_rledit)"

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``src, alt, subject?, rephrase?, loc?, loc_ans?, portability?``."""
        prompt, target = field(row, "src"), field(row, "alt")
        probes = standard_probes(prompt, target, optional(row, "rephrase"), locality_probe(row, "loc", "loc_ans"))
        # Only some rows have a one-hop question; half of one is none.
        question = optional(row, "portability", "New Question")
        answer = optional(row, "portability", "New Answer")
        if question.strip() and answer.strip():
            probes += (Probe(kind=ProbeKind.PORTABILITY, prompt=question, target=answer),)
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)
