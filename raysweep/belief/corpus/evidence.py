"""Evidence about facts, and the one place that says how it is spread over K objects.

====================  ===========  ====================  =====
weight w of an item   on o         on each other object  total
====================  ===========  ====================  =====
w ≥ 1                 w            0                     w
−1                    0            1/(K−1)               1
0 < w < 1             w            (1−w)/(K−1)           1
====================  ===========  ====================  =====

Mass is plain: an amount ≥ 0 on o and nothing elsewhere. An edit is mass too, but it is about its own fact: distributions that
pool many subjects take at most one observation of it, and a later edit of the same fact replaces it (``belief/agent/update.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from raysweep.belief.graph.graph import Bools, Floats, Ints
from raysweep.errors import BeliefError


class Triple(NamedTuple):
    """A fact as indices into a graph's tables."""

    subject: int
    relation: int
    object: int


@dataclass(frozen=True, order=True, slots=True)
class Evidence:
    """Something learnt about one fact, ``count`` times.

    Attributes:
        subject, relation, object: indices; a subject may lie beyond the graph's (a novel one).
        amount: weight of an item, or mass.
        count: how often; an edit counts once.
        kind: ``item`` (one observation, maybe a doubtful one), ``mass`` (so much for the object, no more) or ``edit`` (as much
            for the fact itself, at most one observation for the population).

    Raises:
        BeliefError: an item's weight is not ≥ 1, −1 or in (0, 1); mass is negative; a count below 1; an edit counts twice.
    """

    subject: int
    relation: int
    object: int
    amount: float = 1.0
    count: int = 1
    kind: Literal["item", "mass", "edit"] = "item"

    def __post_init__(self) -> None:
        # A dataclass of plain numbers checks itself: evidence that says nothing would be silently lost in sums.
        if self.count < 1:
            raise BeliefError(f"evidence cannot count {self.count} times", hint="count ≥ 1")
        if self.kind == "edit" and self.count != 1:
            raise BeliefError(
                f"an edit cannot count {self.count} times", hint="the later edit of a fact replaces the earlier"
            )
        if self.kind != "item":
            if not 0 <= self.amount < float("inf"):
                raise BeliefError(f"mass {self.amount} is not a finite number ≥ 0")
        else:
            check_weights(np.array([self.amount]))


def check_weights(weight: Floats) -> None:
    """Refuse weights that say nothing.

    Raises:
        BeliefError: one is not ≥ 1, −1 or in (0, 1).
    """
    invalid = ~(np.isfinite(weight) & ((weight > 0) | (weight == -1)))
    if invalid.any():
        raise BeliefError(f"{weight[invalid][0]} is no evidence weight", hint="≥ 1, −1, or between 0 and 1")


def encode_weights(weight: Floats, objects: int) -> tuple[Floats, Floats, Floats]:
    """Return what one item of each weight puts on every object, on its own object besides, and in total.

    Args:
        weight: fp64 [N].
        objects: K ≥ 2.

    Raises:
        BeliefError: a weight says nothing, or K < 2.
    """
    check_weights(weight)
    if objects < 2:
        raise BeliefError(f"evidence needs at least 2 objects, there are {objects}", hint="a larger graph")
    # The columns of the table above: what the item puts on every object, and on its own one beyond that.
    sure, denied = weight >= 1, weight == -1
    background = np.where(sure, 0.0, np.where(denied, 1.0, 1.0 - weight) / (objects - 1))
    excess = np.where(denied, 0.0, weight) - background
    return background, excess, np.where(sure, weight, 1.0)


@dataclass(frozen=True, eq=False)
class EvidenceTable:
    """Evidence items as columns [N], equal ones grouped and counted, in one order whatever order they came in."""

    subject: Ints
    relation: Ints
    object: Ints
    weight: Floats
    count: Ints

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def items(self) -> int:
        """How many items there are, repeats counted."""
        return int(self.count.sum())

    def repeat(self, times: int) -> EvidenceTable:
        """Return the same evidence *times* over."""
        return EvidenceTable(self.subject, self.relation, self.object, self.weight, self.count * times)


def group_items(subject: Ints, relation: Ints, obj: Ints, weight: Floats, count: Ints) -> EvidenceTable:
    """Group equal items, sorted by subject, relation, object and weight.

    Args:
        subject: int64 [N].
        relation: int64 [N].
        obj: int64 [N].
        weight: fp64 [N].
        count: int64 [N], how often each item counts.
    """
    # The last key sorts first: by subject, relation, object, weight.
    order = np.lexsort((weight, obj, relation, subject))
    subject, relation, obj, weight = subject[order], relation[order], obj[order], weight[order]
    # A row that differs from the one before begins a group.
    new: Bools = np.zeros(len(order), dtype=np.bool_)
    if len(order):
        new[0] = True
    for column in (subject, relation, obj, weight):
        new[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(new)
    counts = np.add.reduceat(count[order], starts) if len(starts) else count[order]
    return EvidenceTable(subject[starts], relation[starts], obj[starts], weight[starts], counts)


def evidence_table(evidence: Iterable[Evidence]) -> EvidenceTable:
    """Return the columns of single items.

    Raises:
        BeliefError: one is mass or an edit, not an item.
    """
    rows = list(evidence)
    # A table has one column of weights, and a mass of 0.5 is no doubtful item.
    if any(e.kind != "item" for e in rows):
        raise BeliefError("a table of evidence holds items only", hint="give mass and edits to Agent.given")
    ints = np.array([(e.subject, e.relation, e.object, e.count) for e in rows], dtype=np.int64).reshape(-1, 4)
    return group_items(
        ints[:, 0], ints[:, 1], ints[:, 2], np.array([e.amount for e in rows], dtype=np.float64), ints[:, 3]
    )
