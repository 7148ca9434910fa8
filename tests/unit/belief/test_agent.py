"""The agent is mathematics: published numbers, brute force, dense = sparse, order, immutability."""

from __future__ import annotations

import itertools
from math import gamma

import numpy as np
import pytest

from raysweep.belief.agent.agent import Agent, fit_agent
from raysweep.belief.agent.fit import Estimator
from raysweep.belief.corpus.evidence import Evidence, evidence_table
from raysweep.belief.graph.dependencies import DependencyArrows
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import AgentSpec
from raysweep.errors import BeliefError
from tests.unit.belief.dense import Dense

UP, DOWN = 0, 1
A, B, C, X, Y = range(5)
S, T, U = range(3)
READINGS: tuple[Estimator, ...] = ("posterior", "frequency")
THIRD = 1 / 3

MICRO = [  # appendix B.2
    *(Evidence(S, UP, o, w) for w, o in [(1, A), (1, A), (-1, B), (2 / 3, A), (THIRD, C)]),
    *(Evidence(S, DOWN, o, w) for w, o in [(1, X), (1, X), (1, Y), (-1, Y)]),
    *(Evidence(T, UP, B), Evidence(T, UP, B), Evidence(T, DOWN, Y), Evidence(T, DOWN, Y)),
    *(Evidence(U, UP, A), Evidence(U, DOWN, X)),
]


def micro(**parity: bool) -> Agent:
    return fit_agent(
        evidence_table(MICRO),
        DependencyArrows((-1, UP)),
        5,
        parity=ParitySpec.model_validate({"pi_by_items": True, **parity}),
    )


def close(belief: object, *wanted: float) -> None:
    assert belief.dense() == pytest.approx(wanted, abs=1e-6)  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------- published numbers


def test_published_pairs_and_conditionals() -> None:
    agent = micro()
    close(agent.pair(S, UP), 0.547222, 0.075, 0.144444, 0.116667, 0.116667)
    close(agent.pair(S, DOWN), 0.09, 0.09, 0.09, 0.49, 0.24)
    assert agent.sample_size(S, UP) == pytest.approx(5)
    assert agent.pair(S, UP, "frequency").dense() * 5 == pytest.approx([3.083333, 0.25, 0.666667, 0.5, 0.5], abs=1e-6)
    close(agent.conditional(DOWN, A), *[0.079545] * 3, 0.579545, 0.181818)
    close(agent.conditional(DOWN, B), *[0.065789] * 3, 0.171053, 0.631579)
    close(agent.conditional(DOWN, C), *[0.138889] * 3, 0.361111, 0.222222)
    close(agent.conditional(DOWN, X), *[0.2] * 5)


def test_published_marginals() -> None:
    agent = micro()
    close(agent.marginal(S, DOWN), *[0.115192] * 3, 0.428796, 0.225629)
    close(agent.marginal(S, DOWN, "frequency"), *[0.076432] * 3, 0.549261, 0.221443)
    assert agent.marginal(S, DOWN).mode() == X


def test_published_root_update() -> None:
    agent = micro()
    mass = agent.mass_to_reach(S, UP, B, 0.95)
    assert mass == pytest.approx(105.55)
    after = agent.given(Evidence(S, UP, B, mass, kind="mass"))
    close(after.pair(S, UP), 0.029434, 0.950247, 0.007769, 0.006275, 0.006275)
    close(after.marginal(S, DOWN), *[0.06816] * 3, 0.230622, 0.564899)
    close(after.marginal(S, DOWN, "frequency"), *[0.027274] * 3, 0.24029, 0.677888)
    assert after.marginal(S, DOWN).mode() == Y


def test_published_child_update_with_and_without_the_double_count() -> None:
    for double, wanted in ((False, (0.053968, 0.084551, 0.753546)), (True, (0.050541, 0.066651, 0.781725))):
        agent = micro(double_child_update=double)
        mass = agent.mass_to_reach(S, DOWN, Y, 0.95)
        assert mass == pytest.approx(71.8)
        after = agent.given(Evidence(S, DOWN, Y, mass, kind="mass"))
        assert after.pair(S, DOWN).at(np.array([Y])) == pytest.approx(0.950521, abs=1e-6)
        close(after.marginal(S, DOWN), *[wanted[0]] * 3, *wanted[1:])


# --------------------------------------------------------------------------------------------------- brute force


