"""Which process is meant, even after its number was given to another one; only a process of this machine can be judged."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, named so that no later one is taken for it.

    Attributes:
        host: the machine's name, for a reader.
        boot: which start of which kernel (empty = unknown); two machines never share it.
        namespace: the process-id namespace (empty = unknown): a container counts its processes for itself.
        pid: the process's number.
        start: when it started, as the system counts (opaque; empty = unknown).
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: str

    def is_alive(self) -> bool | None:
        """Tell whether the process still runs; None = it cannot be seen from here (another machine or container)."""
        if (self.boot, self.namespace) != (_boot(), _namespace()) or (
            not self.boot and self.host != socket.gethostname()
        ):
            return None
        start = start_of(self.pid)
        return start is not None and (start == self.start or not self.start)


def this_process() -> ProcessId:
    """Return the process that calls."""
    pid = os.getpid()
    return ProcessId(socket.gethostname(), _boot(), _namespace(), pid, start_of(pid) or "")


def start_of(pid: int) -> str | None:
    """Return when the process *pid* started, or None if there is none (one that only waits to be reaped is none)."""
    if not PROC.joinpath("self", "stat").exists():
        process = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return process.stdout.strip() or None
    try:
        # The name in brackets may hold blanks and brackets itself; fields are counted from behind the last one.
        fields = PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Field 3 is the state (Z zombie, X dead), field 22 the start time in clock ticks.
    return None if fields[0] in "ZX" else fields[19]


def user_name() -> str:
    """Return the name of the user who runs this process, or its number where it has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _boot() -> str:
    with suppress(OSError):
        return PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink(PROC.joinpath("self/ns/pid"))
    return ""
