"""Datasets that are one file of JSON: finding it, turning its rows into records, reporting what is wrong with them."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.config.schema import DataSpec
from raysweep.data import foreign
from raysweep.data.base import Reading
from raysweep.data.fields import Columns, Row, field, locality_probe, optional, standard_probes
from raysweep.data.jsonrows import check_keys, read_rows, type_name
from raysweep.errors import DataError, Problem, ProblemsError, RecordError
from raysweep.hashing import digest, file_digest
from raysweep.records import EditRecord, ProbeKind, check_record
from raysweep.workspace import near_names

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

logger = logging.getLogger(__name__)

__all__ = ["FlatDataset", "JsonDataset", "Row", "field", "locality_probe", "optional", "standard_probes", "train_file"]

_TEXT_KINDS = (ProbeKind.EFFICACY, ProbeKind.PARAPHRASE, ProbeKind.LOCALITY)


class JsonDataset:
    """Base of the datasets read from files; a subclass says which files and how a row becomes a record.

    ``EditRecord.unrelated`` of record i is the locality text of record i of the *train* file beside the edit file (the same
    name with ``train`` for ``edit``; taken again from the start if it is shorter), as published. Without one it is the locality
    text of the record half the file away, never one of the record's own probes; that text is a locality probe of another
    record, so a run over more than half of such a file trains on text that it is measured on.

    A dataset that comes in several files (:attr:`folder_of`) reads a whole folder of them, in the order of their names.

    What was computed is kept per (path, size, modification time) inside the object, never in the module.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    about: ClassVar[str]
    places: ClassVar[tuple[str, ...]]  # below data/, most specific first
    required: ClassVar[tuple[frozenset[str], ...]]  # each format's fields
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
    folder_of: ClassVar[str] = (
        ""  # ending of the files that a folder of the dataset consists of; empty = it is one file
    )

    def __init__(self) -> None:
        self._digests: dict[tuple[tuple[Path, int, int], ...], str] = {}
        self._counts: dict[tuple[Path, int, int], int] = {}

    def rows(self, file: Path) -> Sequence[object]:
        """Return the rows of one file."""
        return read_rows(file)

    def formats(self) -> tuple[frozenset[str], ...]:
        """Return the fields of each of the layouts that this dataset reads."""
        return self.required

    def remarks(self, row: Row) -> Iterator[str]:
        """Yield what is odd about a sound row, but no mistake."""
        yield from ()

    def record(self, row: Row, uid: str) -> EditRecord:
        """Return the record of one row; raise :class:`RecordError` for a missing or mistyped field."""
        raise NotImplementedError

    def locate(self, spec: DataSpec, workspace: Workspace) -> Path:
        """Return ``spec.path`` (a file, or a folder that holds one), else the file found by name in ``data/``.

        A relative path that is not below the root is looked for in what came with the package (``data/ZsRE/sample.json``).

        Raises:
            DataError: there is none; the hint says where it belongs.
        """
        if spec.path:
            path = workspace.resolve(spec.path)
            return self._file_at(path if path.exists() else workspace.find(spec.path) or path)
        # Most specific first: a folder may hold several editions of the same records.
        for place in self.places:
            known_place = workspace.find("data", *place.split("/"))
            if known_place is not None:
                return known_place
        raise DataError(
            f"dataset '{self.name}' was not found in {workspace.data}",
            hint=f"put it at {workspace.data / self.places[0]}, or give data.path (see data/README.md)",
        )

    def _file_at(self, path: Path) -> Path:
        """Return the file that ``data.path`` names, or the one that the folder *path* is for."""
        if path.is_file():
            return path
        if not path.is_dir():
            hint = near_names(path) or f"give a {' or '.join(self.suffixes)} file, or its folder"
            raise DataError(f"data.path '{path}' does not exist", hint=hint)
        for place in self.places:
            candidate = path / place.rpartition("/")[2]
            if candidate.is_file():
                return candidate
        files = sorted(p for p in path.iterdir() if p.suffix in self.suffixes)
        if len(files) == 1:
            return files[0]
        if files and self.folder_of:
            return path
        names = ", ".join(p.name for p in files) or f"nothing that ends in {' or '.join(self.suffixes)}"
        raise DataError(f"data.path '{path}' is a folder with {names}", hint="name the file itself")

    def _marks(self, path: Path | None) -> tuple[tuple[Path, int, int], ...]:
        """Return path, size and time of the file at *path*, or of each file of the folder there.

        Raises:
            DataError: there is none.
        """
        if path is not None and self.folder_of and path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix == self.folder_of)
            if files:
                return tuple(map(_mark, files))
        return (_mark(path),)

    def count(self, path: Path | None) -> int:
        """Return the number of rows."""
        marks = self._marks(path)
        for mark in marks:
            if mark not in self._counts:
                self._counts[mark] = len(self.rows(mark[0]))
        return sum(self._counts[mark] for mark in marks)

    def digest(self, path: Path | None) -> str:
        """Return the hash of the file's bytes, and of the train file's if there is one; of a folder, of all its files."""
        marks = self._marks(path)
        train = train_file(marks[0][0]) if len(marks) == 1 else None
        names = [mark[0].name for mark in marks] if train is None else ["edit", "train"]
        marks = marks if train is None else (*marks, _mark(train))
        # Path, size and time stand for the content within one process: a plan asks for the digest of one file many times.
        if marks not in self._digests:
            digests = [file_digest(m[0]) for m in marks]
            several = len(digests) > 1
            self._digests[marks] = digest(dict(zip(names, digests, strict=True))) if several else digests[0]
        return self._digests[marks]

    def read(self, path: Path | None) -> Reading:
        """Examine every row.

        Raises:
            DataError: a file cannot be read, is empty, or has another dataset's fields.
        """
        rows: list[EditRecord | Problem] = []
        warnings: list[str] = []
        files = [mark[0] for mark in self._marks(path)]
        for file in files:
            self._examine(file, rows, warnings)
        warnings += _contradictions([r for r in rows if isinstance(r, EditRecord)], path or files[0])
        if warnings:
            logger.info("%s: %d warnings, first: %s", path, len(warnings), warnings[0])
        train = train_file(files[0]) if len(files) == 1 else None
        return Reading.from_rows(self._with_unrelated(rows, train), tuple(warnings))

    def _examine(self, file: Path, rows: list[EditRecord | Problem], warnings: list[str]) -> None:
        """Add the rows of *file*, each a record or what is wrong with it, and what is odd about them."""
        reading = self.rows(file)
        self._check_fields(reading, file)
        # Every row is examined before anything is refused, so that all problems are told at once.
        for index, row in enumerate(reading):
            where = f"{file}:{index}"
            try:
                record = self._record(row, f"{self.name}/{len(rows):06d}")
                warnings += check_record(record, where=where)
                warnings += (f"{where} ({record.id}): {remark}" for remark in self.remarks(_mapping(row)))
                rows.append(record)
            except RecordError as error:
                # A problem has its place in a field of its own.
                message = error.message.removeprefix(f"{where} ")
                rows.append(Problem(code=error.code, message=message, file=where, hint=error.hint))

    def _record(self, row: object, uid: str) -> EditRecord:
        """Return the record of one element of the file.

        Raises:
            RecordError: it is not an object, or says something twice, or a field of it cannot be used.
        """
        named = _mapping(row)
        check_keys(row)
        layout = foreign.layout_of(row)
        if layout is not None and layout.dataset != self.name:
            raise RecordError(f"the row has the layout of {layout.name}, which is not read here", hint=layout.cure)
        return self.record(named, uid)

    def _with_unrelated(
        self, rows: Sequence[EditRecord | Problem], train: Path | None
    ) -> tuple[EditRecord | Problem, ...]:
        """Fill in the text that some editors need as a negative; a row that is no record lends none."""
        lenders = rows if train is None else self._lenient(train)
        texts = [_locality_text(r) if isinstance(r, EditRecord) else "" for r in lenders]
        # Rows without a text are passed over at once: in a file that has none, each record would look at all the others.
        lending = [i for i, text in enumerate(texts) if text]
        out: list[EditRecord | Problem] = []
        for i, record in enumerate(rows):
            if isinstance(record, Problem):
                out.append(record)
                continue
            # A text that the record itself asks about would be trained on and measured.
            own_texts = {f"{p.prompt} {p.target}" for p in record.probes}
            # Without a train file the text comes from half-way round the same file, so far away that it seldom is about the same.
            begin = i if train is not None else i + len(rows) // 2
            first = bisect_left(lending, begin % len(texts)) if texts else 0
            turns = (texts[lending[(first + k) % len(lending)]] for k in range(len(lending)))
            out.append(replace(record, unrelated=next((t for t in turns if t not in own_texts), "")))
        return tuple(out)

    def _lenient(self, file: Path) -> list[EditRecord]:
        """Return the readable records of a train file, of which only one text is used."""
        rows = []
        for index, row in enumerate(self.rows(file)):
            try:
                rows.append(self._record(row, f"{self.name}/train/{index:06d}"))
            except RecordError:
                logger.info("%s:%d: left out: not a record of dataset '%s'", file, index, self.name)
        return rows

    def load(self, path: Path | None) -> Iterator[EditRecord]:
        """Yield every record in file order.

        Raises:
            DataError: the file cannot be read.
            ProblemsError: one problem or more; all of them, each as ``file:index``.
        """
        reading = self.read(path)
        if reading.problems:
            raise ProblemsError(reading.problems)
        return iter(reading.records)

    def texts(self, path: Path | None) -> Iterator[str]:
        """Yield prompt, paraphrases and locality prompts of every sound record, each followed by its target."""
        for record in self.read(path).records:
            for probe in record.probes:
                if probe.kind in _TEXT_KINDS:
                    yield f"{probe.prompt} {probe.target}"

    def _check_fields(self, rows: Sequence[object], file: Path) -> None:
        """Refuse a file none of whose rows has the fields of any format of this dataset."""
        if not rows:
            raise DataError(f"{file}: no records", hint="the file must hold a JSON array of objects, or JSONL")
        layout = foreign.layout_of(rows[0])
        if (
            layout is not None
            and layout.dataset != self.name
            and all(foreign.layout_of(row) is not None for row in rows)
        ):
            raise DataError(
                f"{file}: these are rows of {layout.name}, a layout that is not read here", hint=layout.cure
            )
        # One row that fits is enough here: the others are reported one by one, with their index.
        fitting = any(isinstance(row, Mapping) and any(f <= row.keys() for f in self.formats()) for row in rows)
        if not fitting:
            actual = sorted(map(str, rows[0])) if isinstance(rows[0], Mapping) else type_name(rows[0])
            expected = " or ".join(str(sorted(fields)) for fields in self.formats())
            raise DataError(
                f"{file}: no row has the fields of dataset '{self.name}': wanted {expected}, found {actual}",
                hint="is data.name right?  `raysweep ls datasets` lists the formats",
            )


