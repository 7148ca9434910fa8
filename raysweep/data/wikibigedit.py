"""WikiBigEdit: questions about what changed in Wikidata (JSON of the authors, and of StableEdit)."""

from __future__ import annotations

import math
from typing import ClassVar

from raysweep.data.fields import Columns, Row, follows
from raysweep.data.files import FlatDataset
from raysweep.records import EditRecord

_FILES = ("wikibigedit_eval_17k", "wikibigedit")
# What is asked of an edited model beside the edit, and where its answer is.
_FOLLOWS = (("personas", "ans"), ("personas_formal", "ans"), ("mhop", "mhop_ans"))


class WikiBigEdit(FlatDataset):
    """Questions with new answers; what a row lacks is null, or NaN where pandas wrote the file.

    The subject is often not in the prompt as it is spelled; editors that look it up refuse such rows.
    """

    name: ClassVar[str] = "wikibigedit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "WikiBigEdit questions (JSON); a subject is often not in the prompt verbatim"
    places: ClassVar[tuple[str, ...]] = tuple(f"WikiBigEdit/{file}.json" for file in _FILES)
    columns: ClassVar[Columns] = Columns(prompt="update", target="ans")

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``update, ans, subject?, rephrase?, personas?, mhop?, mhop_ans?, loc?, loc_ans?``."""
        present = {key: value for key, value in row.items() if not _is_nan(value)}
        asked = (probe for name, where in _FOLLOWS for probe in follows(present, name, (name,), (where,)))
        return self.columns.record(present, uid, *asked)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
