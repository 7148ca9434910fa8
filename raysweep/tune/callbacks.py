"""Ray's news of a sweep, handed on to whoever watches. Importing this imports Ray."""

from __future__ import annotations

from ray.tune import Callback
from ray.tune.experiment import Trial

from raysweep.results.ray_logs import TRIAL_KEY
from raysweep.tune.watcher import Watcher


class RayCallback(Callback):  # type: ignore[misc]
    """Tells a :class:`~raysweep.tune.watcher.Watcher` what Ray reports; pickled as nothing by Ray."""

    def __init__(self, watcher: Watcher | None = None) -> None:
        self.watcher = watcher

    def __getstate__(self) -> dict[str, object]:
        # Ray pickles a Tuner, and this with it, into the session's folder; a display could not be, and nobody reads it.
        return {"watcher": None}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note the start."""
        if self.watcher is not None:
            self.watcher.started(_key(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, object], **info: object
    ) -> None:
        """Note a round."""
        if self.watcher is not None:
            self.watcher.round(_key(trial), result)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note a death that is being mended."""
        if self.watcher is not None:
            self.watcher.lost(_key(trial), True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note a death that is not."""
        if self.watcher is not None:
            # Ray calls this when no retry is left; until then it calls on_trial_recover.
            self.watcher.lost(_key(trial), False)
            self.watcher.stopped(_key(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note the end."""
        if self.watcher is not None:
            self.watcher.stopped(_key(trial))


def _key(trial: Trial) -> str:
    return str(trial.config[TRIAL_KEY])
