"""Ray's scratch folder of a local run: nobody else's to read, gone after the run, and after a killed one at the next start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from raysweep.processes import PROC, ProcessId, this_process

PLACE = Path("/tmp")  # Ray's sockets lie there, and a socket's path may have 107 bytes
PREFIX = "rs"
OWNER = "owner.json"
_PATIENCE = 5.0  # seconds that Ray's processes of a killed driver get to end


@contextmanager
def scratch_folder(place: Path = PLACE) -> Iterator[Path]:
    """Give a new, empty folder below *place*, and delete it afterwards; first delete those of drivers that died.

    The outer folder has mode 0700. Ray opens what it is given to everybody (mode 0777), so it gets a folder inside.
    """
    remove_abandoned(place)
    outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    try:
        outer.joinpath(OWNER).write_text(json.dumps(asdict(this_process())))
        inner = outer / "r"
        inner.mkdir(mode=0o700)
        yield inner
    finally:
        _delete(outer)
        remove_abandoned(place)


def remove_abandoned(place: Path = PLACE) -> list[Path]:
    """Delete the scratch folders of this user's drivers that died, and end what is left of their Ray; return the folders.

    Only a folder that names its owner, a process of this machine that is gone, is touched.
    """
    removed = []
    for folder in place.glob(f"{PREFIX}*"):
        owner = _owner(folder)
        # None = it cannot be told from here; then the folder stays.
        if owner is None or owner.is_alive() is not False:
            continue
        _end_processes_of(folder)
        _delete(folder)
        removed.append(folder)
    return removed


def _owner(folder: Path) -> ProcessId | None:
    """Return the process that made *folder*, if it is a scratch folder of this user's."""
    try:
        about = folder.lstat()
        # lstat: /tmp is everybody's, and a link there may lead anywhere.
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            return None
        return ProcessId(**json.loads(folder.joinpath(OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _delete(folder: Path) -> None:
    """Delete *folder*, the note of its owner last, so that what is left of it is found again."""
    for attempt in range(3):  # a process that is just ending may still write
        for inner in [p for p in folder.iterdir() if p.name != OWNER] if folder.is_dir() else []:
            if inner.is_dir() and not inner.is_symlink():
                shutil.rmtree(inner, ignore_errors=True)
            else:
                inner.unlink(missing_ok=True)
        if not folder.is_dir() or [p.name for p in folder.iterdir()] in ([], [OWNER]):
            break
        time.sleep(0.2 * (attempt + 1))
    else:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _end_processes_of(folder: Path) -> None:
    """End this user's processes that were started with a path in *folder*: Ray's own, whose driver is gone."""
    until = time.monotonic() + _PATIENCE
    # Ray's processes start each other, so one look is not enough.
    while (left := _processes_of(folder)) and time.monotonic() < until:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _processes_of(folder: Path) -> list[int]:
    # By the folder's path on their command lines: a dead driver's processes have no parent left to be found by.
    processes = []
    for process in PROC.glob("[0-9]*"):
        with suppress(OSError):
            if (
                process.stat().st_uid == os.getuid()
                and f"{folder}/".encode() in process.joinpath("cmdline").read_bytes()
            ):
                processes.append(int(process.name))
    return [pid for pid in processes if pid != os.getpid()]
