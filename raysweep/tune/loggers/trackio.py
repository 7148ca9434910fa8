"""trackio: a database file in its own folder (``TRACKIO_DIR``), which ``trackio show`` draws."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.lazy import lazy
from raysweep.tune.loggers.base import RunLogger, Started, State, Values

if TYPE_CHECKING:
    from trackio import Run


class Trackio(RunLogger):
    """One run per trial, the sweep as its group, in the project ``TRACKIO_PROJECT`` (``raysweep``)."""

    package: ClassVar[str] = "trackio"

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        self._project = os.environ.get("TRACKIO_PROJECT", "raysweep")
        self._open: dict[str, Run] = {}

    def start(self, trial: Started) -> None:
        """Open the run, or again the one of that name."""
        # By name and key: names alone may belong to other trials of an earlier plan.
        self._open[trial.key] = lazy("trackio").init(
            self._project, name=f"{trial.name} {trial.key[:8]}", group=self.sweep, config=dict(trial.config), resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, key: str, step: int, values: Values) -> None:
        """Store the values."""
        self._open[key].log(dict(values), step=step)

    def finish(self, key: str, state: State, values: Values) -> None:
        """Close the run; its last values are its summary already."""
        self._open.pop(key).finish()

    def close(self) -> None:
        """Close what is open."""
        for run in self._open.values():
            run.finish()
