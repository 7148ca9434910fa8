"""raysweep: lifelong knowledge-editing experiments as a Ray Tune sweep.

The public names below load on first use, so ``import raysweep`` is instant; a type-checker sees them where they are defined.

>>> import raysweep
>>> workspace = raysweep.Workspace.here()
>>> planned = raysweep.plan(raysweep.load_search_space("smoke", workspace), workspace)
>>> len(planned.trials) > 0
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from warnings import warn

if TYPE_CHECKING:
    from raysweep.config.plan import plan
    from raysweep.config.schema import TrialSpec
    from raysweep.config.sweep import load_search_space, parse_search_space
    from raysweep.data import open_dataset
    from raysweep.models.sources.load import load as load_model
    from raysweep.records import EditRecord, Probe
    from raysweep.results.tables import open_results
    from raysweep.tune.launch import run_sweep
    from raysweep.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "EditRecord",
    "Probe",
    "TrialSpec",
    "Workspace",
    "__version__",
    "load_model",
    "load_search_space",
    "open_dataset",
    "open_results",
    "parse_search_space",
    "plan",
    "run_sweep",
]

_HOMES = {
    "EditRecord": "raysweep.records",
    "Probe": "raysweep.records",
    "TrialSpec": "raysweep.config.schema",
    "Workspace": "raysweep.workspace",
    "load_model": "raysweep.models.sources.load:load",
    "load_search_space": "raysweep.config.sweep",
    "open_dataset": "raysweep.data",
    "open_results": "raysweep.results.tables",
    "parse_search_space": "raysweep.config.sweep",
    "plan": "raysweep.config.plan",
    "run_sweep": "raysweep.tune.launch",
}
_RENAMED = {"read_sweep": "load_search_space", "open_sweep": "open_results"}


def __dir__() -> list[str]:
    return sorted(__all__)


# A type-checker must not see this function: with it, every name that does not exist would be an object.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _RENAMED:
            warn(f"raysweep.{name} is now raysweep.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
            name = _RENAMED[name]
        if name not in _HOMES:
            raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(import_module(module), attribute or name)
