"""ZsRE question answering, in the SimIE/EasyEdit format (``zsre_mend_edit.json``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from raysweep.data.fields import Columns, Row, follows, optional
from raysweep.data.files import FlatDataset
from raysweep.records import EditRecord


class Zsre(FlatDataset):
    """Questions whose answer is replaced; unrelated Natural Questions as locality; one-hop portability."""

    name: ClassVar[str] = "zsre"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "ZsRE questions (SimIE/EasyEdit JSON)"
    places: ClassVar[tuple[str, ...]] = ("ZsRE/zsre_mend_edit.json", "zsre/zsre_mend_edit.json")
    columns: ClassVar[Columns] = Columns(prompt="src", target="alt")

    def remarks(self, row: Row) -> Iterator[str]:
        """Say whether the row has a third target beside ``alt`` and ``answers``, as those of RLEdit and UltraEdit do."""
        other = optional(row, "ans")
        if other and other != row["alt"]:
            yield f"the target is 'alt', {row['alt']!r}; RLEdit and UltraEdit edit 'ans', {other!r} (data.name: zsre_rledit)"

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``src, alt, subject?, rephrase?, loc?, loc_ans?, portability?``."""
        asked = follows(row, "", ("portability", "New Question"), ("portability", "New Answer"))
        return self.columns.record(row, uid, *asked)
