"""Lifelong targets: a perfect editor reaches every one of them, a subject nobody edited keeps its truth, the later edit holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from raysweep.belief.agent.agent import Agent
from raysweep.belief.corpus.evidence import Evidence
from raysweep.belief.graph.graph import KnowledgeGraph, world_graph
from raysweep.belief.lm.asking import Reply
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.expected import agents_after_edits, edit_evidence, expected_probabilities, revised_questions
from raysweep.belief.points.types import MODAL, ORIGINAL, REQUESTED, SAME_SAME, WATCHED_FACTS, EvalPoint
from raysweep.belief.report.metrics import contains_answer, is_exact_answer
from raysweep.belief.report.tables import Stage, lifelong_rows
from raysweep.belief.spec import BeliefSpec
from raysweep.belief.testbed import TestbedParts, build_parts, read_setting
from raysweep.errors import BeliefError
from raysweep.world import build_world
from tests.unit.belief.dense import Dense
from tests.unit.belief.test_corpus import HEADLINE, people

ROOT = Path(__file__).parents[3]
NOISY = BeliefSpec.model_validate(
    {
        "generative": {"min_true_prob": 0.6, "samples": 10},
        "corpus": {"num_atomic_facts": 601, **HEADLINE},
        "points": {"size": 200, "novel": 6},
    }
)


class Setting:
    """A basis, its points, and what is true in it."""

    def __init__(self, spec: BeliefSpec, graph: KnowledgeGraph) -> None:
        self.spec = spec
        self.parts: TestbedParts = build_parts(spec, graph)
        self.points = list(self.parts.points())
        self.names = graph.objects

    @cached_property
    def facts(self) -> dict[tuple[int, int], int]:
        """The true objects of what was written about."""
        rows = self.parts.graph.facts[: self.parts.corpus.facts, :2].tolist()
        return {(s, r): int(o) for (s, r), o in zip(rows, self.parts.model.true_objects.tolist(), strict=False)}

    @cached_property
    def evidence(self) -> list[Evidence]:
        """The corpus' evidence, item by item."""
        told = self.parts.corpus.evidence
        columns = (told.subject, told.relation, told.object, told.weight, told.count)
        return [Evidence(*item) for item in zip(*(column.tolist() for column in columns), strict=True)]

    def order(self, seed: int, size: int = 60) -> list[EvalPoint]:
        return [self.points[i] for i in np.random.default_rng(seed).permutation(len(self.points))[:size]]

    def agents(self, points: Sequence[EvalPoint]) -> list[Agent]:
        return list(agents_after_edits(self.parts.agent, points, self.spec.points.target))


class PerfectEditor:
    """Holds every edit and every fact of subjects nobody edited; what follows from edits it works out densely."""

    def __init__(self, setting: Setting, agent: Agent, told: Sequence[EvalPoint]) -> None:
        self.setting, self.edits = setting, {p.fact[:2]: p.request.object for p in told if p.request}
        self.touched = {subject for subject, _ in self.edits}
        arrows, objects = setting.parts.arrows, len(setting.names)
        self.dense = Dense([*setting.evidence, *agent.extra], arrows.parent, objects)

    def answer(self, subject: int, relation: int) -> str:
        at = (subject, relation)
        if at in self.edits:
            return self.setting.names[self.edits[at]]
        if subject not in self.touched and at in self.setting.facts:
            return self.setting.names[self.setting.facts[at]]
        found = self.dense.belief(*at)
        return self.setting.names[int(np.flatnonzero(found >= found.max() * (1 - 1e-10))[0])]