class FlatDataset(JsonDataset):
    """Base of the datasets whose rows are flat; the names of the fields say what a row means."""

    columns: ClassVar[Columns]

    def formats(self) -> tuple[frozenset[str], ...]:
        """Return the two fields that a row must have."""
        return (frozenset({self.columns.prompt, self.columns.target}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Return the record of the named fields."""
        return self.columns.record(row, uid)


def _mapping(row: object) -> Row:
    """Return *row*; raise :class:`RecordError` unless it has named fields."""
    if not isinstance(row, Mapping):
        raise RecordError(f"a row must be an object with named fields, got {type_name(row)}")
    return row


def _mark(path: Path | None) -> tuple[Path, int, int]:
    """Return the path with its size and modification time.

    Raises:
        DataError: there is no such file.
    """
    if path is None or not path.is_file():
        raise DataError(f"no data file '{path}'", hint="give data.path")
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


def train_file(path: Path) -> Path | None:
    """Return the train file beside an edit file (``x-edit.json`` → ``x-train.json``), or None.

    Only the last ``edit`` of a name says which of the two a file is: ``knowedit_edit.json`` goes with ``knowedit_train.json``.
    """
    head, edit, tail = path.name.rpartition("edit")
    other = path.with_name(f"{head}train{tail}") if edit else path
    return other if other != path and other.is_file() else None


def _locality_text(record: EditRecord) -> str:
    """Return prompt and target of the first locality probe, joined; "" if there is none."""
    return next((f"{p.prompt} {p.target}" for p in record.probes if p.kind is ProbeKind.LOCALITY), "")


def _contradictions(records: Sequence[EditRecord], file: Path) -> list[str]:
    """Warn of prompts that occur before with another target: the later edit supersedes the earlier one."""
    first: dict[str, EditRecord] = {}
    pairs = []
    for record in records:
        earlier = first.setdefault(record.prompt, record)
        if earlier.target != record.target:
            pairs.append(f"{file} ({record.id}): same prompt as {earlier.id}, another target")
    return pairs
