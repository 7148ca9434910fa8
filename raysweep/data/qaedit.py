"""QAEdit: questions that people asked, in the format of Revisit-Editing-Evaluation (``QAEdit_inter_1k.json``)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Row, field, locality_probe, objects, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord


class QAEdit(JsonDataset):
    """Questions of Natural Questions, TriviaQA and SimpleQA with their answers.

    Of the five questions about locality the first is asked, as published. Some targets begin or end with a space.
    """

    name: ClassVar[str] = "qaedit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "QAEdit questions (JSON of Revisit-Editing-Evaluation)"
    places: ClassVar[tuple[str, ...]] = ("QAEdit/QAEdit_inter_1k.json", "QAEdit/QAEdit.json")
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"prompt", "target"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``prompt, target, subject?, rephrase?, locality[{loc, loc_ans}]?``."""
        prompt, target = field(row, "prompt"), field(row, "target")
        first = next(iter(objects(row, "locality")), None)
        locality = locality_probe(first, "loc", "loc_ans") if first is not None else None
        probes = standard_probes(prompt, target, optional(row, "rephrase"), locality)
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)
