"""Who runs a sweep: a file per driver below ``_drivers/``, kept fresh while the driver lives.

A driver on this machine is judged by its process (number and start time, so that a number given to a later process deceives
nobody); one elsewhere, or in another container, by the age of its file. Whoever takes a lock compares times that the storage itself
gave, so clocks need not agree. The only thing that the storage has to grant is that a file is seen once it was written: local disks
and object stores do; NFS does after its attribute cache expires (seconds), so two drivers that start on two NFS clients within
that time may both go on. Nothing is lost then: equal trials write equal bytes.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from raysweep.errors import BusyError, StoreError, UnwritableError
from raysweep.processes import ProcessId, this_process, user_name
from raysweep.results.folder import Folder

log = logging.getLogger(__name__)

DRIVERS = "_drivers"
BEAT = 10.0  # seconds between two writes of a driver's file
STALE = 120.0  # seconds after which a driver that cannot be seen from here counts as gone
_WAIT = 0.2  # seconds between two looks at drivers that start at the same moment


class _DriverFile(BaseModel):
    model_config = ConfigDict(extra="ignore")

    host: str
    boot: str
    namespace: str
    pid: int
    start: str
    user: str
    since: str
    running: bool
    keys: tuple[str, ...] | None = None

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.host, self.boot, self.namespace, self.pid, self.start)


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that lives: its file's name, its process, user, start (UTC), and the trials it works on (None = all)."""

    name: str
    process: ProcessId
    user: str
    since: str
    running: bool
    keys: frozenset[str] | None

    def works_on(self, key: str) -> bool:
        """Tell whether the trial *key* is among its trials."""
        return self.keys is None or key in self.keys

    def shares_trials_with(self, keys: Collection[str] | None) -> bool:
        """Tell whether it works on any of *keys* (None = all trials)."""
        return self.keys is None or keys is None or not self.keys.isdisjoint(keys)

    def __str__(self) -> str:
        return f"process {self.process.pid} of {self.user} on {self.process.host}, since {self.since}"


def drivers_at_work(folder: Folder) -> tuple[Driver, ...]:
    """Return the drivers that live and work on the sweep in *folder*, by this machine's clock where it matters."""
    return tuple(driver for driver, alive in _listed(folder, time.time()) if alive)


def _listed(folder: Folder, now: float) -> Iterator[tuple[Driver, bool]]:
    """Yield each driver that has a file, and whether it lives at the time *now*."""
    for name, modified in folder.modified(DRIVERS).items():
        driver = _read(folder, name)
        if driver is not None:
            # None = a process of another machine or container, which only the age of its file can tell of.
            alive = driver.process.is_alive()
            yield driver, now - modified < STALE if alive is None else alive


def _read(folder: Folder, name: str) -> Driver | None:
    try:
        file = _DriverFile.model_validate_json(folder.read(name))
    except (OSError, ValidationError):
        return None  # it ended just now, or this is no driver's file
    keys = frozenset(file.keys) if file.keys is not None else None
    return Driver(name, file.process, file.user, file.since, file.running, keys)


@dataclass
class DriverLock:
    """Says, while it is held, that this process runs the sweep in *folder*.

    Promises: of two drivers that share trials at most one holds the lock, unless it was taken ``anyway``; the lock of a driver that
    died hinders nobody. :attr:`lost` turns true when the folder was removed, moved or replaced under the driver.

    Attributes:
        folder: the sweep's results.
        keys: the trials this driver works on; None = the whole sweep.
        anyway: go on although somebody else runs the sweep.
    """

    folder: Folder
    keys: Collection[str] | None = None
    anyway: bool = False
    lost: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        # A name that no other driver has, so that two never write one file; of two that wait, the lower name goes
        # first.
        self._name = f"{DRIVERS}/{uuid.uuid4().hex[:12]}.json"
        process = this_process()
        self._content: dict[str, object] = {
            "format": 1,
            "host": process.host,
            "boot": process.boot,
            "namespace": process.namespace,
            "pid": process.pid,
            "start": process.start,
            "user": user_name(),
            "since": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
            "keys": None if self.keys is None else sorted(self.keys),
        }
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="raysweep-driver-lock", daemon=True)

    def __enter__(self) -> DriverLock:
        """Take the lock.

        Raises:
            BusyError: somebody else runs the sweep; nothing was changed.
            StoreError: the storage cannot be written.
        """
        # First the file, then the look: of two drivers that start at the same moment, at least one sees the other's
        # file.
        self._write(running=False)
        try:
            self._settle()
            self._write(running=True)
        except BaseException:
            self._remove()
            raise
        # The file is touched from now on, so that others can tell a driver at work from one that died.
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        # The thread ends before the file goes: on an object store a beat is a write, which would bring it back.
        self._end.set()
        self._thread.join()
        # A folder that was taken away during the last trial is noticed here; afterwards our own file is gone anyway.
        self.check()
        self._remove()

    def release(self) -> None:
        """Give the lock back at once, from whatever thread, where this process is about to end without leaving the block."""
        self._end.set()
        self._remove()

    def check(self) -> bool:
        """Tell whether the lock is still held; notes it if it is gone."""
        if not self.lost:
            with suppress(OSError):  # storage out of reach is not storage gone
                self.lost = not self.folder.exists(self._name)
        return not self.lost

    def _settle(self) -> None:
        """Wait until it is clear that this driver may run; files of drivers that died are removed.

        Of drivers that start at the same moment the one with the lowest file name runs; the others see its file.
        """
        while True:
            waiting = False
            # The storage's own clock is used on both sides of the comparison: this driver's file was just written.
            for driver, alive in list(_listed(self.folder, self.folder.modified_at(self._name))):
                if driver.name == self._name:
                    continue
                if not alive:
                    self.folder.delete(driver.name)
                elif driver.shares_trials_with(self.keys) and not self.anyway:
                    if driver.running or driver.name < self._name:
                        hint = "wait for it or end it; --anyway runs it a second time beside it"
                        raise BusyError(f"{self.folder.location} is being run by {driver}", hint=hint)
                    waiting = True
            if not waiting:
                return
            time.sleep(_WAIT)
            self._write(running=False)  # and so ask the storage for the time again

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            if not self.check():
                return
            # A beat must never end a sweep.
            with suppress(OSError):  # the next beat will tell; and a disk that is read-only now does not end a sweep
                self.folder.touch(self._name)

    def _write(self, *, running: bool) -> None:
        content: Mapping[str, object] = {**self._content, "running": running}
        try:
            self.folder.write_json(self._name, content)
        # A driver that just ended may have removed the empty folder between two steps of the writing.
        except UnwritableError:
            self.folder.write_json(self._name, content)

    def _remove(self) -> None:
        with suppress(StoreError, OSError):
            self.folder.delete(self._name)
        self.folder.drop_if_empty(DRIVERS)
