"""The agent once more, dense and slow, written from the definitions: the judge of the sparse one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysweep.belief.corpus.evidence import Evidence


class Dense:
    """Vectors of length K for everything; refitted from all evidence. Of a fact's edits only the last one given counts."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        parent: Sequence[int],
        objects: int,
        *,
        prior: float = 1.0,
        by_items: bool = False,
        whole_mass: bool = False,
    ) -> None:
        self.parent, self.k, self.n0 = parent, objects, prior
        self.edits = {(e.subject, e.relation): e for e in evidence if e.kind == "edit"}
        kept = [e for e in evidence if e.kind != "edit"] + list(self.edits.values())
        self.pairs: dict[tuple[int, int], np.ndarray] = {}
        self.priors: dict[int, np.ndarray] = {}
        pooled: dict[tuple[int, int], np.ndarray] = {}  # what others learn of a pair
        said: dict[tuple[int, int], np.ndarray] = {}
        for e in kept:
            pair = (e.subject, e.relation)
            vector = self.vector(e) * e.count
            self.pairs[pair] = self.pairs.get(pair, 0) + vector
            if e.kind == "edit" and not whole_mass:
                vector = vector * min(1, 1 / e.amount) if e.amount else vector
            pooled[pair] = pooled.get(pair, 0) + vector
            self.priors[e.relation] = self.priors.get(e.relation, 0) + vector
            if e.kind != "edit":
                one = np.zeros(objects)
                one[e.object] = e.count * (1.0 if by_items else max(e.amount, 0.0))
                said[pair] = said.get(pair, 0) + one
        self.conditionals: dict[tuple[int, int], np.ndarray] = {}
        for (s, r), vector in pooled.items():
            if parent[r] < 0:
                continue
            mentions = said.get((s, parent[r]), np.zeros(objects))
            share = mentions / mentions.sum() if mentions.sum() > 0 else mentions
            edit = self.edits.get((s, parent[r]))
            if edit is not None:
                weight = 1.0 if by_items else edit.amount if whole_mass else min(edit.amount, 1.0)
                moved = weight / (mentions.sum() + weight)
                if not whole_mass:
                    moved = min(moved, weight / vector.sum())
                share = (1 - moved) * share + moved * np.eye(objects)[edit.object]
            for o in np.flatnonzero(share):
                self.conditionals[r, o] = self.conditionals.get((r, o), 0) + share[o] * vector

    def vector(self, e: Evidence) -> np.ndarray:
        out = np.zeros(self.k)
        if e.kind != "item" or e.amount >= 1:
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

    def belief(self, s: int, r: int, reading: str = "posterior") -> np.ndarray:
        return (self.pair if (s, r) in self.edits else self.marginal)(s, r, reading)
