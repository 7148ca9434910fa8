"""Evidence vectors over K objects, stored sparsely, and tables of many of them.

A vector e ∈ ℝ^K is (background b on every object, excess d on a few objects, total n = Σe):

    e_o = b + d_o        with d_o = 0 for all objects that nobody mentioned

A denial ("not o") puts 1/(K−1) on every object but o, so that dense vectors would cost K per item; this form costs one entry.
Vectors combine linearly, entry by entry.

Shapes: V vectors of a table, E entries of all of them together, n rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raysweep.belief.graph.graph import Floats, Ints


def sum_by_index(index: Ints, weights: Floats, length: int) -> Floats:
    """Return the sums of *weights* by *index*, fp64 [length], added in the order given.

    Args:
        index: int64 [n], in 0 … length − 1.
        weights: fp64 [n].
        length: number of sums.
    """
    return np.bincount(index, weights, minlength=length).astype(np.float64)


@dataclass(frozen=True, eq=False)
class EvidenceVector:
    """One evidence vector.

    Attributes:
        background: b, on every object.
        total: Σe.
        objects: int64 [E], rising: the objects with an entry.
        excess: fp64 [E]: d, what each of them has beyond the background.
    """

    background: float
    total: float
    objects: Ints
    excess: Floats

    def plus(self, other: EvidenceVector, scale: float = 1.0) -> EvidenceVector:
        """Return this vector plus *scale* times the other."""
        objects, excess = self.objects, self.excess.copy()
        at = objects.searchsorted(other.objects)
        # The −1 behind the last object equals none, so objects beyond the last one count as new.
        new = np.append(objects, -1)[at] != other.objects
        if new.any():
            objects = np.insert(objects, at[new], other.objects[new])
            excess = np.insert(excess, at[new], 0.0)
            at = objects.searchsorted(other.objects)
        excess[at] += scale * other.excess
        return EvidenceVector(
            self.background + scale * other.background, self.total + scale * other.total, objects, excess
        )


NO_EVIDENCE = EvidenceVector(0.0, 0.0, np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True, eq=False)
class VectorTable:
    """V evidence vectors, one after the other, by rising key.

    Attributes:
        keys: int64 [V], rising.
        starts: int64 [V + 1]: vector v has the entries ``starts[v]:starts[v + 1]``.
        objects: int64 [E], rising within a vector.
        excess: fp64 [E].
        background: fp64 [V].
        total: fp64 [V].
    """

    keys: Ints
    starts: Ints
    objects: Ints
    excess: Floats
    background: Floats
    total: Floats

    def get(self, key: int) -> EvidenceVector | None:
        """Return the vector of *key*, or None if there is none."""
        row = int(self.keys.searchsorted(key))
        if row == len(self.keys) or self.keys[row] != key:
            return None
        part = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return EvidenceVector(
            float(self.background[row]), float(self.total[row]), self.objects[part], self.excess[part]
        )

    def excess_at(self, rows: Ints, objects: Ints) -> Floats:
        """Return the excess of the vector in each row on the object beside it, fp64 [n].

        Args:
            rows: int64 [n], positions in :attr:`keys`.
            objects: int64 [n].
        """
        size, numbers = self._entry_numbers
        if not len(numbers):
            return np.zeros(len(rows))
        # (row, object) as one number, in the order of the entries, so that one search finds all.
        number = rows * size + objects
        at = np.minimum(numbers.searchsorted(number), len(numbers) - 1)
        # An object ≥ size would alias an entry of the next row.
        return np.where((numbers[at] == number) & (objects < size), self.excess[at], 0.0)

    @cached_property
    def _entry_numbers(self) -> tuple[int, Ints]:
        """A bound of the objects, and int64 [E]: row · bound + object of each entry, rising."""
        size = int(self.objects.max(initial=0)) + 1
        return size, np.repeat(np.arange(len(self.keys)), np.diff(self.starts)) * size + self.objects


def sum_by_key(
    keys: Ints, background: Floats, total: Floats, entry_keys: Ints, objects: Ints, excess: Floats, size: int
) -> VectorTable:
    """Return the sums of contributions by key.

    Args:
        keys: int64 [n], of each contribution.
        background: fp64 [n], what it puts on every object.
        total: fp64 [n], its total.
        entry_keys: int64 [m], the key of each entry; each occurs in *keys*.
        objects: int64 [m], the object of each entry.
        excess: fp64 [m], what the entry puts on its object besides.
        size: K.
    """
    distinct, inverse = np.unique(keys, return_inverse=True)
    # Number (row, object) pairs in one dimension, so that one `unique` groups the entries.
    number = np.searchsorted(distinct, entry_keys) * size + objects
    entries, entry_inverse = np.unique(number, return_inverse=True)
    return VectorTable(
        keys=distinct,
        starts=np.searchsorted(entries, np.arange(len(distinct) + 1) * size),
        # Back from the number of a (row, object) pair to its object.
        objects=entries % size,
        excess=sum_by_index(entry_inverse, excess, len(entries)),
        background=sum_by_index(inverse, background, len(distinct)),
        total=sum_by_index(inverse, total, len(distinct)),
    )
