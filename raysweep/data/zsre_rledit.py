"""ZsRE as RLEdit and UltraEdit have it (``zsre_eval_20k.json``): the target is ``ans``, beside ``alt`` and ``answers``."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Row, field, locality_probe, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord


class ZsreRLEdit(JsonDataset):
    """Questions whose answer is ``ans``; a question mark is put behind the question about locality, as published."""

    name: ClassVar[str] = "zsre_rledit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "ZsRE of RLEdit and UltraEdit (JSON); the target is 'ans', where zsre takes 'alt'"
    places: ClassVar[tuple[str, ...]] = ("ZsRE/zsre_eval_20k.json", "ZsRE/zsre_eval_100k.json")
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"src", "ans"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``src, ans, subject?, rephrase?, loc?, loc_ans?``."""
        prompt, target = field(row, "src"), field(row, "ans")
        apart = optional(row, "loc")
        locality = locality_probe({**row, "loc": f"{apart}?" if apart.strip() else ""}, "loc", "loc_ans")
        probes = standard_probes(prompt, target, optional(row, "rephrase"), locality)
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)
