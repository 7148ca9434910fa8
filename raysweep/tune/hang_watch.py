"""Finds trials that hang: no sign of life for longer than the sweep allows. Nothing here imports Ray.

Signs of life are the trial's heartbeat file (:class:`raysweep.tune.deps.Heartbeat`). It is only asked whether it changed, and the
time is taken here, so that neither the clocks of other nodes nor what an earlier life of the trial left behind matters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raysweep.config.sweep_schema import ResourceSpec
from raysweep.errors import SpecError
from raysweep.results.store import HEARTBEAT

MINUTE = 60.0  # seconds
POLL = 5.0  # seconds between two looks, at most
LOOKS = 20  # in the time that a trial may be silent, at least


def check(resources: ResourceSpec, results: str, *, local: bool) -> None:
    """Return if hung trials need not be found, or can be.

    Args:
        resources: what the sweep asks for.
        results: where results lie.
        local: whether that is a folder.

    Raises:
        SpecError: *results* lie on an object store, where trials leave no heartbeat; their rounds may be hours apart.
    """
    if resources.hung_after and not local:
        raise SpecError(
            f"resources.hung_after: {results} is no folder, so trials give no sign of life between rounds",
            hint="leave it 0, or use --storage with a folder that all nodes share",
        )


@dataclass(slots=True)
class _Life:
    """A trial's process: the heartbeat file as last seen, and since when it is unchanged (None = it gave no sign yet)."""

    stamp: int | None
    since: float | None = None


class HangWatch:
    """Knows which trials run, and which of them hang.

    Args:
        folder: the sweep's results.
        minutes: how long a trial may be silent, counted from its first heartbeat.

    Attributes:
        reasons: why the last process of a trial was ended, by key, for those that hung.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self.reasons: dict[str, str] = {}
        self._lives: dict[str, _Life] = {}
        # So that the first look is not put off where the clock begins at 0.
        self._looked = -POLL

    def started(self, key: str) -> None:
        """Note that a process begins the trial *key*."""
        self.reasons.pop(key, None)
        # Loading a model and the data may take long, so nothing counts until this process has given a first sign.
        self._lives[key] = _Life(self._stamp(key))

    def stopped(self, key: str) -> None:
        """Note that no process runs the trial *key* any more."""
        self._lives.pop(key, None)

    def hung(self, now: float) -> list[str]:
        """Return the trials that hang at *now* (seconds of a steady clock), each once in its life."""
        seconds = self.minutes * MINUTE
        if now - self._looked < min(POLL, seconds / LOOKS):
            return []
        self._looked = now
        found = []
        for key, life in self._lives.items():
            stamp = self._stamp(key)
            if stamp is not None and stamp != life.stamp:
                life.stamp, life.since = stamp, now
            elif life.since is not None and now - life.since >= seconds:
                found.append(key)
        for key in found:
            self.reasons[key] = f"no sign of life for {self.minutes:g} minutes at edit {self._edits(key)}"
            # It must not be found again while Tune takes its time to notice the death.
            del self._lives[key]
        return found

    def _stamp(self, key: str) -> int | None:
        try:
            return (self.folder / key / HEARTBEAT).stat().st_mtime_ns
        except OSError:
            return None

    def _edits(self, key: str) -> int:
        try:
            # The file may be torn or gone at this moment; its number is for the message alone.
            return int(json.loads((self.folder / key / HEARTBEAT).read_text())["done"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
