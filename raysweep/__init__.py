"""raysweep: lifelong knowledge-editing experiments as a Ray Tune sweep.

The public names below load on first use, so ``import raysweep`` is instant; a type-checker sees them where they are defined.

An editor on a model, without a file and without Ray:

>>> import raysweep
>>> model = raysweep.load_model("embedded")
>>> prompt = "Relis Megez works as a"
>>> with raysweep.edit(model, "ft", prompt=prompt, target="lawyer") as patched:
...     [one.after for one in patched.compare(prompt, length=1)]
[' lawyer']

A sweep:

>>> planned = raysweep.plan("smoke")
>>> len(planned.trials) > 0
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from warnings import warn

if TYPE_CHECKING:
    from raysweep.config.schema import TrialSpec
    from raysweep.config.sweep import load_search_space, parse_search_space
    from raysweep.editors.base import BaseEditor as Editor
    from raysweep.library.data import open_dataset
    from raysweep.library.models import adopt_model, load_model
    from raysweep.library.session import EditSession, edit
    from raysweep.library.sweeps import plan, run_sweep
    from raysweep.records import EditRecord, Probe
    from raysweep.reports.opened import open_sweep
    from raysweep.results.tables import open_results
    from raysweep.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "EditRecord",
    "EditSession",
    "Editor",
    "Probe",
    "TrialSpec",
    "Workspace",
    "__version__",
    "adopt_model",
    "edit",
    "load_model",
    "load_search_space",
    "open_dataset",
    "open_results",
    "open_sweep",
    "parse_search_space",
    "plan",
    "run_sweep",
]

_HOMES = {
    "EditRecord": "raysweep.records",
    "EditSession": "raysweep.library.session",
    "Editor": "raysweep.editors.base:BaseEditor",
    "Probe": "raysweep.records",
    "TrialSpec": "raysweep.config.schema",
    "Workspace": "raysweep.workspace",
    "adopt_model": "raysweep.library.models",
    "edit": "raysweep.library.session",
    "load_model": "raysweep.library.models",
    "load_search_space": "raysweep.config.sweep",
    "open_dataset": "raysweep.library.data",
    "open_results": "raysweep.results.tables",
    "open_sweep": "raysweep.reports.opened",
    "parse_search_space": "raysweep.config.sweep",
    "plan": "raysweep.library.sweeps",
    "run_sweep": "raysweep.library.sweeps",
}
_RENAMED = {"read_sweep": "load_search_space"}


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
