"""The embedded world as a dataset: no file, made from its seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.config.schema import DataSpec
from raysweep.data.base import Reading
from raysweep.errors import DataError, Problem, ProblemsError, RecordError
from raysweep.hashing import digest
from raysweep.records import EditRecord, check_record
from raysweep.world import WORLD_VERSION, World, WorldSpec, build_world, edit_records, training_sentences

if TYPE_CHECKING:
    from raysweep.workspace import Workspace


class EmbeddedWorld:
    """Counterfactual edits of the embedded world, with paraphrase, locality and portability probes."""

    name: ClassVar[str] = "world"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "made-up facts the embedded model knows; no file needed"

    def locate(self, spec: DataSpec, workspace: Workspace) -> None:
        """Return None: there is no file.

        Raises:
            DataError: ``data.path`` was given.
        """
        if spec.path:
            raise DataError(f"dataset 'world' has no file, but data.path is '{spec.path}'", hint="leave data.path out")

    def count(self, path: Path | None) -> int:
        """Return the number of records."""
        return len(_records())

    def digest(self, path: Path | None) -> str:
        """Return the hash of the world's version, records and texts."""
        return _digest()

    def read(self, path: Path | None) -> Reading:
        """Examine every record."""
        problems: list[Problem] = []
        warnings: list[str] = []
        for index, record in enumerate(_records()):
            try:
                warnings += check_record(record, where=f"world:{index}")
            except RecordError as error:
                problems.append(Problem(code=error.code, message=error.message, hint=error.hint))
        return Reading(_records(), tuple(problems), tuple(warnings))

    def load(self, path: Path | None) -> Iterator[EditRecord]:
        """Yield every record.

        Raises:
            ProblemsError: a record breaks a rule (a defect of the world).
        """
        reading = self.read(path)
        if reading.problems:
            raise ProblemsError(reading.problems)
        return iter(reading.records)

    def texts(self, path: Path | None) -> Iterator[str]:
        """Yield the sentences the embedded model was trained on."""
        for sentence in training_sentences(_world()):
            yield sentence.text


# The world is a function of the code alone, so a process makes it once: a plan asks for its digest once per dataset and
# once per text that second moments are taken from.
@cache
def _world() -> World:
    return build_world(WorldSpec())


@cache
def _records() -> tuple[EditRecord, ...]:
    return edit_records(_world())


@cache
def _digest() -> str:
    texts = hashlib.blake2b("\n".join(s.text for s in training_sentences(_world())).encode()).hexdigest()
    # The hash of the texts stands for them: there are thousands of sentences.
    return digest({"version": WORLD_VERSION, "records": _records(), "texts": texts})
