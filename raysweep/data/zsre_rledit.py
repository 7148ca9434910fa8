"""ZsRE as RLEdit and UltraEdit have it (``zsre_eval_20k.json``): the target is ``ans``, beside ``alt`` and ``answers``."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Columns, Row, optional
from raysweep.data.files import FlatDataset
from raysweep.records import EditRecord


class ZsreRLEdit(FlatDataset):
    """Questions whose answer is ``ans``; a question mark is put behind the question about locality, as published."""

    name: ClassVar[str] = "zsre_rledit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "ZsRE of RLEdit and UltraEdit (JSON); the target is 'ans', where zsre takes 'alt'"
    places: ClassVar[tuple[str, ...]] = tuple(f"ZsRE/zsre_eval_{size}.json" for size in ("20k", "100k"))
    columns: ClassVar[Columns] = Columns(prompt="src", target="ans")

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``src, ans, subject?, rephrase?, loc?, loc_ans?``."""
        apart = optional(row, "loc")
        return self.columns.record({**row, "loc": f"{apart}?" if apart.strip() else ""}, uid)