def stage(setting: Setting, agent: Agent, told: Sequence[EvalPoint], editor: PerfectEditor) -> Stage:
    """What the editor answers about the points edited so far, as a lifelong study keeps it."""
    asked = [revised_questions(point, agent, setting.names) for point in told]
    replies = []
    for point, (questions, expected) in zip(told, asked, strict=True):
        own = {name: Reply(expected.get(name, 0.5), q.target, True, True) for name, q in questions.items()}
        for name, watch in (point.watched or {}).items():
            said = editor.answer(*watch.fact[:2])
            for key in (*(f"editing_{name}_{role}" for role in (ORIGINAL, REQUESTED, MODAL)), "new_fact_case"):
                if key != "new_fact_case" or name == SAME_SAME:
                    target = questions[key].target
                    own[key] = Reply(expected[key], said, contains_answer(said, target), is_exact_answer(said, target))
        replies.append(own)
    targets = [{name: q.target for name, q in questions.items()} for questions, _ in asked]
    return Stage("perfect", len(told), told, replies, [e for _, e in asked], targets)


@pytest.fixture(scope="module")
def shipped() -> Setting:
    return Setting(read_setting(ROOT / "hparams/belief/belief-small.yaml"), world_graph(build_world()))


@pytest.fixture(scope="module")
def noisy() -> Setting:
    return Setting(NOISY, people())