def test_posterior_by_enumeration_of_draws() -> None:
    """P(next = o | draws) = P(draws, o) / P(draws), with P of a sequence by the Dirichlet integral ∫ Π θ^c dDir(θ)."""

    def likelihood(counts: np.ndarray, alpha: float, k: int) -> float:
        top = np.prod([gamma(alpha + c) / gamma(alpha) for c in counts])
        return float(gamma(alpha * k) / gamma(alpha * k + counts.sum()) * top)

    for k, n0 in ((2, 1.0), (3, 1.0), (4, 2.5)):
        for drawn in itertools.product(range(k), repeat=3):
            counts = np.bincount(drawn, minlength=k).astype(float)
            agent = fit_agent(
                evidence_table(Evidence(0, 0, o) for o in drawn), DependencyArrows((-1,)), k, AgentSpec(prior=n0)
            )
            wanted = [likelihood(counts + np.eye(k)[o], n0 / k, k) / likelihood(counts, n0 / k, k) for o in range(k)]
            assert agent.pair(0, 0).dense() == pytest.approx(wanted, rel=1e-12)


def test_posterior_by_integration_of_fractional_evidence() -> None:
    """K = 2: the mean of θ^(½+a−1) (1−θ)^(½+b−1) by quadrature in θ = sin² φ, where it is smooth."""
    evidence = [Evidence(0, 0, 0), Evidence(0, 0, 1, 2 / 3), Evidence(0, 0, 0, -1), Evidence(0, 0, 1, 4)]
    agent = fit_agent(evidence_table(evidence), DependencyArrows((-1,)), 2)
    a, b = 1 + 1 / 3 + 0, 2 / 3 + 1 + 4
    phi = (np.arange(20000) + 0.5) * np.pi / 40000
    weight = np.sin(phi) ** (2 * a) * np.cos(phi) ** (2 * b)
    assert agent.pair(0, 0).dense()[0] == pytest.approx((weight * np.sin(phi) ** 2).sum() / weight.sum(), rel=1e-6)


def test_marginal_by_enumeration_of_worlds() -> None:
    """Sum the joint probability of every (upstream, downstream) pair of objects of a small world."""
    agent = micro()
    for reading in READINGS:
        joint = np.zeros((5, 5))
        for above, below in itertools.product(range(5), repeat=2):
            joint[above, below] = (
                agent.pair(S, UP, reading).dense()[above] * agent.conditional(DOWN, above, reading).dense()[below]
            )
        assert joint.sum() == pytest.approx(1)
        assert agent.marginal(S, DOWN, reading).dense() == pytest.approx(joint.sum(axis=0), abs=1e-12)


# --------------------------------------------------------------------------------------------- dense and sparse

PARENTS = (-1, 0, -1, 2, 1, 0)  # 0 → 1 → 4 is a chain, 0 has two children, 2 → 3


def world(seed: int, items: int = 160, objects: int = 7) -> tuple[list[Evidence], np.random.Generator]:
    rng = np.random.default_rng(seed)
    weights = [1.0, 1.0, 1.0, -1.0, 2 / 3, THIRD, 5.0]
    rows = [
        Evidence(s, r, o, weights[w], 1 + c)
        for s, r, o, w, c in rng.integers((8, 6, objects, len(weights), 3), size=(items, 5)).tolist()
        if (s + r) % 4  # some subjects lack some relations
    ]
    return rows, rng


def agree(agent: Agent, dense: Dense, tolerance: float = 1e-12) -> None:
    for s, r, reading in itertools.product(range(9), range(6), READINGS):  # subject 8 is unknown
        for ask, wanted in ((agent.pair, dense.pair), (agent.marginal, dense.marginal)):
            found, right = ask(s, r, reading), wanted(s, r, reading)  # type: ignore[operator]
            assert found.dense() == pytest.approx(right, abs=tolerance)
            assert found.dense().sum() == pytest.approx(1, abs=1e-12)
            assert found.mode() == np.flatnonzero(right >= right.max() * (1 - 1e-10))[0]
    for (r, o), vector in dense.conditionals.items():
        assert agent.conditional(r, o).dense() == pytest.approx(dense.read(vector, "posterior"), abs=tolerance)


