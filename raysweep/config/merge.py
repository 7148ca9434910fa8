"""Layers of keys put on top of each other, each value remembering where it was written."""

from __future__ import annotations

from collections.abc import Mapping

from raysweep.config.places import KeyPath, Place, Source

KEYS_OF_ONE_NAME: Mapping[str, frozenset[str]] = {
    "model": frozenset({"path", "revision", "bos", "hparams", "trust_remote_code"}),
    "data": frozenset({"path"}),
}
"""Keys that say something about one model or dataset only; a layer with another name drops those below it."""


class MergedTree:
    """A tree made of layers; a later layer wins, mapping by mapping.

    ``at`` is where the whole is spoken of when no layer wrote the key in question.
    """

    def __init__(self, at: Place, *, section: str = "") -> None:
        self.tree: dict[str, object] = {}
        self.at = at
        self._tied = KEYS_OF_ONE_NAME.get(section, frozenset())
        self._origin: dict[KeyPath, tuple[Source, KeyPath]] = {}

    def put(self, tree: Mapping[str, object], source: Source, prefix: KeyPath) -> None:
        """Lay *tree*, which stands at *prefix* of *source*, on top."""
        # Another model or dataset: what lower layers said of theirs (a path, a revision) is not about this one.
        if "name" in tree and tree["name"] != self.tree.get("name", tree["name"]):
            self.tree = {k: v for k, v in self.tree.items() if k not in self._tied}
        self._put(self.tree, tree, (), (source, prefix))

    def put_at(self, path: tuple[str, ...], value: object, source: Source, written: KeyPath) -> None:
        """Set the one value at *path*, which stands at *written* of *source*."""
        tree = {path[-1]: value}
        for part in reversed(path[:-1]):
            tree = {part: tree}
        if path == ("name",):
            self.put(tree, source, written)
        else:
            self._put(self.tree, tree, (), (source, written))
        self._origin[path] = (source, written)

    def place(self, path: KeyPath, key: bool = False) -> Place:
        """Return where the value (or the *key*) at *path* was written."""
        # The nearest part that was written somewhere; a default has no place of its own.
        for end in range(len(path), 0, -1):
            if path[:end] in self._origin:
                source, written = self._origin[path[:end]]
                full = (*written, *path[end:])
                return source.key(full) if key else source.value(full)
        return self.at

    def _put(
        self, into: dict[str, object], tree: Mapping[str, object], path: KeyPath, where: tuple[Source, KeyPath]
    ) -> None:
        source, prefix = where
        for key, value in tree.items():
            here, written = (*path, key), (*prefix, key)
            # Copied before it is changed: the mapping below is the file's own tree.
            before = into.get(key)
            if isinstance(value, Mapping) and isinstance(before, Mapping):
                below = dict(before)
                self._put(below, value, here, (source, written))
                into[key] = below
            else:
                into[key] = value
                self._origin[here] = (source, written)
