"""Where the seconds of a run go, by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from raysweep.rows import SHARED_PHASE_SUFFIX, TimingRow


class Clock:
    """Adds up seconds and counts by phase (``edit``, ``apply``, ``round``, …) until they are handed over."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def measure(self, phase: str, count: int) -> Iterator[None]:
        """Add the seconds of the block, which works on *count* records or questions, to *phase*; also where it fails."""
        began = perf_counter()
        try:
            yield
        finally:
            self.add(phase, perf_counter() - began, count)

    def add(self, phase: str, seconds: float, count: int) -> None:
        """Add *seconds* spent on *count* things to *phase*."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self._counts[phase] = self._counts.get(phase, 0) + count

    def take(self) -> Clock:
        """Return what has added up, and start anew."""
        # Handed over, not copied: what the caller holds must not grow while the next round is measured.
        taken = Clock()
        taken._seconds, taken._counts = self._seconds, self._counts
        self._seconds, self._counts = {}, {}
        return taken

    def rows(self, key: str, step: int, *, shared: bool = False) -> list[TimingRow]:
        """Return a row per phase of trial *key*; *shared* marks what several trials of a group did together."""
        suffix = SHARED_PHASE_SUFFIX if shared else ""
        return [
            TimingRow(trial_key=key, step=step, phase=f"{phase}{suffix}", seconds=seconds, count=self._counts[phase])
            for phase, seconds in self._seconds.items()
        ]
