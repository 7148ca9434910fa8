"""Which signals asked this process to stop: Tune stops on any of them alike, and does not tell which one came."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TimeUp(KeyboardInterrupt):
    """SIGUSR1 came where nothing was to be brought to an end: a scheduler's warning before a time limit."""


class StopSignals:
    """The signals that came since :func:`noted_signals` began."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._reader = -1

    @property
    def time_is_up(self) -> bool:
        """Whether SIGUSR1 came and neither Ctrl-C nor SIGTERM did: a scheduler's warning before a time limit."""
        self._read()
        # Our handler of SIGTERM raises SIGUSR1, so both are seen then.
        return signal.SIGUSR1 in self._seen and not self._seen & {signal.SIGINT, signal.SIGTERM}

    def _read(self) -> None:
        # Nothing to read, or closed already: what was seen until then stays.
        with suppress(OSError):
            self._seen.update(os.read(self._reader, 4096))


@contextmanager
def noted_signals() -> Iterator[StopSignals]:
    """Note the signals that come during the block; SIGUSR1 raises :class:`TimeUp` in it where nobody else handles it.

    Tune puts its own handlers in the place of any that we could set. Whoever handles a signal, the interpreter writes its number
    into the wake-up pipe. Python allows that in the main thread only; in another one nothing is noted.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    signals._reader, writer = os.pipe()
    for end in (signals._reader, writer):
        os.set_blocking(end, False)
    # By default SIGUSR1 ends a process at once, without a word.
    before = signal.signal(signal.SIGUSR1, _raise)
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(earlier)
        signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)
        signals._read()
        for end in (signals._reader, writer):
            os.close(end)
        signals._reader = -1


def _raise(number: int, frame: object) -> None:
    raise TimeUp
