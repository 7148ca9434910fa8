"""What the agent believes of a point's questions, before its edit, after it, and after many edits of one model (§6.7, §9.4).

In a lifelong run an edit is evidence about its one fact, strong enough to bring that fact to the target. To everybody else it is
one observation (:mod:`raysweep.belief.agent.agent`). The published update, one at a time from the pristine agent, enters the pooled
distributions with its whole mass; a point's own targets (``belief`` study) stay so.
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
    found: dict[str, float] = {}
    if state == "pre":
        found |= {name: agent_probability(point.targets) for name in ("o_given_s_r", "paraphrase_case")}
    for name, watch in (point.watched or {}).items():
        own = state != "pre" and name == SAME_SAME
        for role, target in watch.targets[state].items():
            found[f"editing_{name}_{role}"] = target.posterior_prob_o_given_s_r if own else agent_probability(target)
    beliefs = {name: claim.beliefs[state] for name, claim in point.claims.items()}
    return _completed(point, found, beliefs, found.get(f"editing_{SAME_SAME}_{REQUESTED}"))


def _completed(
    point: EvalPoint, found: dict[str, float], beliefs: Mapping[str, float], request: float | None
) -> dict[str, float]:
    """Return *found* with all that follows from it and from the beliefs in the claims A and B; only questions the point has.

    Args:
        point: whose questions.
        found: probabilities of the watched facts' objects, by question.
        beliefs: in the claims, by name; empty if the point has none.
        request: probability of the fact as the point requests it.
    """
    original, requested = (f"editing_{SAME_SAME}_{role}" for role in (ORIGINAL, REQUESTED))
    if original in found:
        found |= dict.fromkeys(("o_given_s_r", "paraphrase_case"), found[original])
    if requested in found:
        found["new_fact_case"] = found[requested]
    if beliefs:
        a, b = (point.claims[name].fact for name in "AB")
        p, q = beliefs["A"], beliefs["B"]
        found["A_sentence"] = p
        found |= label_probabilities(point.questions, CLAIM_QUESTIONS, p, q, joint_probability(a, b, p, q))
        if request is not None and point.request is not None:
            both = joint_probability(point.fact._replace(object=point.request.object), b, request, q)
            found |= label_probabilities(point.questions, REQUEST_QUESTIONS, request, q, both)
    return {name: p for name, p in found.items() if name in point.questions}


def edit_evidence(agent: Agent, fact: Triple, wanted: int, target: float) -> Evidence:
    """Return the edit of (subject, relation) of *fact* to *wanted* that brings its pair posterior to *target*.

    It is measured against the evidence that is no edit, since it replaces an earlier edit of the same fact. So it does not depend
    on edits of other facts, nor on their order. Where *wanted* is believed more than that already: half-way to 1 (§6.5).
    """
    subject, relation, _ = fact
    plain = agent.without_edit(subject, relation)
    reach = target
    if plain.knows(subject, relation):
        now = float(plain.pair(subject, relation).at(np.array([wanted]))[0])
        reach = now + (1 - now) / 2 if now > target else target
    mass = plain.mass_to_reach(subject, relation, wanted, reach)
    return Evidence(subject, relation, wanted, mass, kind="edit")


def agents_after_edits(agent: Agent, points: Sequence[EvalPoint], target: float) -> Iterator[Agent]:
    """Yield *agent* after none, one, two, … of the requested updates, each strong enough to reach *target*.

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
        asked = watch.objects[REQUESTED] if edit is None or name != SAME_SAME else edit.object
        roles = {ORIGINAL: watch.fact.object, REQUESTED: asked, MODAL: belief.mode()}
        for role, p in zip(roles, belief.at(np.array(list(roles.values()))).tolist(), strict=True):
            key = f"editing_{name}_{role}"
            questions[key] = replace(questions[key], target=objects[roles[role]])
            expected[key] = p
    requested = f"editing_{SAME_SAME}_{REQUESTED}"
    if requested in questions:
        questions["new_fact_case"] = replace(questions["new_fact_case"], target=questions[requested].target)
    beliefs = {name: _probability(agent, claim.fact) for name, claim in point.claims.items()}
    request = None if point.request is None else _probability(agent, point.fact._replace(object=point.request.object))
    return questions, _completed(point, expected, beliefs, request)


def _probability(agent: Agent, fact: Triple) -> float:
    return float(agent.belief(fact.subject, fact.relation).at(np.array([fact.object]))[0])
