"""When a sweep waits for nodes: trials are pending, none runs, and none has begun for a while. Nothing here imports Ray."""

from __future__ import annotations

PATIENCE = 10.0  # seconds without a running trial before that is said
AGAIN = 60.0  # seconds until it is said again


class Waiting:
    """Decides when to say that a sweep waits."""

    def __init__(self) -> None:
        self._next: float | None = None

    def is_due(self, *, pending: bool, running: bool, now: float) -> bool:
        """Return whether to say so at *now* (seconds of a steady clock); trials queued behind running ones do not count."""
        if running or not pending:
            self._next = None
        elif self._next is None:
            self._next = now + PATIENCE
        elif now >= self._next:
            self._next = now + AGAIN
            return True
        return False

    def reset(self) -> None:
        """Begin to count anew: something is about to start."""
        self._next = None
