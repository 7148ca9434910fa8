"""A dataset: who has which pet."""

from __future__ import annotations

from typing import ClassVar

from raysweep import EditRecord
from raysweep.data.files import JsonDataset, Row, field, standard_probes


class Pets(JsonDataset):
    """Rows ``{"who", "pet"}``."""

    name: ClassVar[str] = "pets"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "who has which pet"
    places: ClassVar[tuple[str, ...]] = ("pets/pets.json",)
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"who", "pet"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Return the edit of one row."""
        who, pet = field(row, "who"), field(row, "pet")
        prompt = f"The pet of {who} is a"
        probes = standard_probes(prompt, pet, f"{who} has a pet, a", None)
        return EditRecord(id=uid, subject=who, prompt=prompt, target=pet, probes=probes)
