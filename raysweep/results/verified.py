"""Tables are read only as they were written: what is listed is there with its digest, and no row is another trial's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import DamagedError
from raysweep.results.columns import TableSchema
from raysweep.results.folder import Folder
from raysweep.results.schema import TIMING
from raysweep.results.state import State, checksum, read_files
from raysweep.results.statefiles import SNAPSHOT, TIMES, DoneFile, SnapshotFile, TableFile, TimesFile, read_state

_READERS = 16  # trials that are checked at once in storage that is not local


def read_as_written(folder: Folder, table: TableSchema, names: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of the files *names* of *table*, relative to *folder*, after a check that they are what their trials wrote.

    Files that a finished trial or a snapshot lists are compared by digest, and nothing may stand beside those of a finished trial;
    of the others every row must be the trial's. Each file is read once, so what is checked is what is returned.

    Raises:
        DamagedError: a file is missing, not as it was written, or of another trial; every such file of a trial is named.
        NewerFormatError: a newer raysweep wrote the list.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name.partition("/")[2])

    def read(group: tuple[str, list[str]]) -> dict[str, bytes]:
        return _read_trial_files(folder, table, *group)

    if folder.local is not None:
        parts = [read(group) for group in groups.items()]
    else:
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(read, groups.items()))
    return {name: data for part in parts for name, data in part.items()}


def damaged_error(folder: Folder, key: str, files: Sequence[str], reason: str) -> DamagedError:
    """Return the error that says of *files* of the trial *key* that they are *reason*."""
    path = folder.path(f"{key}/{files[0]}")
    more = f" and {len(files) - 1} more files of that trial are" if len(files) > 1 else " is"
    return DamagedError(f"{path}{more} {reason}", hint="`raysweep run … --repair` makes the trial again")


def _read_trial_files(folder: Folder, table: TableSchema, key: str, names: Sequence[str]) -> dict[str, bytes]:
    # The list is read before the files: it was written after those that it names, so they are there.
    files, complete = _listed(folder, key, table)
    listed = {file.name: file.blake2b for file in files}
    data = read_files(folder, key, dict.fromkeys((*listed, *names)))
    altered = [name for name, digest in listed.items() if name not in data or checksum(data[name]) != digest]
    if altered:
        raise damaged_error(folder, key, altered, "missing or not as it was written")
    others = [name for name in names if name not in listed]
    # A finished trial writes no more: what it does not list, somebody else put there.
    if complete and others:
        raise damaged_error(folder, key, others, "none that the trial wrote")
    # A trial at work has files that no snapshot lists yet. Only their rows tell whose they are.
    for name in others:
        if name not in data:
            raise damaged_error(folder, key, [name], "gone, or cannot be read")
        foreign = _trial_keys(data[name]) - {key}
        if foreign:
            raise damaged_error(folder, key, [name], f"of another trial: {', '.join(sorted(map(str, foreign)))}")
    return {f"{key}/{name}": data[name] for name in names}


def _listed(folder: Folder, key: str, table: TableSchema) -> tuple[list[TableFile], bool]:
    """Return the files of *table* that the trial lists, and whether these are all it has."""
    if table is TIMING:
        times = read_state(folder, f"{key}/{TIMES}", TimesFile)
        return [*times.files] if times is not None else [], times is not None
    done = read_state(folder, f"{key}/{State.DONE}.json", DoneFile)
    if done is not None:
        return [f for f in done.files or () if f.table == table.name], done.files is not None
    try:
        snapshot = read_state(folder, f"{key}/{SNAPSHOT}", SnapshotFile)
    # The tables beside a damaged snapshot are as good as ever; they are told by their rows then.
    except DamagedError:
        snapshot = None
    files: Iterable[TableFile] = snapshot.files or () if snapshot is not None else ()
    return [f for f in files if f.table == table.name], False


def _trial_keys(data: bytes) -> set[object]:
    """Return the keys of the trials whose rows lie in a file that holds *data*; what is no Parquet is its reader's to report."""
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            return set(file.read(columns=["trial_key"], use_threads=False)["trial_key"].to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        return set()
