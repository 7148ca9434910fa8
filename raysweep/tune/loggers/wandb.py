"""Weights & Biases, online or, with ``WANDB_MODE=offline``, into a folder that ``wandb sync`` uploads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.lazy import lazy
from raysweep.tune.loggers.base import RunLogger, Started, State, Values

if TYPE_CHECKING:
    from wandb import Run


class Wandb(RunLogger):
    """One run per trial, the sweep as its group; ``WANDB_PROJECT``, ``WANDB_ENTITY`` and the rest are W&B's own variables."""

    package: ClassVar[str] = "wandb"

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        self._open: dict[str, Run] = {}

    def start(self, trial: Started) -> None:
        """Open the run; its id is the trial's key, so a trial that goes on is the same run."""
        wandb = lazy("wandb")
        self._open[trial.key] = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "raysweep"), group=self.sweep, name=trial.name, id=trial.key, resume="allow",
            config=dict(trial.config), dir=self.folder,
            # Trials run side by side. What this process itself prints and takes says nothing of them.
            reinit="create_new", settings=wandb.Settings(console="off", x_disable_stats=True),
        )  # fmt: skip

    def log(self, key: str, step: int, values: Values) -> None:
        """Send the values."""
        self._open[key].log(dict(values), step=step)

    def finish(self, key: str, state: State, values: Values) -> None:
        """Write the summary and close the run, as failed if the trial did."""
        run = self._open.pop(key)
        run.summary.update({**values, "state": state})
        run.finish(exit_code=int(state in ("failed", "died")))

    def close(self) -> None:
        """Close what is open; W&B shows it as failed until it goes on."""
        for run in self._open.values():
            run.finish(exit_code=1)