@pytest.fixture(params=["shipped", "noisy"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_editor_reaches_every_lifelong_target(setting: Setting, seed: int) -> None:
    points = setting.order(seed)
    agents = setting.agents(points)
    for step in (1, 10, 30, 60):
        told = points[:step]
        editor = PerfectEditor(setting, agents[step], told)
        (row,) = lifelong_rows([stage(setting, agents[step], told, editor)])
        for column in ("acc: edited", "acc: same s, other r", "acc: other s, same r", "acc: other s, other r"):
            assert row[column].mean == 1, (step, column)  # type: ignore[union-attr]
        assert row["new answer"] is None or row["new answer"].mean == 1  # type: ignore[union-attr]
    assert row["n: answer changes"] > 5  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(2))
def test_a_subject_that_nobody_edited_keeps_its_truth(setting: Setting, seed: int) -> None:
    points = setting.order(seed, len(setting.points))
    agents = setting.agents(points)
    for step in (60, len(points)):
        touched = {p.fact.subject for p in points[:step]}
        kept = [at for at in setting.facts if at[0] not in touched]
        assert len(kept) > 100
        wrong = [at for at in kept if agents[step].belief(*at).mode() != setting.facts[at]]
        assert not wrong, f"{len(wrong)} of {len(kept)} after {step} edits"


def test_the_published_rule_drops_truths_nobody_edited(shipped: Setting) -> None:
    """What ``edit_mass_pooled`` brings back, and what the default mends."""
    spec = shipped.spec.model_copy(update={"parity": ParitySpec(edit_mass_pooled=True)})
    published = Setting(spec, shipped.parts.graph)
    points = published.points[:60]
    after = published.agents(points)[60]
    touched = {p.fact.subject for p in points}
    dropped = [at for at, true in published.facts.items() if at[0] not in touched and after.belief(*at).mode() != true]
    assert len(dropped) > 30


def test_no_target_says_other_than_the_edit_of_its_fact(setting: Setting) -> None:
    """A fact that another point watches may be edited itself; then its edit holds there too."""
    points = setting.order(5, 150)
    agent = setting.agents(points)[150]
    edits = {p.fact[:2]: p.request.object for p in points if p.request}
    met = 0
    for point in points:
        questions, expected = revised_questions(point, agent, setting.names)
        for name, watch in (point.watched or {}).items():
            if watch.fact[:2] in edits:
                met += name != SAME_SAME
                assert questions[f"editing_{name}_{MODAL}"].target == setting.names[edits[watch.fact[:2]]]
                assert expected[f"editing_{name}_{MODAL}"] >= 0.95
    assert met > 50


def test_the_order_of_edits_of_different_facts_does_not_matter(noisy: Setting) -> None:
    points = noisy.order(1)
    one, other = noisy.agents(points)[-1], noisy.agents(points[::-1])[-1]
    assert one == other
    for point in points:
        assert revised_questions(point, one, noisy.names) == revised_questions(point, other, noisy.names)


def test_of_two_edits_of_one_fact_the_later_is_asked_for(noisy: Setting) -> None:
    points = noisy.order(2, 20)
    first = next(p for p in points if p.known)
    assert first.request is not None
    assert first.watched is not None
    other = next(o for o in range(len(noisy.names)) if o not in (first.request.object, first.fact.object))
    watched = {
        name: replace(w, objects={**w.objects, REQUESTED: other}) for name, w in first.watched.items()
    }  # fmt: skip
    again = replace(first, id=999, request=replace(first.request, object=other), watched=watched)
    told = [*points, again]
    agents = noisy.agents(told)
    editor = PerfectEditor(noisy, agents[-1], told)
    (row,) = lifelong_rows([stage(noisy, agents[-1], told, editor)])
    assert row["acc: edited"].mean == row["acc: other s, other r"].mean == 1  # type: ignore[union-attr]
    for point in (first, again):
        questions, expected = revised_questions(point, agents[-1], noisy.names)
        assert questions["new_fact_case"].target == noisy.names[other]
        assert expected["new_fact_case"] >= 0.95
    questions, expected = revised_questions(first, agents[-1], noisy.names)
    assert expected["requested_TF_case"] < 0.1, "the first request is no longer believed"
    assert noisy.agents([*(p for p in points if p is not first), again])[-1] == agents[-1]


def test_every_question_has_the_agents_own_answer(noisy: Setting) -> None:
    """Before the edit, after it, and in a lifelong run; sentences by the truth tables of two claims."""
    for point in noisy.points:
        before, after = expected_probabilities(point, "pre"), expected_probabilities(point, "target")
        assert before.keys() == after.keys() == point.questions.keys()
        assert point.request is not None
        if not point.known:
            continue
        edited = noisy.parts.agent.given(
            edit_evidence(noisy.parts.agent, point.fact, point.request.object, noisy.spec.points.target)
        )
        _, lifelong = revised_questions(point, edited, noisy.names)
        assert lifelong.keys() == after.keys()
        assert after["new_fact_case"] == pytest.approx(lifelong["new_fact_case"], abs=1e-12)
        for found, agent in ((before, noisy.parts.agent), (lifelong, edited)):
            a, b = (point.claims[name].fact for name in "AB")
            p, q = (float(agent.belief(*c[:2]).at(np.array([c.object]))[0]) for c in (a, b))
            both = p * q if a[:2] != b[:2] else p if a == b else 0
            truth = {name: v if point.questions[name].target == "true" else 1 - v for name, v in found.items()}
            assert found["A_sentence"] == p
            assert truth["A_TF_case"] == pytest.approx(p)
            assert truth["B_TF_case"] == pytest.approx(q)
            assert truth["not_A_case"] == pytest.approx(1 - p)
            assert truth["A_and_B_case"] == pytest.approx(both, abs=1e-12)
            assert truth["B_and_A_case"] == pytest.approx(both, abs=1e-12)
            assert truth["A_or_B_case"] == pytest.approx(p + q - both)
            asked = float(agent.belief(*point.fact[:2]).at(np.array([point.request.object]))[0])
            assert truth["requested_TF_case"] == pytest.approx(asked)
            assert truth["not_requested_case"] == pytest.approx(1 - asked)
            assert truth["requested_and_B_case"] == pytest.approx(truth["B_and_requested_case"])
            assert 0 <= truth["requested_and_B_case"] <= min(asked, q) + 1e-12
    assert sum(p.claims["A"].fact[:2] == p.claims["B"].fact[:2] for p in noisy.points if p.known) < 5
    assert {name for p in noisy.points for name in (p.watched or {})} == set(WATCHED_FACTS)


def test_a_point_without_a_request_is_refused(noisy: Setting) -> None:
    with pytest.raises(BeliefError, match="has no request"):
        noisy.agents([replace(noisy.points[0], request=None)])
