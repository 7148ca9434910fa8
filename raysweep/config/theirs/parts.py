"""Names of parts of a model in another program's file, against what the model's layout says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from raysweep.config.theirs.rules import Matrices, Part
from raysweep.jsontypes import Json

if TYPE_CHECKING:
    from raysweep.config.components import ModelFacts

_NUMBERED = re.compile(r"[.\[](\d+)\]?(?=\.)")


def check_last_block(value: Json, facts: ModelFacts) -> None:
    """Do nothing if *value* numbers the model's last block, or its blocks are not known.

    Raises:
        ValueError: it numbers another one.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"must be the number of a block, got {value!r}")
    if facts.blocks and value != facts.blocks - 1:
        raise ValueError(
            f"block {value} is not the last one, {facts.blocks - 1}, from which the loss is always read here; "
            "is the file for another model?"
        )


def check(value: Json, rule: Part, facts: ModelFacts) -> None:
    """Do nothing if *value* names one of the parts of *rule*, or the model's layout is not known.

    Raises:
        ValueError: it names another part.
    """
    wanted = [name for part in rule.parts for name in facts.parts.get(part, ())]
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"must name a part of the model, got {value!r}")
    if not wanted:
        return
    for name in map(str, names):
        bare = name.removesuffix(".weight")
        # PEFT takes the end of a name for the name.
        if not any(bare == full or (isinstance(value, list) and full.endswith(f".{bare}")) for full in wanted):
            ends = rule.else_ and f", which would mean {rule.else_}"
            raise ValueError(f"{name!r} is not {' or '.join(map(repr, wanted))} of this model{ends}")


def matrices(value: Json, rule: Matrices, facts: ModelFacts) -> dict[str, Json]:
    """Return our keys for a list of weight matrices.

    Raises:
        ValueError: the list is empty, too long, or names what is no matrix of an MLP of the model.
    """
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a list of weight matrices, got {value!r}")
    found = [_side(str(name), facts) for name in value]
    if not rule.several:
        if len(found) > 1:
            raise ValueError(f"there can be one matrix, here are {len(found)}")
        return {"layer": found[0][0], "matrix": found[0][1]}
    layers = list(dict.fromkeys(layer for layer, _ in found))
    sides = list(dict.fromkeys(side for _, side in found))
    if {(layer, side) for layer in layers for side in sides} != set(found):
        raise ValueError("every block must have the same matrices here")
    modules: list[Json] = [f"mlp_{side}" for side in sides]
    return {"layers": [*layers], "modules": modules}


def _side(name: str, facts: ModelFacts) -> tuple[int, str]:
    """Return block and side (``in``, ``out``) of the matrix called *name*, ``model.layers[27].mlp.down_proj.weight``."""
    number = _NUMBERED.search(name)
    if number is None:
        raise ValueError(f"{name!r} has no number of a block")
    template = f"{name[: number.start()]}.{{}}{name[number.end() :]}".removesuffix(".weight")
    for side in ("in", "out"):
        if template in facts.parts.get(f"mlp_{side}", ()):
            return int(number[1]), side
    if not facts.parts:
        raise ValueError(f"what {name!r} is cannot be told before the model is here; give its folder as model.path")
    known = ", ".join((*facts.parts["mlp_in"], *facts.parts["mlp_out"]))
    raise ValueError(f"{name!r} is no matrix of an MLP of this model: {known}")
