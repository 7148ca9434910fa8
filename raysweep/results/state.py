"""Where a trial stands: one rule, asked by ``plan``, ``run``, ``show``, ``compare``, ``analyze`` and every worker.

A trial is DONE when its ``trial.json`` and its ``DONE.json`` are valid and every file that ``DONE.json`` names, for each planned
round, is there as it was written. *As written* means the size at each look, and the digest where it is asked for: ``run``
asks for it before it starts, and whoever reads a table has it checked then (:mod:`raysweep.results.verified`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from raysweep.config.schema import TrialSpec
from raysweep.errors import DamagedError, NewerFormatError
from raysweep.results.drivers import Driver, drivers_at_work
from raysweep.results.folder import Folder
from raysweep.results.schema import PROBES, STATS, TABLES, TIMING
from raysweep.results.statefiles import (
    SNAPSHOT,
    TIMES,
    TRIAL,
    DoneFile,
    FailedFile,
    SnapshotFile,
    StoppedFile,
    TableFile,
    TimesFile,
    TrialFile,
    file_name,
    read_state,
    read_trial,
)

ROUND_TABLES = (PROBES, STATS, TIMING)  # every round has one file of each, however few rows it has
_READERS = 16  # files that are read at once from storage that is not local


class State(StrEnum):
    """Where a trial stands."""

    ABSENT = "ABSENT"
    RUNNING = "RUNNING"
    INTERRUPTED = "INTERRUPTED"
    DONE = "DONE"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    DAMAGED = "DAMAGED"
    NEWER = "NEWER"


ENDS = (State.DONE, State.FAILED, State.STOPPED)
COLLAPSED = "collapsed"  # the rule that stops a trial whose model is no finite numbers, where its editor cannot go on


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """Where a trial stands.

    Attributes:
        state: its state; begun and not ended is RUNNING while somebody works on it, else INTERRUPTED.
        step: the step it reached.
        error: type and message of what ended it, if it is FAILED; why it was stopped, if it is STOPPED.
        reason: what is wrong, if it is DAMAGED or NEWER.
        rule: by which it was stopped, if it is STOPPED.
        altered: tables of a finished trial that are there, but not as they were written: they are replaced on demand only.
    """

    state: State
    step: int = 0
    error: str = ""
    reason: str = ""
    altered: tuple[str, ...] = ()
    rule: str = ""

    @property
    def ended(self) -> bool:
        """Whether the trial is to be left as it is, unless somebody asks for more: done, failed, stopped, newer or altered."""
        return self.state in (*ENDS, State.NEWER) or bool(self.altered)


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What a trial's folder says about it: its state, and its ``trial.json`` if that is valid.

    A sweep may have many, so ``trial.json`` is kept as text.
    """

    status: TrialStatus
    text: str = ""

    @property
    def begun(self) -> bool:
        """Whether the trial has a valid ``trial.json``."""
        return bool(self.text)

    def about(self) -> tuple[TrialFile, TrialSpec]:
        """Return the ``trial.json`` of a trial that has begun, and the specification in it."""
        about = TrialFile.model_validate_json(self.text)
        return about, TrialSpec.read_back(about.trial)


def trial_state(
    folder: Folder, key: str, rounds: Sequence[int] | None = None, *, verify: bool = False,
    drivers: Iterable[Driver] | None = None,
) -> TrialStatus:  # fmt: skip
    """Return where the trial *key* of the sweep in *folder* stands.

    Args:
        folder: the sweep's results.
        key: the trial.
        rounds: the planned rounds; None = those in its ``trial.json``.
        verify: compare the digest of every file of a finished trial too, which reads them all.
        drivers: who works on the sweep; None = look, where it matters.
    """
    return examine(folder, key, rounds, verify=verify, drivers=drivers).status


def examine(
    folder: Folder, key: str, rounds: Sequence[int] | None = None, *, verify: bool = False,
    drivers: Iterable[Driver] | None = None,
) -> TrialRecord:  # fmt: skip
    """Return everything that the folder of the trial *key* says about it; see :func:`trial_state`."""
    sizes = folder.sizes(key)
    try:
        # Everything else in the folder is read by what trial.json says: rounds, format, specification.
        begun = read_trial(folder, key)
        if begun is None:
            return TrialRecord(_not_begun(folder, key, sizes))
        about, spec = begun
        try:
            status = _status(folder, key, sizes, tuple(rounds or spec.protocol.rounds), verify)
        except DamagedError as error:
            status = TrialStatus(State.DAMAGED, reason=error.message)
        if status.state is State.RUNNING:
            drivers = drivers_at_work(folder) if drivers is None else drivers
            # Begun and without an end means RUNNING only while somebody works on it.
            if not any(driver.works_on(key) for driver in drivers):
                status = TrialStatus(State.INTERRUPTED, status.step)
        return TrialRecord(status, about.model_dump_json())
    except NewerFormatError as error:
        return TrialRecord(TrialStatus(State.NEWER, reason=error.message))
    except DamagedError as error:
        return TrialRecord(TrialStatus(State.DAMAGED, reason=error.message))


def _not_begun(folder: Folder, key: str, names: Collection[str]) -> TrialStatus:
    """Return the state of a trial without ``trial.json``: absent, or failed where its process died before that was written."""
    # trial.json is written first, so whoever removed it did so later. FAILED may stand alone: a process can die before
    # it writes anything.
    for end in (State.DONE, State.STOPPED):
        if f"{end.value}.json" in names:
            reason = f"{folder.path(f'{key}/{TRIAL}')} is missing beside {end.value}.json"
            return TrialStatus(State.DAMAGED, reason=reason)
    failed = read_state(folder, f"{key}/{State.FAILED.value}.json", FailedFile)
    if failed is not None:
        return TrialStatus(State.FAILED, failed.step, f"{failed.type}: {failed.message}")
    return TrialStatus(State.ABSENT)


