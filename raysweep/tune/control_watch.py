"""Notices within seconds that a cluster's control service is gone.

Ray itself says nothing for a minute, waits for the service to come back, and then ends this process from C++ with exit code 1 and
none of our words. A connection to the service's port tells sooner: a port that is closed, or a machine that is off, refuses or
ignores it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = (
    12.0  # seconds without a connection after which the service counts as gone; one that is restarted is back sooner
)
POLL = 2.0  # seconds between two looks
CONNECT = 3.0  # seconds that a connection may take


@contextmanager
def watched(
    host: str, port: int, gone: Callable[[], None], *, quiet: float = QUIET, poll: float = POLL
) -> Iterator[None]:
    """Call *gone* once, from another thread, if nothing takes connections at *host*:*port* for *quiet* seconds in the block.

    Args:
        host: of the control service.
        port: of the control service.
        gone: what to do then. The main thread may hang in Ray's C++ code, so it cannot be asked.
        quiet: how long the service may be away, in seconds.
        poll: seconds between two looks.
    """
    ended = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not ended.wait(poll):
            if _takes_connections(host, port):
                last = time.monotonic()
            elif time.monotonic() - last >= quiet and not ended.is_set():
                gone()
                return

    thread = threading.Thread(target=watch, name="raysweep-control-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=CONNECT + poll)


def _takes_connections(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=CONNECT):
            return True
    except OSError:
        return False
