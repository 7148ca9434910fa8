"""Which Ray a sweep runs in, and whether a cluster answers, asked before Ray is: left to itself, Ray retries for minutes.

Nothing here imports Ray. The rule is :func:`choose`: what was stated counts first, then where this process already is (a Ray job,
or a shell with ``RAY_ADDRESS``), and otherwise a sweep starts a Ray of its own on this machine.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import RunFailedError, SpecError

CONNECT_SECONDS = 5.0  # for a port to open
ANSWER_SECONDS = 20.0  # for what listens there to answer as Ray's control service does
CURRENT = Path("/tmp/ray/ray_current_cluster")  # where a started Ray notes its address for this machine
ADDRESS = "RAY_ADDRESS"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job supervisor sets it for the processes of a job
TOKENS_SINCE = (2, 52)  # version of Ray that first knew token authentication
# "0" makes everything listen on loopback, despite the name. Ray reads it when it is imported and hands it to the processes that it
# starts; left in our environment it would make every later `ray start` of a child process refuse to join a cluster.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
FORMS = "host:port (of `ray start --head`, usually port 6379), auto, or local"


@dataclass(frozen=True, slots=True)
class Place:
    """Host and port of a cluster's control service."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RayChoice:
    """Which Ray a sweep runs in.

    Attributes:
        address: of the cluster to join, ``host:port`` or ``auto``; None = a Ray of our own on this machine.
        reason: why a cluster is joined though nobody named it; empty where there is nothing to explain.
    """

    address: str | None
    reason: str = ""


def choose(stated: str | None, environ: Mapping[str, str] | None = None) -> RayChoice:
    """Return which Ray a sweep runs in.

    Args:
        stated: ``host:port``, ``auto``, or ``local``; None or empty = not stated.
        environ: environment variables; None = this process's.

    Raises:
        SpecError: the address is malformed, or of a kind in which a sweep cannot run.

    >>> choose(None, {}).address is None, choose("local", {"RAY_ADDRESS": "head:6379"}).address is None
    (True, True)
    >>> choose(None, {"RAY_ADDRESS": "head:6379"}).address
    'head:6379'
    """
    variables = os.environ if environ is None else environ
    address, origin = (stated or "").strip(), "--address"
    if not address:
        address, origin = variables.get(ADDRESS, "").strip(), ADDRESS
        if not address and variables.get(JOB):
            address, origin = "auto", "this Ray job"
    if address in ("", "local"):
        return RayChoice(None)
    if address != "auto":
        address = str(parse(address, origin=origin))
    return RayChoice(address, "" if origin == "--address" else f"as {origin} says; `--address local` starts its own")


def uses_token(environ: Mapping[str, str], home: Path, version: str, *, own: bool) -> bool:
    """Return whether this process and the Ray that it runs in show each other a token, by Ray's own rules.

    Args:
        environ: environment variables.
        home: the user's home folder, where Ray keeps a token.
        version: of Ray.
        own: whether it is a Ray of our own, which has a token unless the environment says otherwise.
    """
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < TOKENS_SINCE:
        return False
    mode = environ.get("RAY_AUTH_MODE")
    if mode is not None:
        return mode.lower() == "token"
    named = any(environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return own or named or (home / ".ray" / "auth_token").is_file()


def on_loopback(environ: Mapping[str, str]) -> bool:
    """Return whether a Ray of our own listens on loopback alone: unless the environment asks for a Ray of many nodes."""
    return environ.get(LOOPBACK, "0").lower() not in ("1", "true")


def parse(address: str, *, origin: str = "--address") -> Place:
    """Return host and port of *address*.

    Args:
        address: what was written.
        origin: where it was written, for the error.

    Raises:
        SpecError: it is not of a form in which a sweep can join a cluster.

    >>> str(parse("head:6379"))
    'head:6379'
    """
    label = f"{origin} {address!r}"
    scheme, mark, rest = address.strip().rpartition("://")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s\[\]:/@]+))(?::(\d+))?", rest)
    if scheme == "ray":
        # Through Ray Client the whole Tuner would run as an actor on the head and end when this connection does.
        host = match[1] or match[2] if match else "HOST"
        hint = f"on a machine of the cluster write {host}:6379; from elsewhere `raysweep submit SWEEP --address http://{host}:8265`"
        raise SpecError(f"{label} is a Ray Client address; a sweep would not outlive the connection", hint=hint)
    if scheme in ("http", "https"):
        hint = f"`raysweep submit SWEEP --address {address}` runs the sweep as a job there; `run` wants {FORMS}"
        raise SpecError(f"{label} is that of Ray's dashboard", hint=hint)
    if mark:
        raise SpecError(f"{label}: unknown scheme '{scheme}://'", hint=f"write {FORMS}")
    if match is None or not match[3]:
        raise SpecError(f"{label} has no host and port", hint=f"write {FORMS}")
    port = int(match[3])
    if not 0 < port < 1 << 16:
        raise SpecError(f"{label}: there is no port {port}", hint="ports go from 1 to 65535")
    return Place(match[1] or match[2], port)


def check(address: str | None) -> None:
    """Return if a cluster answers at *address*, or if a Ray of our own will be started.

    ``auto`` is looked up as Ray does: ``RAY_ADDRESS``, then the cluster noted on this machine; if neither is set, Ray looks for
    itself, which is quick.

    Args:
        address: what :func:`choose` chose.

    Raises:
        SpecError: the address is malformed.
        RunFailedError: nothing answers there.
    """
    if address == "auto":
        address = os.environ.get(ADDRESS, "") or (CURRENT.read_text().strip() if CURRENT.is_file() else "")
    if not address or address in ("auto", "local"):
        return
    place = parse(address)
    hint = f"is a cluster running there? `ray status --address {place}` tells; `--address local` starts one of its own"
    try:
        with socket.create_connection((place.host, place.port), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        raise RunFailedError(f"no Ray cluster can be reached at {place}: {_reason(error)}", hint=hint) from error
    # Something may listen on the port that is no Ray; connecting to it would hang for minutes.
    if not answers(place):
        raise RunFailedError(f"something listens at {place}, but does not answer as a Ray cluster does", hint=hint)


def _reason(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)


def answers(place: Place, seconds: float | None = None) -> bool:
    """Tell whether Ray's own health check passes at *place*, asked by a process that is given up after *seconds*."""
    argv = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", str(place)]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=seconds or ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