def _status(folder: Folder, key: str, sizes: Mapping[str, int], rounds: Sequence[int], verify: bool) -> TrialStatus:
    """Return the state of a trial whose ``trial.json`` is valid.

    Raises:
        DamagedError: one of its other state files is not valid.
        NewerFormatError: a newer raysweep wrote one of them.
    """
    # At most one of these is there: `ResultStore.reopen` removes them when a trial goes on.
    done = read_state(folder, f"{key}/{State.DONE}.json", DoneFile)
    if done is not None:
        return _finished(folder, key, sizes, rounds, done, verify)
    failed = read_state(folder, f"{key}/{State.FAILED}.json", FailedFile)
    if failed is not None:
        return TrialStatus(State.FAILED, failed.step, f"{failed.type}: {failed.message}")
    stopped = read_state(folder, f"{key}/{State.STOPPED}.json", StoppedFile)
    if stopped is not None:
        return TrialStatus(State.STOPPED, stopped.step, stopped.reason, rule=stopped.rule)
    snapshot = _snapshot(folder, key)
    # Begun and not ended; whether anybody is at work, `examine` finds out.
    return TrialStatus(State.RUNNING, snapshot.step if snapshot is not None else 0)


def _snapshot(folder: Folder, key: str) -> SnapshotFile | None:
    """Return the trial's ``snapshot.json``; a damaged one counts as none, as it does for a trial that goes on."""
    try:
        return read_state(folder, f"{key}/{SNAPSHOT}", SnapshotFile)
    except DamagedError:
        return None


def _finished(
    folder: Folder, key: str, sizes: Mapping[str, int], rounds: Sequence[int], done: DoneFile, verify: bool
) -> TrialStatus:
    """Return DONE if every file of every planned round is there as it was written, else DAMAGED."""
    # Cheap checks first: names, then sizes, then (on demand) every byte.
    missing = missing_files(sizes, rounds, done.files)
    if missing:
        return TrialStatus(State.DAMAGED, done.step, reason=f"{folder.path(key)}: {_counted(missing)} missing")
    if done.step != rounds[-1]:
        reason = f"{folder.path(key)} ended at step {done.step}, its last round is {rounds[-1]}"
        return TrialStatus(State.DAMAGED, done.step, reason=reason)
    times = read_state(folder, f"{key}/{TIMES}", TimesFile)
    files = (*(done.files or ()), *(times.files if times is not None else ()))
    altered = [file.name for file in files if sizes.get(file.name) != file.bytes]
    if done.files is not None:
        altered += _unlisted(sizes, done.files)
    if not altered and verify:
        altered = altered_files(folder, key, files)
    if altered:
        reason = f"{folder.path(key)}: {_counted(altered)} not as written"
        return TrialStatus(State.DAMAGED, done.step, reason=reason, altered=tuple(altered))
    return TrialStatus(State.DONE, done.step)


def missing_files(names: Collection[str], rounds: Iterable[int], files: Iterable[TableFile] | None) -> list[str]:
    """Return which files of the planned *rounds*, and of those listed in *files*, are not among *names*.

    A table of a planned round that *files* does not list is missing too, though a file of that name may be there.
    """
    listed = {file.name for file in files} if files is not None else None
    expected = [file_name(table.name, step) for step in rounds for table in ROUND_TABLES]
    # A file of the right name that DONE.json does not list was put there by somebody else.
    unlisted = (
        [] if listed is None else [n for n in expected if n not in listed and not n.startswith(f"{TIMING.name}-")]
    )
    return sorted({name for name in (*expected, *(listed or ())) if name not in names} | set(unlisted))


def _unlisted(names: Iterable[str], files: Iterable[TableFile]) -> list[str]:
    """Return the tables among *names* that a finished trial does not list, so did not write."""
    listed = {file.name for file in files}
    tables = {table.name for table in TABLES} - {TIMING.name}
    parts = ((name, name.rpartition("-")[0]) for name in names if name.endswith(".parquet"))
    return sorted(name for name, table in parts if table in tables and name not in listed)


def altered_files(folder: Folder, key: str, files: Iterable[TableFile]) -> list[str]:
    """Return which of *files* do not hold the bytes they were written with (one that is gone is among them)."""
    files = tuple(files)

    def is_altered(file: TableFile) -> bool:
        data = _bytes_of(folder, f"{key}/{file.name}")
        return data is None or checksum(data) != file.blake2b

    # Reading from an object store is mostly waiting, so many files are read at once there.
    if folder.local is not None:
        return [file.name for file in files if is_altered(file)]
    with ThreadPoolExecutor(_READERS) as pool:
        return [file.name for file, bad in zip(files, pool.map(is_altered, files), strict=True) if bad]


def read_files(folder: Folder, key: str, names: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of the files *names* of the trial *key*, by name; those that are gone or cannot be read are left out."""
    names = tuple(names)
    paths = [f"{key}/{name}" for name in names]
    if folder.local is not None:
        contents = [_bytes_of(folder, path) for path in paths]
    else:
        with ThreadPoolExecutor(_READERS) as pool:
            contents = list(pool.map(lambda path: _bytes_of(folder, path), paths))
    return {name: data for name, data in zip(names, contents, strict=True) if data is not None}


def _bytes_of(folder: Folder, path: str) -> bytes | None:
    try:
        return folder.read(path)
    except OSError:
        return None


def checksum(data: bytes) -> str:
    """Return the BLAKE2b digest of *data* that state files hold, 32 hex digits."""
    return hashlib.blake2b(data).hexdigest()[:32]


def _counted(names: Sequence[str]) -> str:
    """Return ``a.parquet is``, or ``a.parquet and 2 more are``."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"