@pytest.mark.parametrize("by_items", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sparse_is_dense_before_and_after_updates(seed: int, by_items: bool) -> None:
    rows, rng = world(seed)
    agent = fit_agent(
        evidence_table(rows), DependencyArrows(PARENTS), 7, AgentSpec(prior=1.5), ParitySpec(pi_by_items=by_items)
    )

    def dense(*more: Evidence) -> Dense:
        return Dense([*rows, *more], PARENTS, 7, prior=1.5, by_items=by_items)

    agree(agent, dense())
    updates = [
        Evidence(int(s), int(r), int(o), *kind)
        for s, r, o in rng.integers((9, 6, 7), size=(4, 3))  # subject 8 is a novel one
        for kind in ((1.0,), (-1.0, 2), (2 / 3,), (100.25, 1, "mass"))
    ]
    for update in updates:
        agree(agent.given(update), dense(update))
    agree(agent.given(updates), dense(*updates))
    agree(agent, dense())


@pytest.mark.parametrize("seed", range(3))
def test_many_objects(seed: int) -> None:
    """Most objects are never mentioned; the background must be right too."""
    rows, _ = world(seed, objects=60)
    agent, dense = fit_agent(evidence_table(rows), DependencyArrows(PARENTS), 300), Dense(rows, PARENTS, 300)
    agree(agent, dense)
    mass = agent.mass_to_reach(1, 0, 299, 0.95)
    update = Evidence(1, 0, 299, mass, kind="mass")
    agree(agent.given(update), Dense([*rows, update], PARENTS, 300))


def test_fitting_and_learning_are_the_same() -> None:
    rows, _ = world(5)
    whole = fit_agent(evidence_table(rows), DependencyArrows(PARENTS), 7)
    for part in (1, 40, len(rows) // 2):
        learnt = fit_agent(evidence_table(rows[part:]), DependencyArrows(PARENTS), 7).given(rows[:part])
        for s, r in itertools.product(range(9), range(6)):
            assert learnt.marginal(s, r).dense() == pytest.approx(whole.marginal(s, r).dense(), abs=1e-12)


# -------------------------------------------------------------------------------------- order and immutability


def test_evidence_adds_up_exactly_whatever_its_order() -> None:
    rows, rng = world(7)
    agent = fit_agent(evidence_table(rows[:80]), DependencyArrows(PARENTS), 7)
    e, f = rows[80:100], [*rows[90:110], Evidence(3, 1, 2, 50.5, kind="mass")]
    together = agent.given((*e, *f))
    assert agent.given(e).given(f) == together == agent.given(f).given(e)
    mixed = [*e, *f]
    rng.shuffle(mixed)  # type: ignore[arg-type]
    other = agent
    for one in mixed:
        other = other.given(one)
    assert other == together
    for s, r in itertools.product(range(9), range(6)):
        assert (other.marginal(s, r).dense() == together.marginal(s, r).dense()).all()
    assert agent.given(()) == agent
    assert agent.given(e) != agent


def test_fitting_does_not_depend_on_order() -> None:
    rows, rng = world(8)
    mixed = list(rows)
    rng.shuffle(mixed)  # type: ignore[arg-type]
    one, two = (fit_agent(evidence_table(order), DependencyArrows(PARENTS), 7) for order in (rows, mixed))
    for s, r in itertools.product(range(9), range(6)):
        assert (one.marginal(s, r).dense() == two.marginal(s, r).dense()).all()


def test_an_agent_never_changes() -> None:
    rows, _ = world(9)
    agent = fit_agent(evidence_table(rows), DependencyArrows(PARENTS), 7)
    before = [agent.marginal(s, r).dense() for s in range(9) for r in range(6)]
    agent.given([Evidence(2, 1, 3, 500.0, kind="mass"), Evidence(2, 0, 1)]).marginal(2, 1).mode()
    after = [agent.marginal(s, r).dense() for s in range(9) for r in range(6)]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    with pytest.raises(AttributeError):
        agent.extra = ()  # type: ignore[misc]


def test_relations_without_arrows_between_them_do_not_meet() -> None:
    rows, _ = world(10)
    agent = fit_agent(evidence_table(rows), DependencyArrows(PARENTS), 7)
    after = agent.given([Evidence(s, 0, 3, 9.0) for s in range(8)])
    for s in range(8):
        for r in (2, 3):
            assert (after.marginal(s, r).dense() == agent.marginal(s, r).dense()).all()
    assert any((after.marginal(s, 1).dense() != agent.marginal(s, 1).dense()).any() for s in range(8))


def test_a_child_update_reaches_subjects_that_share_the_upstream_object() -> None:
    """Ruling B5: kept, as it defines the published agent."""
    agent = micro()
    after = agent.given(Evidence(S, DOWN, Y, 71.8, kind="mass"))
    assert after.marginal(U, DOWN).at(np.array([Y]))[0] > agent.marginal(U, DOWN).at(np.array([Y]))[0] + 0.3
    assert (after.pair(U, DOWN).dense() == agent.pair(U, DOWN).dense()).all()


# ------------------------------------------------------------------------------------------- shares and targets


def test_denials_do_not_mention() -> None:
    """Ruling B3: by default π weighs items by their positive mass on the object."""
    agent = fit_agent(evidence_table(MICRO), DependencyArrows((-1, UP)), 5)
    shares = {A: (2 + 2 / 3) / 3, C: (1 / 3) / 3}  # b is only denied
    e = np.array([0.25, 0.25, 0.25, 2.25, 1.0])
    assert agent.conditional(DOWN, C, "frequency").dense() == pytest.approx(e / e.sum())
    a = shares[A] * e + np.eye(5)[X]
    assert agent.conditional(DOWN, A).dense() == pytest.approx((0.2 + a) / (1 + a.sum()))
    assert agent.conditional(DOWN, B).dense() == pytest.approx((0.2 + 2 * np.eye(5)[Y]) / 3)


def test_a_subject_that_is_only_denied_upstream_says_nothing_about_conditionals() -> None:
    agent = fit_agent(evidence_table([Evidence(S, UP, A, -1), Evidence(S, DOWN, X)]), DependencyArrows((-1, UP)), 5)
    assert all((agent.conditional(DOWN, o).dense() == 0.2).all() for o in range(5))
    assert agent.has_parent(S, DOWN)
    assert agent.marginal(S, DOWN).dense() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 0.975])
