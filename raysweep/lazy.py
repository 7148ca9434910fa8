"""Modules that load on first use, so that listing and planning never import torch."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """Stand for a module; import it at the first attribute access."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"LazyModule({self._name!r})"


def lazy(name: str) -> Any:
    """Return a stand-in for module *name*; nothing is imported yet.

    >>> lazy("math").floor(1.5)
    1
    """
    return LazyModule(name)
