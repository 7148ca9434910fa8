"""Ray's news of trials, handed to the loggers. Importing this imports Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.tune import Callback
from ray.tune.experiment import Trial

from raysweep.tune.callbacks import key_of
from raysweep.tune.loggers.base import Message, State
from raysweep.tune.loggers.process import LoggerProcess


class LoggerCallback(Callback):  # type: ignore[misc]
    """Tells loggers of each trial's configuration, rounds and end; pickled as nothing by Ray.

    Args:
        processes: the loggers.
        labels: what the tables call each trial, by key.
    """

    def __init__(self, processes: Sequence[LoggerProcess], labels: Mapping[str, str]) -> None:
        self.processes, self.labels = processes, labels
        self._started: set[tuple[str, str]] = set()  # logger and trial

    def __getstate__(self) -> dict[str, object]:
        # Ray pickles a Tuner, and this with it; processes cannot be, and nobody reads it.
        return {"processes": (), "labels": {}}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, object], **info: object
    ) -> None:
        """Pass a round on."""
        step = int(str(result["step"]))
        self._tell(trial, {"do": "log", "key": key_of(trial), "step": step, "values": measured(result)})

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Pass an end on; one by failure or by a rule is among what the last round said."""
        last: dict[str, object] = trial.last_result or {}
        self._finish(trial, "failed" if last.get("failure") else "stopped" if last.get("stopped") else "done")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Pass on that the trial's process died for good."""
        self._finish(trial, "died")

    def _finish(self, trial: Trial, state: State) -> None:
        key = key_of(trial)
        self._tell(trial, {"do": "finish", "key": key, "state": state, "values": measured(trial.last_result or {})})
        self._started -= {(process.name, key) for process in self.processes}

    def _tell(self, trial: Trial, message: Message) -> None:
        """Hand *message* to every logger, after the trial's configuration where it does not have that yet."""
        key = key_of(trial)
        # Not before the first round: of a trial that waits there is nothing to see. One that is dropped is tried again.
        start: Message = {"do": "start", "key": key, "name": self.labels.get(key, key), "config": dict(trial.config)}
        for process in self.processes:
            known = (process.name, key)
            if known in self._started or process.put(start):
                self._started.add(known)
                process.put(message)


def measured(result: Mapping[str, object]) -> dict[str, float]:
    """Return what was measured of what Ray was told, and the seconds that the trial took.

    >>> measured({"retained/rel": 0.5, "step": 3, "pid": 7, "time_total_s": 1.5, "config": {}})
    {'retained/rel': 0.5, 'seconds': 1.5}
    """
    numbers = {name: float(v) for name, v in result.items() if isinstance(v, int | float)}
    found = {name: v for name, v in numbers.items() if "/" in name or name == "non_finite_step"}
    return found | ({"seconds": numbers["time_total_s"]} if "time_total_s" in numbers else {})