def test_the_mass_reaches_its_target_and_no_more(target: float) -> None:
    rows, _ = world(11, objects=20)
    agent = fit_agent(evidence_table(rows), DependencyArrows(PARENTS), 20)
    for s, r, o in itertools.product(range(9), range(6), (0, 3, 19)):
        before = agent.pair(s, r).at(np.array([o]))[0] if agent.knows(s, r) else 1 / 20
        mass = agent.mass_to_reach(s, r, o, target)
        if mass == 0:
            assert before >= target - 1e-12
            continue
        after = agent.given(Evidence(s, r, o, mass, kind="mass"))
        assert after.pair(s, r).at(np.array([o]))[0] >= target - 1e-12
        if mass > 1:
            less = agent.given(Evidence(s, r, o, mass - 1, kind="mass"))
            assert less.pair(s, r).at(np.array([o]))[0] < target


def test_no_mass_changes_nothing() -> None:
    agent = micro()
    assert agent.given(Evidence(S, UP, A, 0.0, kind="mass")) == agent


# ------------------------------------------------------------------------------------------------------ queries


def test_unknown_subjects_get_the_relation_prior() -> None:
    agent = micro()
    novel = 99
    assert not agent.knows(novel, UP)
    up = np.array([3.083333 + 1, 0.25 + 2, 0.666667, 0.5, 0.5])
    assert agent.pair(novel, UP).dense() == pytest.approx((0.2 + up) / (1 + up.sum()), abs=1e-6)
    assert (agent.marginal(novel, DOWN).dense() == agent.pair(novel, DOWN).dense()).all()
    told = agent.given(Evidence(novel, UP, B, 200.0, kind="mass"))
    assert told.has_parent(novel, DOWN)
    assert told.marginal(novel, DOWN).mode() == agent.conditional(DOWN, B).mode() == Y
    empty = fit_agent(evidence_table([]), DependencyArrows((-1, UP)), 5)
    assert empty.pair(0, UP).dense() == pytest.approx([0.2] * 5)
    assert empty.pair(0, UP, "frequency").dense() == pytest.approx([0.2] * 5)
    assert empty.pair(0, UP).mode() == 0


def test_batches_answer_like_single_questions() -> None:
    rows, rng = world(12)
    agent = fit_agent(evidence_table(rows), DependencyArrows(PARENTS), 7).given(Evidence(0, 0, 5, 40.0, kind="mass"))
    facts = rng.integers((9, 6, 7), size=(300, 3))
    for query, ask in (("marginal", agent.marginal), ("pair", agent.pair)):
        for reading in READINGS:
            found = agent.probabilities(facts, query, reading)  # type: ignore[arg-type]
            single = [ask(s, r, reading).dense()[o] for s, r, o in facts.tolist()]
            assert found == pytest.approx(single, abs=1e-15)
    assert agent.probabilities(np.empty((0, 3), dtype=np.int64)).shape == (0,)


def test_who_has_evidence() -> None:
    agent = micro()
    assert agent.fitted.subjects_with(DOWN).tolist() == [S, T, U]
    assert (agent.knows(S, UP), agent.knows(9, UP), agent.has_parent(S, UP)) == (True, False, False)


def test_a_prior_without_mass_and_strange_evidence_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        AgentSpec(prior=0)
    for strange in (Evidence(0, 2, 0), Evidence(0, 0, 5), Evidence(-1, 0, 0)):
        with pytest.raises(BeliefError, match="lies outside of 2 relations and 5 objects"):
            fit_agent(evidence_table([strange]), DependencyArrows((-1, UP)), 5)
        with pytest.raises(BeliefError, match="lies outside of 2 relations and 5 objects"):
            micro().given(strange)
    with pytest.raises(BeliefError, match="at least 2 objects"):
        fit_agent(evidence_table([]), DependencyArrows((-1,)), 1)
    with pytest.raises(BeliefError, match="not a probability strictly between"):
        micro().mass_to_reach(S, UP, A, 1.0)
