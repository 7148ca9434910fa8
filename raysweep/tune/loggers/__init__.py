"""Where a run can be followed beside our tables: W&B, MLflow, trackio, TensorBoard. One file and one line here add one.

Each works in a process of its own (:mod:`raysweep.tune.loggers.process`), so that none can stop, slow or change a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from raysweep.errors import MissingExtraError
from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.tune.loggers.base import RunLogger

_CLASSES = {"mlflow": "Mlflow", "tensorboard": "TensorBoard", "trackio": "Trackio", "wandb": "Wandb"}
LOGGERS: Registry[type[RunLogger]] = Registry(
    "logger", {name: f"{__name__}.{name}:{c}" for name, c in _CLASSES.items()}
)


def check(names: Iterable[str]) -> None:
    """Return if every logger of *names* is known and can be imported.

    Raises:
        NameUnknownError: one is not known.
        MissingExtraError: the package that one needs is not installed.
    """
    for name in names:
        package = LOGGERS.get(name).package
        # Looked for, not imported: that takes seconds, and happens in the logger's own process.
        if find_spec(package) is None:
            raise MissingExtraError(
                f"--log {name} needs the package {package}, which is not installed",
                hint=f"pip install 'raysweep[{name}]', or pip install {package}",
            )
