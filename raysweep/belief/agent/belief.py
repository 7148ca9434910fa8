"""A distribution over K objects that most of them share one value of: what the agent believes of a (subject, relation).

    p(o) = flat + Σ_{entries on o} value + scale · dense_o

The first two terms come from a few evidence vectors; the third is the sum over all upstream objects that a marginal needs
(``belief/agent/fit.py``: ``FittedEvidence.conditional_sums``), shared by all marginals of a relation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep.belief.agent.vectors import sum_by_index
from raysweep.belief.graph.graph import Floats, Ints

_LOOK_UP_LIMIT = 16  # objects that are looked up one by one; more, and all K probabilities are computed
_TIE = 1e-12  # relative; beliefs closer than that are equal, and the lowest object wins


@dataclass(frozen=True, eq=False)
class Belief:
    """A distribution over K objects.

    Attributes:
        size: K.
        flat: probability that every object has.
        objects: int64 [E], the objects of the entries; an object may have several.
        values: fp64 [E], what each entry adds.
        scale: factor of the dense vector.
        dense_part: fp64 [K], or None where there is no such part.
        rank: int64 [K], the objects by falling entry of *dense_part*.
    """

    size: int
    flat: float
    objects: Ints
    values: Floats
    scale: float = 0.0
    dense_part: Floats | None = None
    rank: Ints | None = None

    def at(self, objects: Ints) -> Floats:
        """Return the probabilities of *objects* (int64 [n]), fp64 [n]."""
        if len(objects) > _LOOK_UP_LIMIT:
            return np.asarray(self.dense()[objects])
        # [n, E]: each entry's value where it is about the object of the row. A product with a 0/1 matrix would ask BLAS,
        # whose last bits depend on the machine.
        matching = np.where(self.objects == objects[:, None], self.values, 0.0)
        probability: Floats = self.flat + matching.sum(axis=1)
        if self.dense_part is None:
            return probability
        return np.asarray(probability + self.scale * self.dense_part[objects])

    def dense(self) -> Floats:
        """Return all K probabilities, fp64 [K]."""
        probability = self.flat + sum_by_index(self.objects, self.values, self.size)
        return probability if self.dense_part is None else probability + self.scale * self.dense_part

    def mode(self) -> int:
        """Return the most probable object; ties go to the lowest."""
        candidates, values = self.objects, self.values
        if not (candidates[1:] > candidates[:-1]).all():
            candidates, inverse = np.unique(self.objects, return_inverse=True)
            values = sum_by_index(inverse, self.values, len(candidates))
        # Of all objects without an entry only the best one can be the mode.
        outside = self._best_without_entry(candidates)
        if outside is not None:
            candidates, values = np.append(candidates, outside), np.append(values, 0.0)
        if self.dense_part is not None:
            values = values + self.scale * self.dense_part[candidates]
        values = values + self.flat
        best = float(values.max())
        return int(candidates[values >= best - _TIE * abs(best)].min())

    def _best_without_entry(self, involved: Ints) -> int | None:
        """Return the most probable object that is not among *involved* (rising); None if all are."""
        if len(involved) == self.size:
            return None
        if self.rank is None:  # all are equal: the lowest, which is the first gap in 0, 1, 2, …
            gaps = np.flatnonzero(involved != np.arange(len(involved)))
            return int(gaps[0]) if len(gaps) else len(involved)
        # Among the first len(involved) + 1 of the ranking one at least is not involved.
        head = self.rank[: len(involved) + 1]
        at = np.minimum(involved.searchsorted(head), max(len(involved) - 1, 0))
        free = involved[at] != head if len(involved) else np.ones(1, dtype=np.bool_)
        return int(head[np.argmax(free)])
