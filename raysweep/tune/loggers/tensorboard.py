"""Event files for TensorBoard, a folder per trial."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raysweep.lazy import lazy
from raysweep.tune.loggers.base import RunLogger, Started, State, Values, flat

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class TensorBoard(RunLogger):
    """Writes ``tensorboard/<trial>-<key>`` below the folder; ``tensorboard --logdir`` of it shows all trials."""

    package: ClassVar[str] = "tensorboardX"

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        self._open: dict[str, tuple[SummaryWriter, Started]] = {}

    def start(self, trial: Started) -> None:
        """Open a new event file; a trial that goes on has several in its folder, which TensorBoard joins."""
        # A label may hold any character, and only the key is unique.
        name = re.sub(r"[^\w.+=,-]+", "_", trial.name)
        where = self.folder / "tensorboard" / f"{name}-{trial.key[:8]}"
        # By default files are named by the second: a trial that goes on at once would replace what it wrote before.
        writer = lazy("tensorboardX").SummaryWriter(str(where), filename_suffix=f".{time.time_ns()}")
        writer.add_text("config", f"```json\n{json.dumps(trial.config, indent=1)}\n```")
        self._open[trial.key] = writer, trial

    def log(self, key: str, step: int, values: Values) -> None:
        """Write a scalar for each value."""
        writer, _ = self._open[key]
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def finish(self, key: str, state: State, values: Values) -> None:
        """Write the trial's line of TensorBoard's table of hyper-parameters."""
        writer, trial = self._open.pop(key)
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in flat(trial.config)}
        # As add_hparams writes them, but into the trial's own file and not beside its curves.
        for summary in lazy("tensorboardX.summary").hparams({**plain, "state": state}, dict(values)):
            writer.file_writer.add_summary(summary)
        writer.close()

    def close(self) -> None:
        """Close the files."""
        for writer, _ in self._open.values():
            writer.close()
