"""What JSON text and a YAML file can say, as types: null, true and false, numbers, text, lists and mappings of these.

A search space, a hyper-parameter file, ``trial.json`` and the configuration of a component "as plain data" are all of this kind.
The reader of YAML (:mod:`raysweep.config.load`) lets no other kind through: its keys are text, and a date is text too.

``Json`` is what a reader returns and what is taken apart with ``isinstance``, which narrows it to ``dict[str, Json]``,
``list[Json]`` or one of the scalars. ``JsonObject`` is a whole mapping that is made or changed here; what only reads one takes a
``Mapping[str, Json]``, which any ``JsonObject`` is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Scalar: TypeAlias = bool | int | float | str | None
"""A value without parts."""
Json: TypeAlias = "Scalar | list[Json] | dict[str, Json]"
"""Any value; recursive, so a type checker follows it down."""
JsonObject: TypeAlias = dict[str, Json]
"""A mapping of text to values: what most files hold."""


def mapping_of(value: object) -> Mapping[str, Json]:
    """Return *value* if it is a mapping, else an empty one: for trees in which somebody may have written anything."""
    return value if isinstance(value, Mapping) else {}


def items_of(value: Json) -> list[tuple[str, Json]]:
    """Return the items of *value*, as they are now, so that it may be changed while they are looked at."""
    return list(mapping_of(value).items())
