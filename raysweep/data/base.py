"""What a dataset is: where its file lies, and how its rows become records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from raysweep.config.schema import DataSpec
from raysweep.errors import Problem
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from raysweep.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Reading:
    """A whole dataset, examined.

    Attributes:
        records: the sound records, in file order.
        problems: the rows that no editor could write, in file order.
        warnings: what is odd, but no mistake.
        rows: every row in file order, a record or what is wrong with it; empty = the records are all there is.
    """

    records: tuple[EditRecord, ...]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    rows: tuple[EditRecord | Problem, ...] = ()

    @property
    def every(self) -> tuple[EditRecord | Problem, ...]:
        """Every row, in file order."""
        return self.rows or self.records

    @staticmethod
    def from_rows(rows: Sequence[EditRecord | Problem], warnings: tuple[str, ...] = ()) -> Reading:
        """Return the reading of a file with these *rows*."""
        records = tuple(row for row in rows if isinstance(row, EditRecord))
        return Reading(records, tuple(row for row in rows if isinstance(row, Problem)), warnings, tuple(rows))


class Dataset(Protocol):
    """Turns one file into records.

    Promises
        1. Records come in file order; the id of a record is the dataset's name and its index in the file.
        2. Prompts and targets are exactly the file's; the joining space is not this layer's business.
        3. Equal ``digest`` means equal records and equal texts.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    about: ClassVar[str]

    def locate(self, spec: DataSpec, workspace: Workspace) -> Path | None:
        """Return the file of *spec*; None for a dataset that needs none."""
        ...

    def count(self, path: Path | None) -> int:
        """Return how many records the file holds, without examining them."""
        ...

    def digest(self, path: Path | None) -> str:
        """Return 16 hex digits that cover the content."""
        ...

    def read(self, path: Path | None) -> Reading:
        """Return every record, problem and warning of the file."""
        ...

    def load(self, path: Path | None) -> Iterator[EditRecord]:
        """Yield every record, or raise all problems at once."""
        ...

    def texts(self, path: Path | None) -> Iterator[str]:
        """Yield the dataset's own texts, for second moments of keys; those of unsound rows are left out."""
        ...
