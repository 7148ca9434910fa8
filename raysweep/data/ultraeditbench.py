"""UltraEditBench: two million questions without subjects (``UltraEditBench_2M.json``)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Columns
from raysweep.data.files import FlatDataset

_FILES = ("UltraEditBench_train_20k", "UltraEditBench_2M")


class UltraEditBench(FlatDataset):
    """Questions with answers. There is no subject, so editors that look it up (ROME, MEMIT, AlphaEdit) refuse every row."""

    name: ClassVar[str] = "ultraeditbench"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "UltraEditBench questions (JSON); no subjects, so not for rome, memit and alphaedit"
    places: ClassVar[tuple[str, ...]] = tuple(f"UltraEditBench/{file}.json" for file in _FILES)
    columns: ClassVar[Columns] = Columns(prompt="prompt", target="ans", rephrase="rephrase_prompt")
