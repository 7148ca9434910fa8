"""What the folders of finished trials held, in two files for all of them: a sweep of thousands is read like one of ten.

A finished trial has half a dozen small files, and reading them takes milliseconds. So a driver that ends writes below
``_index/`` what it found in the folder of every trial that is DONE, after comparing each file with what was written, and beside it
the folder's *stamp*: name, size, times and number of every file in it. A reader that finds the same stamp takes the trial from the
index, and from its own files otherwise. Nothing is lost with the index, and a folder that was copied or touched is read again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs, ipc

from raysweep.lazy import without_collection
from raysweep.results.state import State, TrialRecord, TrialStatus, checksum

if TYPE_CHECKING:
    from raysweep.results.folder import Folder

INDEX = "_index"
LEAST = 200  # finished trials from which on there is an index
MOST = 4096  # rows: the files of larger trials are worth opening, and their rows would fill the index
SETTLED = 2.0  # seconds after which another change of a file has another time, on any storage we know
# Raise it when what is indexed changes: an index of another format counts as none.
_FORMAT = "1"
_TRIALS, _PROBES = f"{INDEX}/trials.arrow", f"{INDEX}/probes.arrow"
_TEXTS = ("key", "stamp", "text", "content", "resolved", "seconds")
_NUMBERS = ("step", "begin", "end")
_SCHEMA = pa.schema([*(pa.field(n, pa.string()) for n in _TEXTS), *(pa.field(n, pa.int64()) for n in _NUMBERS)])


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a folder looks like from outside: a hash, and when something in it last changed, in seconds since 1970."""

    digest: str
    changed: float

    def is_settled(self, now: float) -> bool:
        """Tell whether a later change would show in the stamp: the clocks of file systems are coarse."""
        return now - self.changed > SETTLED


@dataclass(frozen=True, slots=True)
class IndexedTrial:
    """A finished trial as its folder had it, with what is taken from its rows.

    Attributes:
        record: what its folder says about it.
        stamp: of the folder as it was read.
        content: its columns of the trials table that depend on no name, and its resolved values by dotted name.
        seconds: seconds and count by timing phase.
        probes: its rows of ``probes``, the columns that summaries need.
    """

    record: TrialRecord
    stamp: str
    content: tuple[dict[str, Any], dict[str, Any]]
    seconds: Mapping[str, tuple[float, int]]
    probes: pa.Table


class SweepIndex:
    """The index of the sweep in *folder*; empty where there is none, or none that can be read."""

    def __init__(self, folder: Folder) -> None:
        self._rows: dict[str, tuple[Any, ...]] = {}
        self._probes: pa.Table | None = None
        try:
            trials, data = _read(folder.read(_TRIALS)), folder.read(_PROBES)
            about = {k.decode(): v.decode() for k, v in (trials.schema.metadata or {}).items()}
            # The two files are of one writer, and what is shown of probes is what their trials wrote.
            if about.get("format") == _FORMAT and about.get("probes") == checksum(data):
                self._probes = _read(data)
                columns = [trials[name].to_pylist() for name in (*_TEXTS, *_NUMBERS)]
                self._rows = {row[0]: row[1:] for row in zip(*columns, strict=True)}
        # It is a copy: without it every trial is read from its own files, only slower.
        except (OSError, pa.ArrowException, ValueError, KeyError):
            return

    def __len__(self) -> int:
        return len(self._rows)

    def stamp(self, key: str) -> str:
        """Return the stamp of the trial *key*; empty if it is not indexed."""
        return str(self._rows[key][0]) if key in self._rows else ""

    def record(self, key: str) -> TrialRecord:
        """Return what the folder of an indexed trial says about it."""
        row = self._rows[key]
        return TrialRecord(TrialStatus(State.DONE, row[5]), row[1])

    def trial(self, key: str) -> IndexedTrial:
        """Return everything about an indexed trial."""
        stamp, _, content, resolved, seconds, _, begin, end = self._rows[key]
        assert self._probes is not None
        return IndexedTrial(
            record=self.record(key),
            stamp=stamp,
            content=(json.loads(content), json.loads(resolved)),
            seconds={phase: (float(total), int(count)) for phase, (total, count) in json.loads(seconds).items()},
            probes=self._probes.slice(begin, end - begin),
        )


@without_collection()
def finished(folder: Folder, keys: Iterable[str]) -> dict[str, TrialStatus]:
    """Return the status of those of *keys* that are DONE by the index, every byte of which was compared once."""
    index = SweepIndex(folder)
    if not index:
        return {}
    seen = stamps(folder, keys)
    return {key: index.record(key).status for key, stamp in seen.items() if stamp.digest == index.stamp(key)}


def write_index(folder: Folder, trials: Mapping[str, IndexedTrial]) -> None:
    """Write the index of *trials*; readers see the older one, the new one or none, never a mixture.

    Raises:
        StoreError: the storage cannot be written.
    """
    data = _written(pa.concat_tables([trial.probes for trial in trials.values()]))
    columns: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
    end = 0
    for key, trial in trials.items():
        content, resolved = trial.content
        begin, end = end, end + len(trial.probes)
        row = (key, trial.stamp, trial.record.text, *(json.dumps(part) for part in (content, resolved, trial.seconds)))
        for name, value in zip(_SCHEMA.names, (*row, trial.record.status.step, begin, end), strict=True):
            columns[name].append(value)
    # Probes first: a reader that sees them beside older trials finds another checksum, and does without.
    folder.write(_PROBES, data)
    about = {"format": _FORMAT, "probes": checksum(data)}
    folder.write(_TRIALS, _written(pa.Table.from_pydict(columns, schema=_SCHEMA.with_metadata(about))))


def stamps(folder: Folder, keys: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamps of the trials *keys* that have a folder; on object storage by one listing of the whole sweep."""
    if folder.local is None:
        return _remote_stamps(folder, frozenset(keys))
    found = {}
    for key in keys:
        entries, changed = [], 0
        try:
            with os.scandir(folder.path(key)) as files:
                for file in files:
                    if not file.name.startswith("."):  # the heartbeat, and what is being written
                        s = file.stat()
                        # ctime and inode tell of a file that was replaced under its old name, size and mtime.
                        entries.append(f"{file.name} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}")
                        changed = max(changed, s.st_mtime_ns, s.st_ctime_ns)
        except OSError:  # there is no such folder, or it changes while we look
            continue
        found[key] = _stamp(entries, changed)
    return found


def _remote_stamps(folder: Folder, keys: frozenset[str]) -> dict[str, Stamp]:
    chosen = fs.FileSelector(folder.base, recursive=True, allow_not_found=True)
    entries: dict[str, list[str]] = {}
    changed: dict[str, int] = {}
    for info in folder.filesystem.get_file_info(chosen):
        key, _, name = info.path[len(folder.base) + 1 :].partition("/")
        if key in keys and info.type == fs.FileType.File and not info.base_name.startswith("."):
            # A storage that tells no time counts as changed just now, so that nothing of it gets into the index.
            at = info.mtime_ns if info.mtime_ns is not None else time.time_ns()
            entries.setdefault(key, []).append(f"{name} {info.size} {at}")
            changed[key] = max(changed.get(key, 0), at)
    return {key: _stamp(found, changed[key]) for key, found in entries.items()}


def _stamp(entries: list[str], changed: int) -> Stamp:
    # Storages list the files of a folder in any order.
    text = "\n".join(sorted(entries))
    return Stamp(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), changed / 1e9)


def _written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with ipc.new_file(sink, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def _read(data: bytes) -> pa.Table:
    with ipc.open_file(pa.BufferReader(data)) as reader:
        return reader.read_all()
