"""Published datasets as files: where each comes from, its licence, and how it is known to be whole (``manifests.toml``)."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.data.jsonrows import read_rows
from raysweep.downloads.record import completed, read_record
from raysweep.downloads.web import Remote
from raysweep.errors import DataError, Problem

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

TABLE = Path(__file__).with_name("manifests.toml")
_LARGEST_COUNTED = 300 << 20  # bytes; the rows of a larger file are not counted
_AGAIN = "delete it and fetch it again, or give a file of your own another name"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """One file of a published set, or some of a set on the hub.

    Attributes:
        path: below the set's folder; on the hub it may be a pattern (``test/*.json``).
        remote: its address and what is known of it; an empty address = it is on the hub.
        rows: records it holds; 0 = not known.
        extra: it comes only when it is named.
    """

    path: str
    remote: Remote
    rows: int = 0
    extra: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether the path stands for several files."""
        return "*" in self.path


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A published dataset.

    Attributes:
        name: under which it is fetched.
        about: one line.
        licence: of the data, as far as anybody states one.
        files: what it consists of.
        version: whose copy, and of when.
        folder: below ``data/``.
        hub: id of the dataset on the Hugging Face hub, for files without an address.
        revision: of *hub*; empty = ``main``.
    """

    name: str
    about: str
    licence: str
    files: tuple[PublishedFile, ...]
    version: str
    folder: str
    hub: str = ""
    revision: str = ""

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """The patterns among the paths."""
        return tuple(file.path for file in self.files if file.is_pattern)

    def place(self, workspace: Workspace) -> Path:
        """Return the folder of the set in *workspace*."""
        return workspace.data / self.folder

    def here(self, workspace: Workspace) -> tuple[PublishedFile, ...]:
        """Return the files that are in *workspace*, with what was learned of them when they came."""
        folder = self.place(workspace)
        # A pattern stands for files whose names only the hub knows; those that came are found by it.
        named = [file for file in self.files if not file.is_pattern]
        matched = [
            PublishedFile(path=path, remote=Remote(url=""), extra=True)
            for path in _paths(folder)
            if path not in {file.path for file in named} and any(fnmatchcase(path, p) for p in self.patterns)
        ]
        return with_record(tuple(file for file in (*named, *matched) if (folder / file.path).is_file()), folder)

    def problems(self, workspace: Workspace) -> list[Problem]:
        """Examine size, digest and rows of what is here; return what is wrong, file by file."""
        found = []
        for file in self.here(workspace):
            place = self.place(workspace) / file.path
            # Size and digest first: rows of a damaged file mean nothing, and counting takes longest.
            fault = file.remote.fault_of(place) or (rows_fault(place, file.rows) if file.rows else "")
            if fault:
                found.append(Problem(code=DataError.code, message=fault, file=str(place), hint=_AGAIN))
        return found


def published_sets() -> Mapping[str, PublishedSet]:
    """Return every published set by name."""
    return {name: _set(name, entry) for name, entry in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()}


def _set(name: str, entry: dict[str, object]) -> PublishedSet:
    base, files = str(entry.pop("base", "")), entry.pop("files")
    assert isinstance(files, list)
    texts = {key: str(value) for key, value in entry.items()}
    return PublishedSet(name=name, files=tuple(_file(base, **file) for file in files), **texts)


def _file(
    base: str,
    *,
    path: str,
    rows: int = 0,
    extra: bool = False,
    size: int = 0,
    sha256: str = "",
    blob: str = "",
    **address: str,
) -> PublishedFile:
    # "from" is no name that Python takes as a keyword; an address of its own wins over the set's
    url = address.get("from") or (base and f"{base}{path}")
    return PublishedFile(path=path, remote=Remote(url=url, size=size, sha256=sha256, blob=blob), rows=rows, extra=extra)


def with_record(files: tuple[PublishedFile, ...], folder: Path) -> tuple[PublishedFile, ...]:
    """Return *files* with what the record in *folder* knows of them and the table does not."""
    learned = read_record(folder)
    return tuple(replace(file, remote=completed(file.remote, learned.get(file.path))) for file in files)


def _paths(folder: Path) -> Iterator[str]:
    """Yield the paths of the files below *folder* that are no parts and records of ours."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            yield file.relative_to(folder).as_posix()


def rows_fault(file: Path, expected: int) -> str:
    """Return in what the rows of *file* differ from those it should have; empty = in nothing, or it is too large to look."""
    # Its size and digest say enough; reading it would take minutes and its whole size in memory.
    if file.stat().st_size > _LARGEST_COUNTED:
        return ""
    try:
        if file.suffix == ".csv":
            # lines are not rows: a quoted field may hold line breaks
            with file.open(encoding="utf-8", newline="") as lines:
                rows = sum(1 for _ in csv.reader(lines)) - 1
        else:
            rows = len(read_rows(file))
    except (DataError, csv.Error, UnicodeDecodeError) as error:
        return f"cannot be read: {error.message if isinstance(error, DataError) else error}"
    return "" if rows == expected else f"{rows:,} rows, expected {expected:,}"
