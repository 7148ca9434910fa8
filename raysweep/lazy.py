"""What makes a command quick: modules that load on first use, so that listing and planning never import torch."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the garbage collector in a block that makes many objects, nearly all of which stay.

    It would look at all of them again and again, a seventh of the seconds of ``raysweep show``.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
