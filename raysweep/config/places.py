"""Where in a file a value was written, so that every complaint can point at it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or an argument of the command line, with 1-based line and column; 0 = unknown."""

    file: str = ""
    line: int = 0
    column: int = 0


# Compared by identity: trees of dicts have no hash, and equal texts of two files are two sources.
@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tree of plain values that remembers where each of its keys and values was written.

    Attributes:
        file: name for messages.
        text: the text as written.
        tree: mappings, lists and scalars.
        keys: where each key of a mapping stands.
        values: where each value starts.
        overrides: ``key=value`` texts applied on top of the file.
        notes: what they replaced, for the reader of a plan.
    """

    file: str = ""
    text: str = ""
    tree: Any = None
    keys: Mapping[KeyPath, Place] = field(default_factory=dict)
    values: Mapping[KeyPath, Place] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def value(self, path: KeyPath) -> Place:
        """Return where the value at *path*, or else its nearest ancestor, was written."""
        return self._nearest(self.values, path)

    def key(self, path: KeyPath) -> Place:
        """Return where the key at *path* was written; without one, where its value or nearest ancestor was."""
        return self.keys[path] if path in self.keys else self.value(path)

    def replaced(self, path: KeyPath, tree: Any, place: Place, override: str) -> Source:
        """Return the source with another whole *tree*, in which everything from *path* on was written at *place*.

        What it lies in was written there too where there was nothing yet. *override* is kept as one of ``overrides``, unless it is
        empty.
        """
        # Places below *path* are of what was replaced; kept, they would blame lines that no longer count.
        keep = len(path)
        keys = {p: where for p, where in self.keys.items() if p[:keep] != path}
        values = {p: where for p, where in self.values.items() if p[:keep] != path}
        made = {path[:end]: place for end in range(1, keep + 1) if end == keep or not _has(self.tree, path[:end])}
        return replace(
            self,
            tree=tree,
            keys={**made, **keys},
            values={**made, **values},
            overrides=(*self.overrides, *([override] if override else [])),
        )

    def also(self, path: KeyPath, other: KeyPath) -> Source:
        """Return the source with what was written at *path* to be found at *other* as well."""
        keys, values = (
            {(*other, *p[len(path) :]): where for p, where in table.items() if p[: len(path)] == path}
            for table in (self.keys, self.values)
        )
        return replace(self, keys={**self.keys, **keys}, values={**self.values, **values})

    def _nearest(self, table: Mapping[KeyPath, Place], path: KeyPath) -> Place:
        for end in range(len(path), -1, -1):
            if path[:end] in table:
                return table[path[:end]]
        return Place(self.file)


def _has(tree: Any, path: KeyPath) -> bool:
    """Tell whether there is anything at *path* of *tree*."""
    for part in path:
        known: Collection[Any] = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        if part not in known:
            return False
        tree = tree[part]
    return True
