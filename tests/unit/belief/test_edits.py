"""An edit settles one fact; to everybody else it is one observation: bounds, order, brute force, the published rule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from raysweep.belief.agent.agent import Agent, fit_agent
from raysweep.belief.corpus.evidence import Evidence, Triple, evidence_table
from raysweep.belief.graph.dependencies import DependencyArrows
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.expected import edit_evidence
from raysweep.belief.spec import AgentSpec
from raysweep.errors import BeliefError
from tests.unit.belief.dense import Dense
from tests.unit.belief.test_agent import DOWN, PARENTS, READINGS, UP, A, B, C, S, T, U, X, Y, agree, micro, world

SUBJECTS, RELATIONS, OBJECTS = 9, 6, 7  # of `world`; subject 8 is a novel one
MASSES = (209.5, 0.4, 1.0, 40.0, 3000.0)


def edits(rng: np.random.Generator, count: int = 12) -> list[Evidence]:
    """Edits of random facts, some of them of one fact."""
    facts = rng.integers((SUBJECTS, RELATIONS, OBJECTS), size=(count, 3)).tolist()
    return [Evidence(s, r, o, MASSES[i % len(MASSES)], kind="edit") for i, (s, r, o) in enumerate(facts)]


def agent_of(rows: list[Evidence], **parity: bool) -> Agent:
    return fit_agent(
        evidence_table(rows),
        DependencyArrows(PARENTS),
        OBJECTS,
        AgentSpec(prior=1.5),
        ParitySpec.model_validate(parity),
    )


def conditional(agent: Agent, r: int, above: int) -> np.ndarray:
    """The evidence vector of one conditional."""
    counts = agent._conditional(r * agent.fitted.objects + above)
    vector = np.zeros(agent.fitted.objects)
    if counts is not None:
        vector += counts.background
        vector[counts.objects] += counts.excess
        assert vector.sum() == pytest.approx(counts.total, abs=1e-9)
    return vector


# ---------------------------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("by_items", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sparse_is_dense_with_edits(seed: int, by_items: bool, whole: bool) -> None:
    rows, rng = world(seed)
    agent = agent_of(rows, pi_by_items=by_items, edit_mass_pooled=whole)
    more = [*edits(rng), Evidence(3, 1, 2, 7.5, kind="mass"), Evidence(1, 0, 4), Evidence(2, 2, 3, -1)]
    for some in (more[:1], more[:5], more):
        dense = Dense([*rows, *some], PARENTS, OBJECTS, prior=1.5, by_items=by_items, whole_mass=whole)
        found = agent.given(some)
        agree(found, dense)
        for s, r, reading in itertools.product(range(SUBJECTS), range(RELATIONS), READINGS):
            assert found.belief(s, r, reading).dense() == pytest.approx(dense.belief(s, r, reading), abs=1e-12)


def test_beliefs_by_enumeration_of_worlds() -> None:
    """Sum over every (upstream, downstream) pair of objects; an edit changes the upstream factor, one observation the other."""
    agent = micro(pi_by_items=False)
    known = agent.given(Evidence(T, UP, A, 300.0, kind="edit"))
    up = np.array([0.2 + 300, 0.2 + 2, 0.2, 0.2, 0.2]) / (1 + 2 + 300)
    # π of s: its items for a and c; of u: a. T's two sentences "y" count ⅔ under b and ⅓ under a: one mention beside two.
    e_s, e_t, e_u = np.array([0.25, 0.25, 0.25, 2.25, 1.0]), 2 * np.eye(5)[Y], np.eye(5)[X]
    under = {A: 8 / 9 * e_s + e_t / 3 + e_u, B: 2 / 3 * e_t, C: e_s / 9, X: np.zeros(5), Y: np.zeros(5)}
    joint = np.array([[up[o] * (0.2 + under[o][x]) / (1 + under[o].sum()) for x in range(5)] for o in range(5)])
    assert joint.sum() == pytest.approx(1)
    assert known.belief(T, DOWN).dense() == pytest.approx(joint.sum(axis=0), abs=1e-12)
    assert (known.belief(T, UP).dense() == known.pair(T, UP).dense()).all()
    assert known.pair(T, UP).dense() == pytest.approx(up, abs=1e-12)


def test_to_others_an_edit_is_one_more_sentence() -> None:
    """Where the subject has no more evidence downstream than upstream, pools are those of a corpus with one more sentence."""
    rows = [*(Evidence(S, UP, A) for _ in range(3)), Evidence(S, DOWN, X), Evidence(S, DOWN, X), Evidence(T, UP, B)]
    for told in (Triple(S, UP, B), Triple(S, DOWN, Y), Triple(T, UP, A), Triple(U, DOWN, X), Triple(U, UP, C)):
        edited = fit_agent(evidence_table(rows), DependencyArrows((-1, UP)), 5).given(
            Evidence(*told, 209.0, kind="edit")
        )
        written = fit_agent(evidence_table([*rows, Evidence(*told)]), DependencyArrows((-1, UP)), 5)
        for o in range(5):
            assert conditional(edited, DOWN, o) == pytest.approx(conditional(written, DOWN, o), abs=1e-12)
        for r in (UP, DOWN):
            assert edited.pair(99, r).dense() == pytest.approx(written.pair(99, r).dense(), abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("by_items", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_edits_move_no_more_observations_than_there_are_edits(seed: int, by_items: bool) -> None:
    rows, rng = world(seed)
    agent = agent_of(rows, pi_by_items=by_items)
    some = edits(rng, 30)
    for told in (*([edit] for edit in some), some[:10], some):
        after = agent.given(told)
        for child in (r for r in range(RELATIONS) if PARENTS[r] >= 0):
            concerned = [e for e in after.extra if e.relation in (child, PARENTS[child])]
            change = np.array([conditional(after, child, o) - conditional(agent, child, o) for o in range(OBJECTS)])
            assert change[change > 0].sum() <= sum(1 if by_items else min(e.amount, 1) for e in concerned) + 1e-9
            assert -change[change < 0].sum() <= len(concerned) + 1e-9
        for relation in range(RELATIONS):
            before, now = agent._prior(relation), after._prior(relation)
            assert now is not None
            new = sum(min(e.amount, 1) for e in after.extra if e.relation == relation)
            assert now.total - (before.total if before else 0) == pytest.approx(new, abs=1e-9)


def test_a_denied_upstream_fact_does_not_pour_everything_out() -> None:
    """With no positive mass upstream, one edit would otherwise bring all of a subject's evidence into one conditional."""
    rows = [Evidence(S, UP, A, -1), *(Evidence(S, DOWN, X) for _ in range(50)), *(Evidence(T, UP, B) for _ in range(9)),
            *(Evidence(T, DOWN, Y) for _ in range(9))]  # fmt: skip
    agent = fit_agent(evidence_table(rows), DependencyArrows((-1, UP)), 5).given(Evidence(S, UP, B, 100.0, kind="edit"))
    assert conditional(agent, DOWN, B) == pytest.approx([0, 0, 0, 1, 9])
    assert agent.belief(S, DOWN).mode() == Y


