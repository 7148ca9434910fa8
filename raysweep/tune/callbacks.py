"""Ray's news of a sweep, handed on to whoever watches. Importing this imports Ray."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from raysweep.results.ray_logs import TRIAL_KEY
from raysweep.tune import ray_nodes
from raysweep.tune.hang_watch import HangWatch
from raysweep.tune.waiting import Waiting
from raysweep.tune.watcher import Watcher

LOOK = 1.0  # seconds between two looks at all trials; Tune offers ten a second, and there may be thousands of trials


class RayCallback(Callback):  # type: ignore[misc]
    """Tells a :class:`~raysweep.tune.watcher.Watcher` what Ray reports, and ends trials that hang; pickled as nothing by Ray.

    Args:
        watcher: told about everything; None = nobody.
        hangs: knows which trials hang; None = they may.
        why_waiting: asked why no trial runs, when none has for a while.
    """

    def __init__(
        self, watcher: Watcher | None = None, hangs: HangWatch | None = None,
        why_waiting: Callable[[], str] | None = None,
    ) -> None:  # fmt: skip
        self.watcher, self.hangs, self.why_waiting = watcher, hangs, why_waiting
        self._waiting = Waiting()
        self._looked = 0.0

    def __getstate__(self) -> dict[str, object]:
        # Ray pickles a Tuner, and this with it, into the session's folder; a display could not be, and nobody reads it.
        return {"watcher": None, "hangs": None, "why_waiting": None}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """End trials that hang, and say when a sweep waits for nodes; Tune calls this about ten times a second."""
        now = time.monotonic()
        if self.watcher is None or now - self._looked < LOOK:
            return
        self._looked = now
        states = [trial.status for trial in trials]
        if self._waiting.is_due(pending=Trial.PENDING in states, running=Trial.RUNNING in states, now=now):
            if ray_nodes.has_place():
                self._waiting.reset()  # its processes are starting, which is no fault of the nodes
            elif self.why_waiting is not None:
                self.watcher.waiting(self.why_waiting())
        for key in self.hangs.hung(now) if self.hangs is not None else ():
            self._end_hung(key, trials)

    def _end_hung(self, key: str, trials: list[Trial]) -> None:
        """End the process of a trial that hangs; Tune finds it dead, and restarts the trial or gives it up."""
        assert self.hangs is not None
        assert self.watcher is not None
        trial = next((t for t in trials if key_of(t) == key and t.status == Trial.RUNNING), None)
        actor = trial.temporary_state.ray_actor if trial is not None else None
        if actor is not None:
            self.watcher.hung(key, self.hangs.reasons[key])
            # Killed and not asked to stop: a process that hangs answers nobody.
            ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note the start."""
        if self.hangs is not None:
            self.hangs.started(key_of(trial))
        if self.watcher is not None:
            self.watcher.started(key_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, object], **info: object
    ) -> None:
        """Note a round."""
        if self.watcher is not None:
            self.watcher.round(key_of(trial), result)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note a death that is being mended."""
        self._stopped(trial)
        if self.watcher is not None:
            self.watcher.lost(key_of(trial), True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note a death that is not."""
        self._stopped(trial)
        if self.watcher is not None:
            # Ray calls this when no retry is left; until then it calls on_trial_recover.
            self.watcher.lost(key_of(trial), False)
            self.watcher.stopped(key_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note the end."""
        self._stopped(trial)
        if self.watcher is not None:
            self.watcher.stopped(key_of(trial))

    def _stopped(self, trial: Trial) -> None:
        if self.hangs is not None:
            self.hangs.stopped(key_of(trial))


def key_of(trial: Trial) -> str:
    """Return our key of a trial."""
    return str(trial.config[TRIAL_KEY])
