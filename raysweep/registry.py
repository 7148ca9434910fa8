"""Names → objects, through explicit lazy tables: ``"rome"`` → ``"raysweep.editors.rome:Rome"``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from raysweep.errors import NameUnknownError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """One table per kind of component.

    Promises
        1. Built-in entries are explicit data; nothing registers itself by being imported.
        2. Looking at names imports nothing; :meth:`get` imports one module.
        3. A third party adds entries with the entry-point group ``raysweep.<kind>s``; a collision is an error.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)
        self._scanned = False

    def _entries(self) -> dict[str, str]:
        if not self._scanned:
            for point in entry_points(group=f"raysweep.{self.kind}s"):
                # Two packages that define one name would make the result depend on which was installed first.
                if point.name in self._table and self._table[point.name] != point.value:
                    raise NameUnknownError(
                        f"{self.kind} '{point.name}' is defined twice: {self._table[point.name]} and {point.value}",
                        hint="uninstall or rename one of them",
                    )
                self._table[point.name] = point.value
            self._scanned = True
        return self._table

    def names(self) -> tuple[str, ...]:
        """Return every known name, sorted."""
        return tuple(sorted(self._entries()))

    def origin(self, name: str) -> str:
        """Return where *name* is defined, as ``module:attribute``."""
        self.check(name)
        return self._entries()[name]

    def check(self, name: str) -> None:
        """Raise :class:`NameUnknownError` with the nearest right names unless *name* is known."""
        if name not in self._entries():
            raise NameUnknownError(f"unknown {self.kind} '{name}'", hint=nearest(name, self._entries()))

    def get(self, name: str) -> T:
        """Import and return the object called *name*."""
        module, _, attribute = self.origin(name).partition(":")
        component: T = getattr(importlib.import_module(module), attribute)
        return component

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
