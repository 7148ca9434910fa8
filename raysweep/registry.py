"""Names → objects, through explicit lazy tables: ``"rome"`` → ``"raysweep.editors.rome:Rome"``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from raysweep.errors import NameUnknownError, PluginError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """One table per kind of component.

    Promises
        1. Built-in entries are explicit data; nothing registers itself by being imported.
        2. Looking at names imports nothing; :meth:`get` imports one module.
        3. A third party adds entries with the entry-point group :attr:`group`; a collision is an error.
        4. An entry of somebody's package that collides or cannot be imported is an error for whoever asks for it, for nobody else.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)
        self._packages: dict[str, str] = {}  # the package of each entry that is not built in
        self._clashes: dict[str, str] = {}  # of a name that is defined twice, by what
        self._scanned = False

    @property
    def group(self) -> str:
        """The entry-point group of this kind of component.

        >>> Registry("study", {}).group
        'raysweep.studies'
        """
        return f"raysweep.{self.kind.removesuffix('y')}ies" if self.kind.endswith("y") else f"raysweep.{self.kind}s"

    def _entries(self) -> dict[str, str]:
        if not self._scanned:
            for point in entry_points(group=self.group):
                self.add(point.name, point.value, package=_package(point))
            self._scanned = True
        return self._table

    def add(self, name: str, origin: str, *, package: str = "") -> None:
        """Add what somebody's *package* has at *origin* (``module:attribute``) under *name*."""
        known = self._table.setdefault(name, origin)
        # Two packages that define one name would make the result depend on which was installed first.
        if known != origin:
            first = f"{known} ({self._packages[name]})" if self._packages.get(name) else known
            self._clashes[name] = f"{first} and {origin}{f' ({package})' if package else ''}"
        elif package:
            self._packages.setdefault(name, package)

    def names(self) -> tuple[str, ...]:
        """Return every known name, sorted."""
        return tuple(sorted(self._entries()))

    def origin(self, name: str) -> str:
        """Return where *name* is defined, as ``module:attribute``."""
        self.check(name)
        return self._entries()[name]

    def check(self, name: str) -> None:
        """Raise :class:`NameUnknownError` with the nearest right names unless *name* is known, and defined once."""
        if name not in self._entries():
            raise NameUnknownError(f"unknown {self.kind} '{name}'", hint=nearest(name, self._entries()))
        if name in self._clashes:
            raise PluginError(
                f"{self.kind} '{name}' is defined twice: {self._clashes[name]}", hint="uninstall or rename one of them"
            )

    def get(self, name: str) -> T:
        """Import and return the object called *name*.

        Raises:
            NameUnknownError: there is none.
            PluginError: it is in somebody's package, and cannot be imported.
        """
        origin = self.origin(name)
        module, _, attribute = origin.partition(":")
        try:
            component: T = getattr(importlib.import_module(module), attribute)
        # Whatever a stranger's module raises while it is imported; an error in one of ours is ours to see.
        except Exception as error:
            package = self._packages.get(name)
            if package is None:
                raise
            raise PluginError(
                f"{self.kind} '{name}' ({origin}) of the package {package} cannot be loaded: {type(error).__name__}: {error}",
                hint=f"mend or update that package, or remove it: pip uninstall {package.partition(' ')[0]}",
            ) from error
        return component

    def loadable(self) -> dict[str, T]:
        """Return every object of the table by name, but for those that :meth:`faults` names."""
        faults = self.faults()
        return {name: self.get(name) for name in self.names() if name not in faults}

    def packages(self) -> dict[str, str]:
        """Return the names that are not built in, each with the name and version of the package that declares it."""
        self._entries()
        return dict(sorted(self._packages.items()))

    def modules(self) -> dict[str, str]:
        """Return the outermost modules of other people's entries, each with the package that declares them."""
        # What is not built in is named by its package; the table has where it lies.
        return {self._table[name].partition(":")[0].partition(".")[0]: of for name, of in self.packages().items()}

    def faults(self) -> dict[str, PluginError]:
        """Return why entries of other people's packages cannot be used, by name; importing those is how it finds out."""
        found = {}
        for name in sorted({*self.packages(), *self._clashes}):
            try:
                self.get(name)
            except PluginError as error:
                found[name] = error
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def _package(point: EntryPoint) -> str:
    """Return the name and version of the package that declares *point*."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "(unknown)"
