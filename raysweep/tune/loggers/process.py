"""The driver's end of a logger: a bounded queue, a thread that empties it, and the process that does the work.

A run must not notice its loggers. So nothing of theirs runs in the driver: their imports take seconds, their requests wait for
servers, their exit handlers wait longer. A process can be left behind, and ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Full, Queue

from raysweep.tune.loggers.base import Message

log = logging.getLogger(__name__)

LIMIT = 1000  # messages that may wait
PATIENCE = 10.0  # seconds without an answer after which a logger counts as hung, when the run has ended
TO_START = 3.0  # times as long for the first answer: imports alone take ten seconds on a busy machine
LONGEST = 60.0  # seconds that the end of a run waits for a logger that goes on answering


class LoggerProcess:
    """A logger in a process of its own. No method waits, but :meth:`close`, a bounded time; none raises.

    Args:
        name: of the logger, as in :data:`raysweep.tune.loggers.LOGGERS`.
        sweep: name of the sweep.
        folder: where the logger may write; what it prints goes into ``<name>.log`` there.
        limit: how many messages may wait.
        patience: seconds that the end waits for an answer.
    """

    def __init__(self, name: str, sweep: str, folder: Path, *, limit: int = LIMIT, patience: float = PATIENCE) -> None:
        self.name, self.patience, self.printed = name, patience, folder / f"{name}.log"
        self.offered = self.taken = 0
        self.first_error = ""
        self._accepted = self._answered = 0
        self._began = self._waiting_since = time.monotonic()
        self._closing = False
        self._queue: Queue[Message | None] = Queue(limit)
        folder.mkdir(parents=True, exist_ok=True)
        # Appended to, since a sweep that goes on has the same folder; the child has its own copy of the handle.
        with self.printed.open("ab") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raysweep.tune.loggers.worker", name, sweep, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, text=True,
                start_new_session=True,  # Ctrl-C is for the run; the logger ends when its input does
            )  # fmt: skip
        # Daemons: a process that takes nothing must not keep the driver alive.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._feed, self._listen)]
        for thread in self._threads:
            thread.start()

    def put(self, message: Message) -> bool:
        """Hand *message* over; False if too many wait, and it is dropped."""
        self._note_idle()
        self.offered += 1
        try:
            self._queue.put_nowait(message)
        except Full:
            return False
        self._accepted += 1
        return True

    @property
    def lost(self) -> int:
        """Messages that were dropped, not answered, or answered with an error."""
        return self.offered - self.taken

    def close(self) -> None:
        """Let the logger deal with what waits, as long as it gets on with that; end it then."""
        self._note_idle()
        self._closing = True
        with suppress(Full):  # the thread looks at `_closing` when it is through with a full queue
            self._queue.put_nowait(None)
        latest = time.monotonic() + LONGEST
        try:
            # A logger that has been silent for long enough while the run went on is not waited for at all.
            while self._process.poll() is None and time.monotonic() < min(latest, self._until()):
                time.sleep(0.05)
        finally:
            self._end()
        if self.lost:
            reason = f"; first: {self.first_error}" if self.first_error else ""
            log.warning(
                "--log %s: %d of %d messages were lost%s; the results are complete without it (see %s)",
                self.name, self.lost, self.offered, reason, self.printed,
            )  # fmt: skip

    def _until(self) -> float:
        """Return when it counts as hung if it does not answer before."""
        if self._answered:
            return self._waiting_since + self.patience
        return max(self._waiting_since + self.patience, self._began + TO_START * self.patience)

    def _note_idle(self) -> None:
        """Note that nothing is waited for until now, if everything was answered."""
        if self._accepted == self._answered:
            self._waiting_since = time.monotonic()

    def _end(self) -> None:
        """End the process and whatever it started, if it has not ended."""
        if self._process.poll() is None:
            with suppress(OSError):
                # The whole group, which its own session gave it: loggers start processes that would outlive them.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for thread in self._threads:  # its last answers may still lie in the pipe
            thread.join(timeout=1.0)

    def _feed(self) -> None:
        """Write messages to the process, which may take none for as long as it likes."""
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as pipe:  # a process that died: the rest is lost, and counted
            while not (self._closing and self._queue.empty()):
                message = self._queue.get()
                if message is not None:
                    # `default=str`: a value that JSON does not know must not end this thread.
                    pipe.write(json.dumps(message, default=str) + "\n")
                    pipe.flush()

    def _listen(self) -> None:
        """Count the answers; say the first error at once, for hours may follow without curves."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return  # torn: it was ended as it wrote
            error = json.loads(line)
            self._answered += 1
            # Even an answer that is an error shows that the logger is alive.
            self._waiting_since = time.monotonic()
            if not error:
                self.taken += 1
            elif not self.first_error:
                self.first_error = error
                log.warning("--log %s: %s; the run goes on", self.name, error)


@contextmanager
def opened(names: Iterable[str], sweep: str, folder: Path) -> Iterator[list[LoggerProcess]]:
    """Start the loggers *names* of a sweep and close them when the block ends; one that cannot be started is left out."""
    with ExitStack() as stack:
        processes: list[LoggerProcess] = []
        for name in names:
            try:
                processes.append(LoggerProcess(name, sweep, folder))
            except OSError as error:  # no folder can be made, or no process
                log.warning("--log %s: %s; the run goes on without it", name, error)
                continue
            stack.callback(processes[-1].close)
        yield processes
