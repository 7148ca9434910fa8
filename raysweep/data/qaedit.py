"""QAEdit: questions that people asked, in the format of Revisit-Editing-Evaluation (``QAEdit_inter_1k.json``)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Columns, Row, objects
from raysweep.data.files import FlatDataset
from raysweep.records import EditRecord


class QAEdit(FlatDataset):
    """Questions of Natural Questions, TriviaQA and SimpleQA with their answers.

    Of the five questions about locality the first is asked, as published. Some targets begin or end with a space.
    """

    name: ClassVar[str] = "qaedit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "QAEdit questions (JSON of Revisit-Editing-Evaluation)"
    places: ClassVar[tuple[str, ...]] = ("QAEdit/QAEdit_inter_1k.json", "QAEdit/QAEdit.json")
    columns: ClassVar[Columns] = Columns(prompt="prompt", target="target")

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``prompt, target, subject?, rephrase?, locality[{loc, loc_ans}]?``."""
        first = next(iter(objects(row, "locality")), {})
        return self.columns.record({**row, **first}, uid)
