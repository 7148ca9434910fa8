"""The agent once more, dense and slow, written from the definitions: the judge of the sparse one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysweep.belief.evidence import Evidence


class Dense:
    """Vectors of length K for everything; refitted from all evidence."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        parent: Sequence[int],
        objects: int,
        *,
        prior: float = 1.0,
        by_items: bool = False,
    ) -> None:
        self.parent, self.k, self.n0 = parent, objects, prior
        self.pairs: dict[tuple[int, int], np.ndarray] = {}
        self.priors: dict[int, np.ndarray] = {}
        said: dict[tuple[int, int], np.ndarray] = {}
        for e in evidence:
            pair = (e.subject, e.relation)
            vector = self.vector(e) * e.count
            self.pairs[pair] = self.pairs.get(pair, 0) + vector
            self.priors[e.relation] = self.priors.get(e.relation, 0) + vector
            one = np.zeros(objects)
            one[e.object] = e.count * (1.0 if by_items else max(e.amount, 0.0))
            said[pair] = said.get(pair, 0) + one
        self.conditionals: dict[tuple[int, int], np.ndarray] = {}
        for (s, r), vector in self.pairs.items():
            above = said.get((s, parent[r])) if parent[r] >= 0 else None
            if above is not None and above.sum() > 0:
                for o in np.flatnonzero(above):
                    share = above[o] / above.sum() * vector
                    self.conditionals[r, o] = self.conditionals.get((r, o), 0) + share

    def vector(self, e: Evidence) -> np.ndarray:
        out = np.zeros(self.k)
        if e.kind == "mass" or e.amount >= 1:
            out[e.object] = e.amount
        else:
            share = 0.0 if e.amount < 0 else e.amount
            out[:] = (1 - share) / (self.k - 1)
            out[e.object] = share
        return out

    def read(self, vector: np.ndarray | None, reading: str) -> np.ndarray:
        e = np.zeros(self.k) if vector is None else vector
        if reading == "posterior":
            return (self.n0 / self.k + e) / (self.n0 + e.sum())
        return e / e.sum() if e.sum() else np.full(self.k, 1 / self.k)

    def pair(self, s: int, r: int, reading: str = "posterior") -> np.ndarray:
        return self.read(self.pairs.get((s, r), self.priors.get(r)), reading)

    def marginal(self, s: int, r: int, reading: str = "posterior") -> np.ndarray:
        above = self.pairs.get((s, self.parent[r])) if self.parent[r] >= 0 else None
        if above is None:
            return self.pair(s, r, reading)
        q = self.read(above, reading)
        return sum(q[o] * self.read(self.conditionals.get((r, o)), reading) for o in range(self.k))
