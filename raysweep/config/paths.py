"""Paths that a search space names: which file is meant, where there might be two or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from raysweep.config.overrides import FILE_KEYS
from raysweep.config.places import KeyPath, Source
from raysweep.config.problems import problem
from raysweep.errors import DataError, Problem
from raysweep.jsontypes import Json
from raysweep.workspace import Workspace


def relative_paths(tree: Json, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield place and text of each relative path in *tree*; those from the command line are absolute already."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key in FILE_KEYS and isinstance(value, str):
                if value not in ("", "words") and "://" not in value and not Path(value).expanduser().is_absolute():
                    yield (*path, key), value
            else:
                yield from relative_paths(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from relative_paths(value, (*path, i))


def missing_paths(source: Source, workspace: Workspace) -> Iterator[Problem]:
    """Yield a problem for each relative path with nothing at it, with the places that were tried."""
    for path, text in relative_paths(source.tree):
        if workspace.resolve(text).exists() or workspace.find(text) is not None:
            continue
        tried = " and ".join(dict.fromkeys((str(workspace.resolve(text)), str(workspace.share / text))))
        here = Path.cwd() / text
        there = f"; the current folder has one: write {here}" if here.exists() else ""
        hint = f"a path in a file counts from the workspace's root (--root){there}"
        yield problem(source.value(path), f"'{text}' is neither at {tried}", hint, DataError.code)


def ambiguous_paths(source: Source, workspace: Workspace) -> Iterator[str]:
    """Yield a note for each relative path with something at it in the root and in the current folder, which are two places."""
    for path, text in relative_paths(source.tree):
        used, here = workspace.resolve(text), (Path.cwd() / text).resolve()
        if used != here and used.exists() and here.exists():
            at = source.value(path)
            yield f"{at.file}:{at.line}: '{text}' is {used} (a path in a file counts from the root), not {here}"
