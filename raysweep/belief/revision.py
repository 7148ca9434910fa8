"""What the agent believes of a point's questions, before its edit, after it, and after many edits of one model (§6.7, §9.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysweep.belief.agent import Agent
from raysweep.belief.evidence import Evidence
from raysweep.belief.metrics import believed
from raysweep.belief.points import MODAL, ORIGINAL, REQUESTED, SAME_SAME, EvalPoint, Question
from raysweep.errors import BeliefError


def expectations(point: EvalPoint, state: str) -> dict[str, float]:
    """Return the agent's probability of each question it is asked, by name, in *state* (``pre`` or ``target``).

    The edited fact is read off the pair posterior, the others off the marginal (ruling B5).
    """
    found = {"o_given_s_r": believed(point.targets)} if state == "pre" and "o_given_s_r" in point.questions else {}
    for name, watch in (point.watched or {}).items():
        for role, target in watch.targets[state].items():
            own = state != "pre" and name == SAME_SAME
            p = target.posterior_prob_o_given_s_r if own else believed(target)
            found[f"editing_{name}_{role}"] = p
            if name == SAME_SAME and role == REQUESTED:
                found["new_fact_case"] = p
    return found


def revisions(agent: Agent, points: Sequence[EvalPoint], target: float) -> Iterator[Agent]:
    """Yield *agent* after none, one, two, … of the requested updates, each strong enough to reach *target* when it comes.

    Raises:
        BeliefError: a point has no request.
    """
    yield agent
    for point in points:
        if point.request is None:
            raise BeliefError(f"point {point.id} has no request", hint="points.editing: true")
        fact, wanted = point.fact, point.request.object
        now = float(agent.pair(fact.subject, fact.relation).at(np.array([wanted]))[0])
        reach = now + (1 - now) / 2 if now > target else target  # already there: half-way to 1 (§6.5)
        mass = agent.mass_to_reach(fact.subject, fact.relation, wanted, reach)
        agent = agent.given(Evidence(fact.subject, fact.relation, wanted, mass, kind="mass"))
        yield agent


def revised(
    point: EvalPoint, agent: Agent, objects: Sequence[str], *, edited: bool
) -> tuple[Mapping[str, Question], Mapping[str, float]]:
    """Return the point's questions with the modal objects of *agent*, and what *agent* believes of them.

    Args:
        point: with a request.
        agent: given every edit so far.
        objects: names of the graph's objects.
        edited: the point's own update is among them.
    """
    questions = dict(point.questions)
    expected: dict[str, float] = {}
    for name, watch in (point.watched or {}).items():
        subject, relation, _ = watch.fact
        belief = agent.pair(subject, relation) if edited and name == SAME_SAME else agent.marginal(subject, relation)
        roles = {ORIGINAL: watch.fact.object, REQUESTED: watch.objects[REQUESTED], MODAL: belief.mode()}
        for role, p in zip(roles, belief.at(np.array(list(roles.values()))).tolist(), strict=True):
            key = f"editing_{name}_{role}"
            questions[key] = replace(questions[key], target=objects[roles[role]])
            expected[key] = p
    expected["new_fact_case"] = expected[f"editing_{SAME_SAME}_{REQUESTED}"]
    return questions, expected
