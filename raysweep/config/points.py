"""The points of an arm: which keys it sweeps, over which values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from raysweep.config.components import Components
from raysweep.config.lookups import Point
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec
from raysweep.config.space import Domain, Grid
from raysweep.config.sweep_schema import ArmSpec, SweepSpec
from raysweep.registry import Registry
from raysweep.seeds import derive

FILLED_IN = ("digest", "tokenizer_digest")  # by the plan itself
_SECTIONS: Mapping[str, type[BaseModel]] = {"model": ModelSpec, "data": DataSpec, "protocol": ProtocolSpec}


def domains(sweep: SweepSpec, arm: ArmSpec, components: Components | None = None) -> Mapping[str, Domain]:
    """Return the domains that apply to *arm* by dotted key; its own hide the sweep's.

    This is what an adaptive search hands to Ray instead of the points drawn here.
    """
    components = components or Components.installed()
    shared = {k: d for k, d in sweep.space.items() if applies(arm, k, components)}
    return {**shared, **arm.space}


def points(sweep: SweepSpec, arm: ArmSpec, components: Components | None = None) -> Iterator[Point]:
    """Yield the points of *arm*: its draws, crossed with its grids.

    Each key has its own stream, from ``search.seed``, the arm's name and the key, so that adding a key or an arm
    moves no other draw. An arm without a drawn domain is not repeated.
    """
    by_key = domains(sweep, arm, components)
    # Grids are crossed with each other and with every draw.
    grids = {k: d.values for k, d in by_key.items() if isinstance(d, Grid)}
    drawn = {k: d for k, d in by_key.items() if not isinstance(d, Grid)}
    streams = {k: random.Random(derive(sweep.search.seed, "draw", arm.name, k)) for k in drawn}
    for _ in range(sweep.search.samples if drawn else 1):
        draw = {k: d.draw(streams[k]) for k, d in drawn.items()}
        for combination in itertools.product(*grids.values()):
            yield {**draw, **dict(zip(grids, combination, strict=True))}


def count_points(sweep: SweepSpec, arm: ArmSpec, components: Components | None = None) -> int:
    """Return how many points :func:`points` yields, without making one."""
    every_domain = domains(sweep, arm, components).values()
    draws = 1 if all(isinstance(d, Grid) for d in every_domain) else sweep.search.samples
    return draws * math.prod(len(d.values) for d in every_domain if isinstance(d, Grid))


def swept_keys(arm: ArmSpec, components: Components) -> tuple[str, ...]:
    """Return every key that *arm* could sweep."""
    keys = ["seed", "threads"]
    keys += [f"{s}.{f}" for s, spec in _SECTIONS.items() for f in spec.model_fields if f not in FILLED_IN]
    keys += [f"editor.{f}" for f in _fields(components.editors, arm.editor.name)]
    return (*keys, *(f"wrap.{w.name}.{f}" for w in arm.editor.wrap for f in _fields(components.wrappers, w.name)))


def _fields(table: Registry[Any], name: str) -> tuple[str, ...]:
    """Return the configuration keys of one component; none if its name is wrong, which is reported elsewhere."""
    if name not in table:
        return ()
    config: type[BaseModel] = table.get(name).config_type
    return tuple(config.model_fields)


def applies(arm: ArmSpec, key: str, components: Components) -> bool:
    """Tell whether *arm* has the thing that *key* sweeps (``wrap.simie.a.b`` is judged by ``wrap.simie.a``)."""
    head, _, rest = key.partition(".")
    depth = {"wrap": 3, "editor": 2}.get(head, 2 if rest else 1)
    # The unknown editor was noted; which keys it has cannot be told.
    if head == "editor" and arm.editor.name not in components.editors:
        return True
    return ".".join(key.split(".")[:depth]) in swept_keys(arm, components)