@pytest.mark.parametrize("parity", [False, True])
def test_subjects_nobody_touched_keep_what_they_believe(parity: bool) -> None:
    """Forty subjects share an upstream object; all but one are edited, downstream or upstream."""
    rows = [
        Evidence(s, r, o)
        for s in range(40)
        for r, o in ((UP, A if s < 25 else B), (DOWN, X if s < 25 else Y))
        for _ in range(5)
    ]
    agent = fit_agent(evidence_table(rows), DependencyArrows((-1, UP)), 5, parity=ParitySpec(edit_mass_pooled=parity))
    now = agent
    for s in range(1, 39):
        told = Triple(s, DOWN, Y) if s % 2 else Triple(s, UP, B if s < 25 else A)
        now = now.given(edit_evidence(now, told, told.object, 0.95))
    kept = [now.belief(s, DOWN).mode() == agent.belief(s, DOWN).mode() for s in (0, 39)]
    assert kept == [not parity, True], "the published rule drops the truth of subject 0"
    assert all((now.pair(s, r).dense() == agent.pair(s, r).dense()).all() for s in (0, 39) for r in (UP, DOWN))
    if not parity:
        assert now.belief(0, DOWN).at(np.array([X]))[0] > 0.6
        told = [s for s in range(1, 39) if s % 2 == 0]
        assert all(now.belief(s, DOWN).mode() == (Y if s < 25 else X) for s in told), (
            "what follows from an edit follows"
        )


# ------------------------------------------------------------------------------------------- order and contradiction


def test_edits_of_different_facts_commute_exactly() -> None:
    rows, rng = world(7)
    agent = agent_of(rows)
    facts = [Triple(s, r, int(rng.integers(OBJECTS))) for s in range(SUBJECTS) for r in range(RELATIONS)][::3]

    def told(order: list[Triple]) -> Agent:
        now = agent
        for fact in order:
            now = now.given(edit_evidence(now, fact, fact.object, 0.95))
        return now

    one, mixed = told(facts), list(facts)
    rng.shuffle(mixed)  # type: ignore[arg-type]
    other = told(mixed)
    assert one == other
    for fact in facts:
        assert one.belief(*fact[:2]).mode() == fact.object
        assert one.belief(*fact[:2]).at(np.array([fact.object]))[0] >= 0.95
    for s, r in itertools.product(range(SUBJECTS), range(RELATIONS)):
        assert (one.belief(s, r).dense() == other.belief(s, r).dense()).all()


