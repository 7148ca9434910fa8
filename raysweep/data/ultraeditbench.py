"""UltraEditBench: two million questions without subjects (``UltraEditBench_2M.json``)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Row, field, locality_probe, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.records import EditRecord


class UltraEditBench(JsonDataset):
    """Questions with answers. There is no subject, so editors that look it up (ROME, MEMIT, AlphaEdit) refuse every row."""

    name: ClassVar[str] = "ultraeditbench"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "UltraEditBench questions (JSON); no subjects, so not for rome, memit and alphaedit"
    places: ClassVar[tuple[str, ...]] = (
        "UltraEditBench/UltraEditBench_train_20k.json",
        "UltraEditBench/UltraEditBench_2M.json",
    )
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"prompt", "ans"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``prompt, ans, subject?, rephrase_prompt?, loc?, loc_ans?``."""
        prompt, target = field(row, "prompt"), field(row, "ans")
        locality = locality_probe(row, "loc", "loc_ans")
        probes = standard_probes(prompt, target, optional(row, "rephrase_prompt"), locality)
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)
