"""What the agent believes of a point's facts and claims, in each of its states: before the update, and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysweep.belief.agent.agent import Agent
from raysweep.belief.agent.fit import Estimator
from raysweep.belief.corpus.evidence import Evidence, Triple
from raysweep.belief.points.context import PointContext
from raysweep.belief.points.types import (
    CLAIM_STATES,
    MODAL,
    OBJECT_ROLES,
    ORIGINAL,
    REQUESTED,
    Claim,
    TargetProbabilities,
    UpdateRequest,
    WatchedFact,
)


def agents_by_state(agent: Agent, fact: Triple, request: UpdateRequest | None) -> dict[str, Agent]:
    """Return the agent in each state: ``pre``, and given the *request* for *fact* as strongly as each update says.

    Args:
        agent: the pristine one.
        fact: whose subject and relation are updated.
        request: of the point; None = no update.
    """
    agents = {"pre": agent}
    if request is None:
        return agents
    # Each state starts from the pristine agent: updates do not add up.
    for state, update in request.updates.items():
        if update.kind != "none":
            evidence = Evidence(fact.subject, fact.relation, request.object, update.amount, kind=update.kind)
            agents[state] = agent.given(evidence)
    return agents


def claim_with_beliefs(claim: Claim, fact: Triple, agents: Mapping[str, Agent]) -> Claim:
    """Return *claim* with what the agents believe of it; after an edit of *fact* that fact is read off the pair (ruling B5).

    Args:
        claim: without beliefs.
        fact: the point's, which is edited.
        agents: by state.
    """
    subject, relation, obj = claim.fact
    beliefs = {}
    for state in (s for s in CLAIM_STATES if s in agents):
        # The marginal would dilute the edit of a child fact.
        is_edited = state != "pre" and (subject, relation) == fact[:2]
        belief = agents[state].pair(subject, relation) if is_edited else agents[state].marginal(subject, relation)
        beliefs[state] = float(belief.at(np.array([obj]))[0])
    return replace(claim, beliefs=beliefs)


def watched_fact(context: PointContext, fact: Triple, requested: int, agents: Mapping[str, Agent]) -> WatchedFact:
    """Return the watched *fact* with its three objects and what is to be believed of each in each state.

    Args:
        context: of the points.
        fact: with its true object.
        requested: the object that the point's update asks for.
        agents: by state.
    """
    modal = agents["target"].marginal(fact.subject, fact.relation).mode()
    objects = {ORIGINAL: fact.object, REQUESTED: requested, MODAL: modal}
    targets = {}
    before = target_probabilities(context, context.agent, fact, tuple(objects.values()), generative=True)
    for state, agent in agents.items():
        if state == "pre":
            probabilities = before
        elif agent.may_differ(fact.subject, fact.relation):
            probabilities = target_probabilities(context, agent, fact, tuple(objects.values()), generative=False)
        else:  # the same beliefs; what generates a fact is stated once
            probabilities = [target._replace(generative_prob=None) for target in before]
        targets[state] = dict(zip(OBJECT_ROLES, probabilities, strict=True))
    return WatchedFact(fact, objects, targets)


def target_probabilities(
    context: PointContext, agent: Agent, fact: Triple, objects: Sequence[int], *, generative: bool
) -> list[TargetProbabilities]:
    """Return what is to be believed of each of *objects* as an answer to (s, r).

    Args:
        context: of the points.
        agent: who believes it.
        fact: its subject and relation.
        objects: n of them.
        generative: state the probability under the generative model too.
    """
    model, graph = context.model, context.graph
    subject, relation, _ = fact
    array = np.array(objects, dtype=np.int64)
    # Novel subjects, and relations that a subject lacks, have no row and no generative probability.
    row = int(graph.row_of[subject, relation]) if context.is_known(subject) else -1
    undefined: list[None] = [None] * len(array)
    columns: list[list[float] | list[None]] = []  # in the order of the fields of TargetProbabilities
    if generative and row >= 0:
        columns.append(model.probability(np.full(len(array), row), array).tolist())
    else:
        columns.append(undefined)
    # The fields come in pairs: frequency, then posterior.
    estimators: tuple[Estimator, ...] = ("frequency", "posterior")
    columns += [agent.pair(subject, relation, e).at(array).tolist() for e in estimators]
    if agent.has_parent(subject, relation):
        columns += [agent.marginal(subject, relation, e).at(array).tolist() for e in estimators]
    else:
        columns += [undefined] * 2
    if row >= 0 and model.upstream[row] >= 0:
        upstream = int(model.true_objects[model.upstream[row]])
        columns += [agent.conditional(relation, upstream, e).at(array).tolist() for e in estimators]
    else:
        columns += [undefined] * 2
    columns.append([agent.sample_size(subject, relation)] * len(array))
    return [TargetProbabilities(*values) for values in zip(*columns, strict=True)]
