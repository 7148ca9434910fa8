"""The SelfCheckGPT/WISE hallucination set, in the SimIE format (``hallucination-edit.json``)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.files import JsonDataset, Row, field, locality_probe, optional, standard_probes
from raysweep.records import EditRecord


class Hallucination(JsonDataset):
    """Passages to be continued with a corrected sentence; web text as locality; no paraphrases."""

    name: ClassVar[str] = "hallucination"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "SelfCheckGPT/WISE passages (SimIE JSON); measured by perplexity"
    places: ClassVar[tuple[str, ...]] = ("hallucination/hallucination-edit.json",)
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"prompt", "target_new"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``prompt, target_new, subject?, locality_prompt?, locality_ground_truth?``."""
        prompt, target = field(row, "prompt"), field(row, "target_new")
        probes = standard_probes(prompt, target, "", locality_probe(row, "locality_prompt", "locality_ground_truth"))
        return EditRecord(id=uid, subject=optional(row, "subject"), prompt=prompt, target=target, probes=probes)
