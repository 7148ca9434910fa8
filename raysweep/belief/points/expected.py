"""What the agent believes of a point's questions, before its edit, after it, and after many edits of one model.

In a lifelong run an edit is evidence about its one fact, strong enough to bring that fact to the target. To everybody else it is
one observation (:mod:`raysweep.belief.agent.update`). The published update, one at a time from the pristine agent, enters the
pooled distributions with its whole mass; a point's own targets (``belief`` study) stay so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysweep.belief.agent.agent import Agent
from raysweep.belief.corpus.evidence import Evidence, Triple
from raysweep.belief.points.claims import CLAIM_QUESTIONS, REQUEST_QUESTIONS, joint_probability, label_probabilities
from raysweep.belief.points.types import MODAL, ORIGINAL, REQUESTED, SAME_SAME, EvalPoint, PointQuestion
from raysweep.belief.report.metrics import agent_probability
from raysweep.errors import BeliefError


def expected_probabilities(point: EvalPoint, state: str) -> dict[str, float]:
    """Return the agent's probability of each question's target, by name, in *state* (``pre`` or ``target``).

    The edited fact is read off the pair posterior, the others off the marginal (ruling B5).
    """
    expected: dict[str, float] = {}
    # After an edit these two are read off the watched facts, in _with_consequences.
    if state == "pre":
        expected |= {name: agent_probability(point.targets) for name in ("o_given_s_r", "paraphrase_case")}
    for name, watch in (point.watched or {}).items():
        is_edited = state != "pre" and name == SAME_SAME
        for role, target in watch.targets[state].items():
            p = target.posterior_prob_o_given_s_r if is_edited else agent_probability(target)
            expected[f"editing_{name}_{role}"] = p
    claims = {name: claim.beliefs[state] for name, claim in point.claims.items()}
    return _with_consequences(point, expected, claims, expected.get(f"editing_{SAME_SAME}_{REQUESTED}"))


def _with_consequences(
    point: EvalPoint, expected: dict[str, float], claims: Mapping[str, float], request: float | None
) -> dict[str, float]:
    """Return *expected* with all that follows from it and from the beliefs in the claims; only questions the point has.

    Args:
        point: whose questions.
        expected: probabilities of the watched facts' objects, by question.
        claims: beliefs in A and B; empty if the point has none.
        request: probability of the fact as the point requests it.
    """
    original, requested = (f"editing_{SAME_SAME}_{role}" for role in (ORIGINAL, REQUESTED))
    # The point's own fact is one of the watched ones, so their numbers answer it.
    if original in expected:
        expected |= dict.fromkeys(("o_given_s_r", "paraphrase_case"), expected[original])
    if requested in expected:
        expected["new_fact_case"] = expected[requested]
    if claims:
        a, b = (point.claims[name].fact for name in "AB")
        p, q = claims["A"], claims["B"]
        expected["A_sentence"] = p
        both = joint_probability(a, b, p, q)
        expected |= label_probabilities(point.questions, CLAIM_QUESTIONS, p, q, both)
        if request is not None and point.request is not None:
            # The same sentences with the requested fact in the place of A.
            both = joint_probability(point.fact._replace(object=point.request.object), b, request, q)
            expected |= label_probabilities(point.questions, REQUEST_QUESTIONS, request, q, both)
    return {name: p for name, p in expected.items() if name in point.questions}


def edit_evidence(agent: Agent, fact: Triple, requested: int, target: float) -> Evidence:
    """Return the edit of (subject, relation) of *fact* to *requested* that brings its pair posterior to *target*.

    It is measured against the evidence that is no edit, since it replaces an earlier edit of the same fact. So it does not depend
    on edits of other facts, nor on their order. Where *requested* is believed more than that already: half-way to 1.

    Args:
        agent: given the edits before it.
        fact: whose subject and relation are edited.
        requested: the object asked for.
        target: posterior probability of it afterwards.
    """
    subject, relation, _ = fact
    # The new edit will replace this one, so it must not count towards the target.
    without_edit = agent.without_edit(subject, relation)
    reach = target
    if without_edit.knows(subject, relation):
        current = float(without_edit.pair(subject, relation).at(np.array([requested]))[0])
        reach = current + (1 - current) / 2 if current > target else target
    mass = without_edit.mass_to_reach(subject, relation, requested, reach)
    return Evidence(subject, relation, requested, mass, kind="edit")


def agents_after_edits(agent: Agent, points: Sequence[EvalPoint], target: float) -> Iterator[Agent]:
    """Yield *agent* after none, one, two, … of the requested updates, each strong enough to reach *target*.

    Args:
        agent: the pristine one.
        points: in the order in which they are edited.
        target: posterior probability of each requested object.

    Raises:
        BeliefError: a point has no request.
    """
    yield agent
    for point in points:
        if point.request is None:
            raise BeliefError(f"point {point.id} has no request", hint="points.editing: true")
        agent = agent.given(edit_evidence(agent, point.fact, point.request.object, target))
        yield agent


def revised_questions(
    point: EvalPoint, agent: Agent, objects: Sequence[str]
) -> tuple[Mapping[str, PointQuestion], Mapping[str, float]]:
    """Return the point's questions with the modal objects of *agent*, and what *agent* believes of them.

    Of a fact that was edited twice the later request is asked for.

    Args:
        point: with a request.
        agent: given every edit so far; it reads each edited fact off its pair distribution.
        objects: names of the graph's objects.
    """
    questions = dict(point.questions)
    expected: dict[str, float] = {}
    for name, watch in (point.watched or {}).items():
        subject, relation, _ = watch.fact
        belief, edit = agent.belief(subject, relation), agent.edit(subject, relation)
        requested = watch.objects[REQUESTED] if edit is None or name != SAME_SAME else edit.object
        # The modal object follows the agent of now; the published one is fixed when the point is made.
        roles = {ORIGINAL: watch.fact.object, REQUESTED: requested, MODAL: belief.mode()}
        for role, p in zip(roles, belief.at(np.array(list(roles.values()))).tolist(), strict=True):
            key = f"editing_{name}_{role}"
            questions[key] = replace(questions[key], target=objects[roles[role]])
            expected[key] = p
    key = f"editing_{SAME_SAME}_{REQUESTED}"
    if key in questions:
        questions["new_fact_case"] = replace(questions["new_fact_case"], target=questions[key].target)
    claims = {name: _probability(agent, claim.fact) for name, claim in point.claims.items()}
    request = None if point.request is None else _probability(agent, point.fact._replace(object=point.request.object))
    return questions, _with_consequences(point, expected, claims, request)


def _probability(agent: Agent, fact: Triple) -> float:
    """Return what *agent* believes of *fact*."""
    return float(agent.belief(fact.subject, fact.relation).at(np.array([fact.object]))[0])
