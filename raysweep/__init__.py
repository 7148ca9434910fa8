"""raysweep: lifelong knowledge-editing experiments as a Ray Tune sweep.

The public names below load on first use, so ``import raysweep`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "EditRecord": "raysweep.records",
    "Probe": "raysweep.records",
    "TrialSpec": "raysweep.config.schema",
    "Workspace": "raysweep.workspace",
    "load_model": "raysweep.models.sources.load:load",
    "open_dataset": "raysweep.data",
    "open_sweep": "raysweep.results.tables",
    "plan": "raysweep.config.plan",
    "read_sweep": "raysweep.config.sweep:open_sweep",
    "run_sweep": "raysweep.tune.launch",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute or name)
