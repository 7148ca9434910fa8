"""The identity of specs and artifacts: canonical JSON, then BLAKE2b."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

ADDED = {"added": True}
"""Metadata of a dataclass field that was added after values of the class had been hashed; it has a default."""

UNHASHED = {"hashed": False}
"""Metadata of a dataclass field that is in no hash of its class; whoever uses it covers it otherwise."""


def canonical(value: object) -> object:
    """Return *value* as plain JSON data with one spelling per value.

    Mappings are sorted by key; tuples and lists are the same; ``1`` and ``1.0`` stay different.

    Raises:
        TypeError: a value has no canonical form (sets, objects).
        ValueError: a float is not finite.
    """
    # Enum members of str or int are plain values too, by their isinstance; they are spelled by their value below.
    if value is None or (isinstance(value, bool | str | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, float):
        if not math.isfinite(value):
            # JSON has no spelling of NaN and infinity that all readers share.
            raise ValueError(f"no canonical form for {value!r}")
        return value
    if isinstance(value, Mapping):
        # Sorted, so that the order in which keys were written moves no hash.
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if hasattr(value, "model_dump"):
        return canonical(value.model_dump(mode="python"))
    if is_dataclass(value) and not isinstance(value, type):
        # A field that came later stands in no hash at its default, which is what earlier values had.
        present = (f for f in fields(value) if f.metadata != ADDED or getattr(value, f.name) != f.default)
        return {f.name: canonical(getattr(value, f.name)) for f in present if f.metadata != UNHASHED}
    raise TypeError(f"no canonical form for {type(value).__name__}: {value!r}")


def canonical_json(value: object) -> str:
    """Return *value* as canonical JSON text.

    >>> canonical_json({"b": (1, 2.0), "a": None})
    '{"a":null,"b":[1,2.0]}'
    """
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: object, *, length: int = 16) -> str:
    """Return the first *length* hex digits of the BLAKE2b hash of the canonical form of *value*."""
    return hashlib.blake2b(canonical_json(value).encode()).hexdigest()[:length]


def file_digest(path: Path, *, length: int = 16) -> str:
    """Return the first *length* hex digits of the BLAKE2b hash of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()[:length]


def text_digest(text: str, *, length: int = 16) -> str:
    """Return the first *length* hex digits of the BLAKE2b hash of *text*."""
    return hashlib.blake2b(text.encode()).hexdigest()[:length]
