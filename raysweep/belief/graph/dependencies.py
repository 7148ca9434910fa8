"""Which relation's object depends on which other's: a maximum-weight perfect matching of relations.

With c(i, j) the number of subjects that have both relations, normalised by row without the diagonal,

    ĉ(i, j) = c(i, j) / Σ_{k≠i} c(i, k)        w(i, j) = ĉ(i, j) + ĉ(j, i)

relations are paired so that the sum of w over the pairs is greatest. Of a pair the relation that comes first in the graph is the
child (downstream), the other its parent (upstream): the direction is arbitrary. Source: Hase et al. 2024; docs/methods/belief.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from raysweep.belief.graph.graph import Floats, KnowledgeGraph, normalise_rows
from raysweep.errors import BeliefError


@dataclass(frozen=True)
class DependencyArrows:
    """The parent map over relations.

    Attributes:
        parent: per relation the upstream relation whose object determines its distribution, or −1.

    Raises:
        BeliefError: a parent is no relation, or arrows run in a circle.
    """

    parent: tuple[int, ...]

    def __post_init__(self) -> None:
        for relation, parent in enumerate(self.parent):
            # −1 says that there is none.
            if not -1 <= parent < len(self.parent):
                raise BeliefError(
                    f"relation {relation} has parent {parent}, but there are {len(self.parent)} relations"
                )
        # Walk up from each relation; whoever comes back to a relation it has passed is in a circle.
        for start in range(len(self.parent)):
            walked = [start]
            while (above := self.parent[walked[-1]]) >= 0:
                if above in walked:
                    circle = " → ".join(map(str, [*walked[walked.index(above) :], above]))
                    raise BeliefError(f"relations depend on each other in a circle: {circle}", hint="drop one arrow")
                walked.append(above)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Per relation the relations that depend on it."""
        return tuple(tuple(c for c, p in enumerate(self.parent) if p == r) for r in range(len(self.parent)))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Every relation, parents before children, else by index."""

        def depth(relation: int) -> int:
            above = self.parent[relation]
            return 0 if above < 0 else 1 + depth(above)

        return tuple(sorted(range(len(self.parent)), key=lambda r: (depth(r), r)))

    @property
    def single(self) -> tuple[int, ...]:
        """Relations without parent and child."""
        return tuple(r for r, p in enumerate(self.parent) if p < 0 and not self.children[r])

    def named(self, relations: Sequence[str]) -> list[str]:
        """Return the arrows as text, ``upstream → downstream``."""
        return [f"{relations[p]} → {relations[r]}" for r, p in enumerate(self.parent) if p >= 0]


def match_relations(shares: Floats) -> DependencyArrows:
    """Match relations so that the co-occurrence within pairs is greatest; the lower index is the child.

    The published 0/1 programme is a perfect matching of greatest weight with ``w(i, j) = shares[i, j] + shares[j, i]``.
    An odd number of relations leaves one single. A matched pair that never occurs together could never be active,
    so it gets no arrow.

    Args:
        shares: normalised co-occurrence, fp64 [R, R].
    """
    import networkx

    count = len(shares)
    # Plain floats: networkx looks at the weights one by one.
    weights = (shares + shares.T).tolist()
    complete = networkx.Graph()
    complete.add_nodes_from(range(count))
    complete.add_weighted_edges_from((i, j, weights[i][j]) for i in range(count) for j in range(i + 1, count))
    parent = [-1] * count
    # A maximum-cardinality matching pairs everybody it can, as the published programme asks.
    for pair in networkx.max_weight_matching(complete, maxcardinality=True):
        # The lower index is the child: the order of first appearance, as published.
        child, upstream = sorted(pair)
        if weights[child][upstream] > 0:
            parent[child] = upstream
    return DependencyArrows(tuple(parent))


def graph_dependencies(graph: KnowledgeGraph) -> DependencyArrows:
    """Return the arrows of *graph*, from co-occurrence over its own relations in its own order."""
    return match_relations(normalise_rows(graph.cooccurrence))
