"""Pairing: the published example, brute force, odd numbers, circles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from raysweep.belief.graph.dependencies import DependencyArrows, graph_dependencies, match_relations
from raysweep.belief.graph.graph import world_graph
from raysweep.errors import BeliefError
from raysweep.world import build_world
from tests.unit.belief.wiki import graph


def test_published_example() -> None:  # appendix B.3
    shares = np.array([[0, 0.5, 0.3, 0.2], [0.6, 0, 0.1, 0.3], [0.2, 0.2, 0, 0.6], [0.1, 0.3, 0.6, 0]])
    arrows = match_relations(shares)
    assert arrows.parent == (1, -1, 3, -1)
    assert arrows.children == ((), (0,), (), (2,))
    assert arrows.single == ()
    assert arrows.named("ABCD") == ["B → A", "D → C"]


def matchings(left: tuple[int, ...]) -> Iterator[list[tuple[int, int]]]:
    if len(left) < 2:
        yield []
        return
    for i in range(1, len(left)):
        for rest in matchings(left[1:i] + left[i + 1 :]):
            yield [(left[0], left[i]), *rest]
    if len(left) % 2:
        yield from matchings(left[1:])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8])
def test_the_matching_is_the_best_of_all(count: int) -> None:
    shares = np.random.default_rng(count).random((count, count))
    np.fill_diagonal(shares, 0)
    arrows = match_relations(shares)
    found = {(r, p) for r, p in enumerate(arrows.parent) if p >= 0}
    best = max(matchings(tuple(range(count))), key=lambda m: sum(shares[i, j] + shares[j, i] for i, j in m))
    assert found == set(best)
    assert len(arrows.single) == count % 2
    assert all(child < parent for child, parent in found)


def test_relations_that_never_meet_get_no_arrow() -> None:
    arrows = graph_dependencies(world_graph(build_world()))
    active = [(r, p) for r, p in enumerate(arrows.parent) if p >= 0]
    assert len(active) == 6  # 7 relations of people, 3 of cities, 3 of companies, 2 of countries
    assert len(arrows.single) == 3


def test_direction_follows_first_appearance() -> None:
    assert graph_dependencies(graph("s up a", "s down x")).parent == (1, -1)
    assert graph_dependencies(graph("s down x", "s up a")).parent == (1, -1)


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ((1, 0), "circle: 0 → 1 → 0"),
        ((0,), "circle: 0 → 0"),
        ((1, 2, 3, 1), "circle: 1 → 2 → 3 → 1"),
        ((5, -1), "relation 0 has parent 5, but there are 2 relations"),
    ],
)
def test_circles_and_strangers_are_refused(parent: tuple[int, ...], message: str) -> None:
    with pytest.raises(BeliefError, match=message):
        DependencyArrows(parent)


def test_parents_come_before_children() -> None:
    assert DependencyArrows((1, 2, -1, 0)).order == (2, 1, 0, 3)
