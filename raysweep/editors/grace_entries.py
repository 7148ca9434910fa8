"""The codebook of GRACE and its upkeep: where an edit's entry goes, and what becomes of its neighbours (docs/methods/grace.md).

Shape legend: ``n`` entries; ``κ [n, d_in]``, ``ν [n, d_out]``, ``ε [n]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

from raysweep.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.models.modules import codebook
else:
    torch, codebook = lazy("torch"), lazy("raysweep.models.modules.codebook")

# the older of two neighbours gives way by this much more than half their distance
_SHRINK = 1e-5
# relative distance below which two queries are the same key but for rounding
_SAME_KEY = 1e-4


class Rules(Protocol):
    """What of GRACE's hyper-parameters the upkeep goes by (``GraceConfig`` says what each is)."""

    @property
    def radius(self) -> float:
        """Of a new key."""

    @property
    def expand(self) -> Literal["coverage", "moving_average"]:
        """What an edit with a neighbour's own target does to it."""

    @property
    def ref(self) -> bool:
        """Whether to go by the published comparison of targets."""


class GraceState(TypedDict):
    """The codebook.

    Attributes:
        keys: ``κ [n, d_in]``, fp32.
        values: ``ν [n, d_out]``, fp32.
        radii: ``ε [n]``, fp32.
        labels: per entry the target's ids.
        masked: per entry the number of prompt tokens before them.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    labels: list[list[int]]
    masked: list[int]


EVENTS = ("added", "split", "expanded", "reused", "taken_over")
# those after which the value of an entry that there was is trained on
TRAINED_ON = ("expanded", "reused")


def place(
    state: GraceState, query: Tensor, value: Tensor, target: tuple[list[int], int], config: Rules
) -> tuple[GraceState, int, str]:
    """Find or make the entry that *query* is written to (Hartvigsen et al. 2023, the upkeep of the codebook).

    With the nearest key at distance ``d`` and ``ε`` its radius: beyond ``ε_init + ε`` a new entry; else with the same target ``ε``
    grows to ``d``; else both get half the distance.

    Args:
        state: the codebook (not modified).
        query: ``[d_in]``.
        value: ``[d_out]`` start of a new entry's value.
        target: ids of the target and number of prompt tokens before them.
        config: rules and the radius of a new entry.

    Returns:
        The new codebook, the entry's index, and what happened, one of ``EVENTS``.
    """
    labels, masked = target
    new: GraceState = {
        "keys": state["keys"].clone(),
        "values": state["values"].clone(),
        "radii": state["radii"].clone(),
        "labels": [*state["labels"]],
        "masked": [*state["masked"]],
    }
    radii = new["radii"]
    if not len(radii):
        return _append(new, query, value, target, config.radius), 0, "added"
    nearest_distance, nearest = (t[0] for t in codebook.distances(query[None], new["keys"]).min(1))
    i, distance = int(nearest), float(nearest_distance)
    # Two queries of one prompt differ by rounding only; they must not split the space between them.
    known = not config.ref and distance <= _SAME_KEY * float(query.norm())
    # Balls of the nearest entry and of a new one would not touch: no conflict.
    if distance > config.radius + float(radii[i]) and not known:
        return _append(new, query, value, target, config.radius), len(radii), "added"
    if _same_target(state, i, target, ref=config.ref):
        if distance > radii[i]:
            radii[i] = distance
            # Half-way, as published; the radius is not measured from the moved key.
            if config.expand == "moving_average":
                new["keys"][i] = (new["keys"][i] + query) / 2
            return new, i, "expanded"
        return new, i, "reused"
    # An edit of the same prompt with another target: the newer one wins.
    if known:
        new["values"][i] = value
        new["labels"][i], new["masked"][i] = list(labels), masked
        radii[i] = max(float(radii[i]), distance)
        return new, i, "taken_over"
    # never below 0
    radii[i] = distance / 2 - (_SHRINK if config.ref else min(_SHRINK, distance / 4))
    return _append(new, query, value, target, distance / 2), len(radii), "split"


def _append(book: GraceState, query: Tensor, value: Tensor, target: tuple[list[int], int], radius: float) -> GraceState:
    """Return *book* with one more entry."""
    return {
        "keys": torch.cat([book["keys"], query[None]]),
        "values": torch.cat([book["values"], value[None]]),
        "radii": torch.cat([book["radii"], book["radii"].new_tensor([radius])]),
        "labels": [*book["labels"], list(target[0])],
        "masked": [*book["masked"], target[1]],
    }


def _same_target(state: GraceState, i: int, target: tuple[list[int], int], *, ref: bool) -> bool:
    """Return whether entry *i* has *target*; with *ref* by the published rule, which compares means (quirk Q18)."""
    if not ref:
        return state["labels"][i] == target[0]
    # The published code prepends labels and appends keys, so it compares with another entry's target.
    mirrored = len(state["labels"]) - 1 - i
    return _mean_label(state["labels"][mirrored], state["masked"][mirrored]) == _mean_label(*target)


def _mean_label(labels: Sequence[int], masked: int) -> float:
    # −100 marks prompt positions in the published label tensor; they count in its mean.
    return float(torch.tensor([-100] * masked + list(labels)).float().mean())
