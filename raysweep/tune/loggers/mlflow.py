"""MLflow: a server (``MLFLOW_TRACKING_URI``), or a database file beside the other logs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import ClassVar

from raysweep.lazy import lazy
from raysweep.tune.loggers.base import RunLogger, Started, State, Values, flat

BATCH = 100  # parameters of one request, MLflow's own limit
LONGEST = 500  # characters of a parameter, the least of the limits that its versions have
TAG = "raysweep.key"
STATUS = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "died": "FAILED"}


class Mlflow(RunLogger):
    """One run per trial in the experiment that is called as the sweep (or ``MLFLOW_EXPERIMENT_NAME``)."""

    package: ClassVar[str] = "mlflow"

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._client = lazy("mlflow").MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", sweep)
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._open: dict[str, str] = {}  # run id by trial key

    def start(self, trial: Started) -> None:
        """Open the run, or again the one that has the trial's key as its tag."""
        before = self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{trial.key}'", max_results=1)
        if before:
            run = before[0].info.run_id
            self._client.set_terminated(run, "RUNNING")
        else:
            tags = {TAG: trial.key, "raysweep.sweep": self.sweep}
            run = self._client.create_run(self._experiment, tags=tags, run_name=trial.name).info.run_id
            plain = ((name, v if isinstance(v, str) else json.dumps(v)) for name, v in flat(trial.config))
            param = lazy("mlflow.entities").Param
            params = [param(name, text[:LONGEST]) for name, text in plain]
            for begin in range(0, len(params), BATCH):
                self._client.log_batch(run, params=params[begin : begin + BATCH])
        self._open[trial.key] = run

    def log(self, key: str, step: int, values: Values) -> None:
        """Send the values in one request."""
        now, metric = int(time.time() * 1000), lazy("mlflow.entities").Metric
        self._client.log_batch(self._open[key], [metric(name, value, now, step) for name, value in values.items()])

    def finish(self, key: str, state: State, values: Values) -> None:
        """Close the run; its last values are its summary already."""
        run = self._open.pop(key)
        self._client.set_tag(run, "raysweep.state", state)
        self._client.set_terminated(run, STATUS[state])

    def close(self) -> None:
        """Close what is open as killed."""
        for run in self._open.values():
            self._client.set_terminated(run, "KILLED")