def test_given_adds_up_with_edits_too() -> None:
    rows, rng = world(8)
    agent, first, second = agent_of(rows), edits(rng, 10), edits(rng, 10)
    clash = replace(first[0], object=(first[0].object + 1) % OBJECTS)
    e, f = [*first, Evidence(0, 0, 1)], [clash, *second, Evidence(0, 0, 1), Evidence(2, 1, 1, 5.0, kind="mass")]
    together = agent.given((*e, *f))
    assert agent.given(e).given(f) == together
    one_by_one = agent
    for single in (*e, *f):
        one_by_one = one_by_one.given(single)
    assert one_by_one == together
    assert together.edit(clash.subject, clash.relation) == clash
    assert agent.edit(clash.subject, clash.relation) is None, "an agent never changes"


@pytest.mark.parametrize("target", [0.6, 0.95, 0.99])
def test_the_later_edit_of_a_fact_wins(target: float) -> None:
    agent = micro()
    for told in (Triple(S, UP, B), Triple(S, DOWN, A), Triple(99, UP, Y)):  # a root fact, a child fact, a novel subject
        alone = agent.given(edit_evidence(agent, told, told.object, target))
        now = agent
        for obj in (C, X, told.object, A, told.object):
            edit = edit_evidence(now, told, obj, target)
            assert edit == edit_evidence(agent, told, obj, target)
            now = now.given(edit)
            assert now.belief(*told[:2]).mode() == obj
            assert now.belief(*told[:2]).at(np.array([obj]))[0] >= target
        assert now == alone, "what was said before it is gone"
        assert now.without_edit(*told[:2]) == agent


def test_an_edit_to_what_is_believed_already_goes_half_way_to_1() -> None:
    agent = fit_agent(evidence_table([Evidence(S, UP, A, count=200)]), DependencyArrows((-1, UP)), 5)
    before = agent.pair(S, UP).at(np.array([A]))[0]
    assert before > 0.95
    edit = edit_evidence(agent, Triple(S, UP, A), A, 0.95)
    now = agent.given(edit)
    assert now.pair(S, UP).at(np.array([A]))[0] == pytest.approx(before + (1 - before) / 2, abs=1e-3)
    assert edit_evidence(now, Triple(S, UP, A), A, 0.95) == edit


# ------------------------------------------------------------------------------------------------ the published rule


def test_one_edit_with_its_whole_mass_is_the_published_update() -> None:
    for double, by_items in itertools.product((False, True), repeat=2):
        agent = micro(double_child_update=double, pi_by_items=by_items, edit_mass_pooled=True)
        for told in (Triple(S, UP, B), Triple(S, DOWN, Y), Triple(U, DOWN, Y), Triple(99, UP, B)):
            mass = agent.mass_to_reach(*told, 0.95)
            published = agent.given(Evidence(*told, mass, kind="mass"))
            edited = agent.given(edit_evidence(agent, told, told.object, 0.95))
            for s, r in itertools.product((S, T, U, 99), (UP, DOWN)):
                assert edited.marginal(s, r).dense() == pytest.approx(published.marginal(s, r).dense(), abs=1e-12)
                assert edited.pair(s, r).dense() == pytest.approx(published.pair(s, r).dense(), abs=1e-12)


def test_evidence_that_is_no_edit_is_untouched_by_the_switch() -> None:
    rows, _ = world(9)
    mass = Evidence(2, 1, 3, 500.0, kind="mass")
    ours, theirs = (agent_of(rows, edit_mass_pooled=whole).given(mass) for whole in (False, True))
    for s, r in itertools.product(range(SUBJECTS), range(RELATIONS)):
        assert (ours.marginal(s, r).dense() == theirs.marginal(s, r).dense()).all()


# -------------------------------------------------------------------------------------------------------- odd ones


def test_an_edit_of_no_mass_still_holds_its_fact() -> None:
    agent = micro()
    edit = Evidence(S, DOWN, X, 0.0, kind="edit")
    now = agent.given(edit)
    assert now.edit(S, DOWN) == edit
    assert (now.belief(S, DOWN).dense() == agent.pair(S, DOWN).dense()).all()
    assert now.marginal(S, DOWN).dense() == pytest.approx(agent.marginal(S, DOWN).dense(), abs=1e-15)


def test_edits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BeliefError, match="an edit cannot count 2 times"):
        Evidence(S, UP, A, 5.0, 2, "edit")
    with pytest.raises(BeliefError, match="mass -1"):
        Evidence(S, UP, A, -1, kind="edit")
    with pytest.raises(BeliefError, match="holds items only"):
        evidence_table([Evidence(S, UP, A, 5.0, kind="edit")])
