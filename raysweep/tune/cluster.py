"""Whether a Ray cluster answers, asked before Ray is: left to itself, Ray retries for minutes without a word."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import RunFailedError, SpecError

CONNECT_SECONDS = 5.0  # for a port to open
ANSWER_SECONDS = 20.0  # for what listens there to answer as Ray's control service does
CLIENT_PORT = 10001  # of ray://host
CURRENT = Path("/tmp/ray/ray_current_cluster")  # where a started Ray notes its address for this machine
FORMS = "host:port (of `ray start --head`, usually port 6379), ray://host:port, auto, or local"


@dataclass(frozen=True, slots=True)
class Place:
    """Host and port of a cluster; *client* = of its client server (``ray://``), not of its control service."""

    host: str
    port: int
    client: bool = False

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse(address: str) -> Place:
    """Return host and port of *address*.

    >>> str(parse("ray://head"))
    'head:10001'

    Raises:
        SpecError: it is not of a form that Ray knows.
    """
    scheme, mark, rest = address.strip().rpartition("://")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s\[\]:/@]+))(?::(\d+))?", rest)
    if mark and scheme not in ("ray", "http", "https"):
        raise SpecError(f"--address {address!r}: unknown scheme '{scheme}://'", hint=f"write {FORMS}")
    if scheme in ("http", "https"):
        raise SpecError(f"--address {address!r} is that of Ray's dashboard", hint=f"write {FORMS}")
    if match is None or not (match[3] or scheme):
        raise SpecError(f"--address {address!r} has no host and port", hint=f"write {FORMS}")
    port = int(match[3]) if match[3] else CLIENT_PORT
    if not 0 < port < 1 << 16:
        raise SpecError(f"--address {address!r}: there is no port {port}", hint="ports go from 1 to 65535")
    return Place(match[1] or match[2], port, client=bool(scheme))


def wanted(address: str | None) -> str | None:
    """Return *address*, with None for a Ray of our own (``local``)."""
    return None if address is None or address.strip() in ("", "local") else address.strip()


def check(address: str | None) -> None:
    """Return if a cluster answers at *address*, or if a Ray of our own will be started.

    ``auto`` is looked up as Ray does: ``RAY_ADDRESS``, then the cluster noted on this machine; if neither is set, Ray looks for
    itself, which is quick.

    Raises:
        SpecError: the address is malformed.
        RunFailedError: nothing answers there.
    """
    address = wanted(address)
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "") or (CURRENT.read_text().strip() if CURRENT.is_file() else "")
    if not address or address in ("auto", "local"):
        return
    place = parse(address)
    hint = f"is a cluster running there? `ray status --address {place}` tells; leave --address out for one of your own"
    try:
        with socket.create_connection((place.host, place.port), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        raise RunFailedError(f"no Ray cluster can be reached at {place}: {_reason(error)}", hint=hint) from error
    # Something may listen on the port that is no Ray; connecting to it would hang for minutes.
    if not place.client and not _answers(place):
        raise RunFailedError(f"something listens at {place}, but does not answer as a Ray cluster does", hint=hint)


def _reason(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)


def _answers(place: Place) -> bool:
    """Tell whether Ray's own health check passes, in a process that can be given up."""
    argv = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", str(place)]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
