"""The SelfCheckGPT/WISE hallucination set, in the SimIE format (``hallucination-edit.json``)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Columns
from raysweep.data.files import FlatDataset

_LOCALITY = ("locality_prompt", "locality_ground_truth")


class Hallucination(FlatDataset):
    """Passages to be continued with a corrected sentence; web text as locality; no paraphrases."""

    name: ClassVar[str] = "hallucination"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "SelfCheckGPT/WISE passages (SimIE JSON); measured by perplexity"
    places: ClassVar[tuple[str, ...]] = ("hallucination/hallucination-edit.json",)
    columns: ClassVar[Columns] = Columns(prompt="prompt", target="target_new", rephrase="", locality=_LOCALITY)
