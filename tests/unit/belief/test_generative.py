"""The generative model: true objects, raised conditionals, draws with a majority, false objects."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from raysweep.belief.corpus.generative import (
    Distributions,
    GenerativeModel,
    build_generative,
    least_counts,
    least_percent,
)
from raysweep.belief.graph.dependencies import DependencyArrows, graph_dependencies
from raysweep.belief.graph.graph import KnowledgeGraph, world_graph
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import GenerativeSpec
from raysweep.errors import BeliefError
from raysweep.world import build_world
from tests.unit.belief.wiki import graph

# up = a: down is x, x, y; up = b: y, z (a tie); u has no up
FACTS = (
    "s down x", "s up a", "t down x", "t up a", "v down y", "v up a",
    "w down z", "w up b", "q down y", "q up b", "u down z", "u other m",
)  # fmt: skip


@pytest.fixture
def small() -> KnowledgeGraph:
    return graph(*FACTS)


def build(of: KnowledgeGraph, parity: ParitySpec | None = None, **values: Any) -> GenerativeModel:
    arrows = DependencyArrows((1, -1, -1)) if of.relations == ("down", "up", "other") else graph_dependencies(of)
    return build_generative(of, arrows, GenerativeSpec.model_validate(values), 0, parity)


def shown(model: GenerativeModel) -> dict[str, str]:
    g = model.graph
    return {
        f"{g.subjects[s]} {g.relations[r]}": g.objects[o]
        for (s, r, _), o in zip(g.facts.tolist(), model.true_objects.tolist(), strict=True)
    }


def conditional(model: GenerativeModel, above: str) -> dict[str, int]:
    size = len(model.graph.objects)
    (which,) = np.flatnonzero(model.conditional_keys == 0 * size + model.graph.objects.index(above))
    a, b = model.conditionals.starts[which : which + 2]
    names = [model.graph.objects[o] for o in model.conditionals.objects[a:b]]
    return dict(zip(names, model.conditionals.counts[a:b].tolist(), strict=True))


def test_true_objects_are_modes_given_the_upstream_object(small: KnowledgeGraph) -> None:
    true = shown(build(small))
    assert true["v down"] == "x"  # 2 of 3 under a
    assert true["w down"] == true["q down"] == "y"  # a tie, y has the lower index
    assert true["u down"] == "z"  # no parent: as in the graph
    assert true["v up"] == "a"


def test_recomputing_true_objects_changes_nothing_more() -> None:
    model = build(world_graph(build_world()))
    child = np.flatnonzero(model.upstream >= 0)
    again = model.distributions.objects[model.distributions.modes[model.distribution_of[child]]]
    assert (again == model.true_objects[child]).all()
    roots = model.upstream < 0
    assert (model.true_objects[roots] == model.graph.facts[roots, 2]).all()


def test_chains_are_walked_from_the_root() -> None:
    facts = [f"{s} {r} {o}" for s, row in {"p": "axk", "q": "axk", "r": "axl", "s": "ayl"}.items()
             for r, o in zip(("top", "mid", "low"), row, strict=True)]  # fmt: skip
    chain = graph(*facts)
    true = shown(build_generative(chain, DependencyArrows((-1, 0, 1)), GenerativeSpec(), 0))
    assert true["s mid"] == "x"  # 3 of 4 under a
    assert true["s low"] == "k"  # 2 of 3 under x, the recomputed middle


def test_a_chain_to_an_object_nobody_has_is_refused() -> None:
    facts = ["p top a", "p mid x", "q top a", "q mid x", "s top a", "s mid y", "s low l"]
    with pytest.raises(BeliefError, match=r"p\(· \| low, upstream = x\) has no mass"):
        build_generative(graph(*facts), DependencyArrows((-1, 0, 1)), GenerativeSpec(), 0)


def test_conditionals_are_raised_to_the_least_probability(small: KnowledgeGraph) -> None:
    assert conditional(build(small, min_true_prob=0.6), "a") == {"x": 2, "y": 1}  # 2/3 is enough
    assert conditional(build(small, min_true_prob=0.6), "b") == {"y": 2, "z": 1}  # ⌈1 · .6/.4⌉
    assert conditional(build(small, min_true_prob=0.8), "a") == {
        "x": 4,
        "y": 1,
    }  # exactly 4, whatever .8/.2 is in binary
    assert conditional(build(small), "a") == {"x": 2, "y": 0}  # 1: all mass
    assert conditional(build(small, ParitySpec(mgtp1_additive=True)), "a") == {"x": 3, "y": 1}


@pytest.mark.parametrize("least", [0.55, 0.8, 0.9, *(n / 100 for n in range(1, 100, 7))])
def test_counts_are_rounded_up_exactly_or_as_published(least: float) -> None:
    """B12, the kind: whatever ``min_true_prob`` asks for is exact, or what the published binary formulas give."""
    rest = np.arange(200)
    share = Fraction(repr(least))
    assert least_percent(least, published=True) == int(np.ceil(least * 100))
    assert least_percent(least, published=False) == math.ceil(100 * share)
    assert (least_counts(rest, least, published=True) == np.ceil(rest * least / (1 - least))).all()
    exact = [math.ceil(int(n) * share / (1 - share)) for n in rest]
    assert least_counts(rest, least, published=False).tolist() == exact


@pytest.mark.parametrize(
    ("least", "percent", "rest", "counts"),
    [
        (0.55, (55, 56), 9, (11, 12)),
        (0.8, (80, 80), 1, (4, 5)),
        (0.9, (90, 90), 1, (9, 10)),
        (0.6, (60, 60), 2, (3, 3)),
    ],
)
def test_published_rounding_by_hand(least: float, percent: tuple[int, int], rest: int, counts: tuple[int, int]) -> None:
    for published in (False, True):
        assert least_percent(least, published=published) == percent[published]
        assert least_counts(np.array([rest]), least, published=published).tolist() == [counts[published]]


def test_published_rounding_reaches_the_distributions(small: KnowledgeGraph) -> None:
    parity = ParitySpec(float_ceil=True)
    assert conditional(build(small, parity, min_true_prob=0.8), "a") == {"x": 5, "y": 1}
    assert conditional(build(small, parity, min_true_prob=0.9), "b") == {"y": 10, "z": 1}
    made = world_graph(build_world())
    assert build(made, parity, min_true_prob=0.55).percent.min() == 56
    assert build(made, min_true_prob=0.55).percent.min() == 55


@pytest.mark.parametrize("least", [0.3, 0.55, 0.57, 0.6, 0.8, 0.95, 1.0])
def test_true_objects_have_the_least_probability(least: float) -> None:
    model = build(world_graph(build_world()), min_true_prob=least)
    assert (model.true_probability >= least - 1e-15).all()
    assert model.percent.min() == round(100 * least)
    assert model.percent.max() == 100
    totals = np.add.reduceat(
        model.distributions.counts / np.repeat(model.distributions.totals, np.diff(model.distributions.starts)),
        model.distributions.starts[:-1],
    )
    assert np.abs(totals - 1).max() < 1e-12


def test_probabilities_of_a_pair_and_of_third_objects(small: KnowledgeGraph) -> None:
    rows = np.array([10] * len(small.objects))  # u down: no parent
    objects = np.arange(len(small.objects))
    model = build(small, min_true_prob=0.6)
    found = model.probability(rows, objects)
    p = model.percent[10] / 100
    assert found[model.true_objects[10]] == p
    assert found[model.distractor[10]] == pytest.approx(1 - p)
    assert found.sum() == pytest.approx(1)
    published = build(small, ParitySpec(third_object_prob=True), min_true_prob=0.6).probability(rows, objects)
    assert sorted(published) == pytest.approx(sorted([p] + [1 - p] * (len(objects) - 1)))
    child = np.zeros(len(objects), dtype=np.int64)  # s down: a conditional has no distractor
    assert model.probability(child, objects).sum() == pytest.approx(1)


def test_draws_follow_the_counts_and_skip_empty_entries() -> None:
    made = Distributions(np.array([0, 3, 5]), np.array([2, 5, 9, 1, 4]), np.array([3, 0, 1, 0, 2]))
    assert made.modes.tolist() == [0, 4]
    drawn = made.draw(np.repeat([[0, 1]], 4000, axis=0), np.random.default_rng(0))
    assert set(drawn[:, 0].tolist()) == {2, 9}
    assert (drawn[:, 0] == 2).mean() == pytest.approx(0.75, abs=0.03)
    assert set(drawn[:, 1].tolist()) == {4}
    assert made.probability(np.array([0, 0, 1, 1]), np.array([2, 4, 4, 99])).tolist() == [0.75, 0, 1, 0]


def test_most_samples_are_the_true_object() -> None:
    model = build(world_graph(build_world()), min_true_prob=0.6, samples=10)
    rows = np.arange(len(model.true_objects))
    hits = model.sample(rows, 0) == model.true_objects[:, None]
    assert (hits.sum(axis=1) >= 6).all()
    assert hits.mean() < 0.95
    assert (model.sample(rows, 0) == model.sample(rows, 0)).all()
    assert (model.sample(rows, 0) != model.sample(rows, 1)).any()
    loose = build(world_graph(build_world()), min_true_prob=0.6, samples=10, majority=False)
    share = (loose.sample(rows, 0) == loose.true_objects[:, None]).mean()
    assert share == pytest.approx(loose.true_probability.mean(), abs=0.01)


def test_one_sample_is_the_true_object() -> None:
    model = build(world_graph(build_world()), min_true_prob=0.6, samples=1)
    assert (model.sample(np.arange(len(model.true_objects)), 0)[:, 0] == model.true_objects).all()


def test_hopeless_majorities_are_placed() -> None:
    """A true object of 1 % among 9 samples would need about 10⁷ redraws."""
    model = build(graph("s up a", "s down x", "t up b", "t down y"), min_true_prob=0.01, samples=9)
    object.__setattr__(model, "percent", np.ones_like(model.percent))
    draws = model.sample(np.arange(len(model.true_objects)), 0)
    roots = model.upstream < 0
    assert ((draws == model.true_objects[:, None]).sum(axis=1) >= 5).all()
    assert (draws[roots, :5] == model.true_objects[roots, None]).all()


def test_false_objects_are_false() -> None:
    made = world_graph(build_world())
    rows = np.arange(len(made.facts))
    model = build(made)
    false = model.falsify(rows, np.random.default_rng(0))
    assert (false != model.true_objects).all()
    roots = model.upstream < 0
    assert (false[roots] == model.distractor[roots]).all()
    assert (false[~roots] != model.distractor[~roots]).any()
    uniform = build(made, false_facts="uniform").falsify(rows, np.random.default_rng(0))
    assert (uniform[roots] != model.distractor[roots]).any()


def test_distractors_of_the_relations_range() -> None:
    made = world_graph(build_world())
    model = build(made, distractor_scope="relation_range")
    for r in range(len(made.relations)):
        rows = made.facts[:, 1] == r
        scope = set(made.facts[rows, 2].tolist())
        assert set(model.distractor[rows].tolist()) <= scope
    assert (model.distractor != model.true_objects).all()
    with pytest.raises(BeliefError, match="relation 'up' has one object"):
        build(graph("s down x", "s up a", "t down y"), distractor_scope="relation_range")


def test_too_small_worlds_are_refused(small: KnowledgeGraph) -> None:
    with pytest.raises(BeliefError, match="one object, so nothing could be false"):
        build(graph("s down x", "t down x"))
    with pytest.raises(BeliefError, match="2 parents for 3 relations"):
        build_generative(small, DependencyArrows((-1, -1)), GenerativeSpec(), 0)
