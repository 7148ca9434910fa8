"""Chooses the edit of a point: the requested object, the strength of each update, and the four watched facts.

The mass m that brings object o of (s, r) to the posterior p solves (n₀/K + e_o + m) / (n₀ + Σe + m) = p
(:meth:`raysweep.belief.agent.agent.Agent.mass_to_reach`).
"""

from __future__ import annotations

import numpy as np

from raysweep.belief.corpus.evidence import Evidence, Triple
from raysweep.belief.graph.graph import Ints
from raysweep.belief.points.context import PointContext
from raysweep.belief.points.types import (
    OTHER_OTHER,
    OTHER_SAME,
    SAME_OTHER,
    SAME_SAME,
    NotEditableError,
    UpdateRequest,
    UpdateStrength,
)

_MAX_TRIES = 20  # requests that are tried out on the agent


class EditChooser:
    """Chooses requests and watched facts; the answers of the conditionals are looked up once per relation."""

    def __init__(self, context: PointContext) -> None:
        self.context = context
        self._modes: dict[int, tuple[Ints, Ints]] = {}

    def active_child(self, fact: Triple, row: int) -> int | None:
        """Return the relation that depends on the fact's and that its subject has (a novel subject: that others have), or None.

        Args:
            fact: of the point.
            row: its row in the graph; −1 for a novel subject.
        """
        children = self.context.model.arrows.children[fact.relation]
        return next((child for child in children if self._has_relation(fact, child, row)), None)

    def _has_relation(self, fact: Triple, relation: int, row: int) -> bool:
        """Say whether the fact's subject has *relation*, or, a novel one, whether somebody has both."""
        if row < 0:
            return len(self.context.subjects_with(fact.relation, relation)) > 0
        return bool(self.context.graph.row_of[fact.subject, relation] >= 0)

    # -- the request

    def request(self, number: int, fact: Triple, row: int, child: int | None) -> UpdateRequest:
        """Return the requested object and the strength of each update.

        Args:
            number: of the point.
            fact: of the point.
            row: its row in the graph; −1 for a novel subject.
            child: of :meth:`active_child`.

        Raises:
            NotEditableError: there is no other object to ask for.
        """
        context, spec = self.context, self.context.spec
        rng = context.rng(number, "request")
        # Drawn whether it is needed or not, so that the choice of one kind moves no other.
        share = rng.random()
        requested: int | None = None
        # With an active child: change the downstream answer; without: maybe reinforce what is true.
        if child is not None and share < spec.downstream_share:
            requested = self._downstream_request(fact, child, rng)
        elif child is None and share < spec.reinforce_share and row >= 0:
            requested = fact.object
        if requested is None:
            requested = self._counterfactual(fact, row, rng)
        updates = {
            "pre": UpdateStrength("none", 0.0),
            "item": UpdateStrength("item", 1.0),
            "items": UpdateStrength("item", 1.0 if context.model.parity.n1000_weight_one else 1000.0),
            "target": UpdateStrength("mass", self._mass(fact, requested)),
        }
        return UpdateRequest(requested, requested == fact.object, updates)

    def _mass(self, fact: Triple, requested: int) -> float:
        """Return the mass that lifts *requested* to the target, or, if it is the true object and beyond, half-way to 1."""
        agent, target = self.context.agent, self.context.spec.target
        if requested == fact.object and agent.knows(fact.subject, fact.relation):
            current = float(agent.pair(fact.subject, fact.relation).at(np.array([requested]))[0])
            target = current + (1 - current) / 2 if current > target else target
        return agent.mass_to_reach(fact.subject, fact.relation, requested, target)

    def _downstream_request(self, fact: Triple, child: int, rng: np.random.Generator) -> int | None:
        """Return an upstream object that changes the agent's downstream answer, or None if no try did (ruling D1).

        Candidates have a conditional with evidence whose mode is another answer, also with the subject's own downstream evidence
        moved there; drawn in random order, the first whose update does change the answer is taken.
        """
        agent = self.context.agent
        conditionals = agent.fitted.conditionals
        rows, modes = self._conditional_modes(child)
        upstream = conditionals.keys[rows] % agent.fitted.objects
        if self.context.model.parity.unfiltered_downstream_request:
            return int(rng.choice(upstream)) if len(upstream) else None
        current = self.context.best_fact(fact.subject, child).object
        # By how much each conditional prefers its mode to the current answer, once the share `moved` of the subject's own
        # downstream evidence lies there.
        lead = conditionals.excess_at(rows, modes) - conditionals.excess_at(rows, np.full(len(rows), current))
        moved = agent.share_after(fact.subject, fact.relation, self.context.spec.target)
        excess = agent.pair_excess(fact.subject, child, np.append(modes, current))
        lead += moved * (excess[:-1] - excess[-1])
        candidates = rng.permutation(upstream[(modes != current) & (upstream != fact.object) & (lead > 0)])
        for requested in candidates[:_MAX_TRIES].tolist():
            update = Evidence(*fact._replace(object=requested), self._mass(fact, requested), kind="mass")
            if agent.given(update).marginal(fact.subject, child).mode() != current:
                return int(requested)
        return None

    def _conditional_modes(self, child: int) -> tuple[Ints, Ints]:
        """Return the rows of the conditionals of *child* that have evidence, and the mode of each."""
        if child not in self._modes:
            agent = self.context.agent
            keys, size = agent.fitted.conditionals.keys, agent.fitted.objects
            rows = np.flatnonzero(keys // size == child)
            modes = [agent.conditional(child, upstream).mode() for upstream in (keys[rows] % size).tolist()]
            self._modes[child] = rows, np.array(modes, dtype=np.int64)
        return self._modes[child]

    def _counterfactual(self, fact: Triple, row: int, rng: np.random.Generator) -> int:
        """Return an object that is not the fact's, from the scope that the spec names (ruling D3)."""
        context, scope = self.context, self.context.spec.request_scope
        if scope == "distractor" and row >= 0:
            return context.false_fact(row, rng).object
        objects = context.ranges[fact.relation] if scope != "all" else np.arange(len(context.graph.objects))
        others = objects[objects != fact.object]
        if not len(others):
            raise NotEditableError(
                f"relation '{context.graph.relations[fact.relation]}' has one object, so there is no other to request",
                hint="request_scope: all",
            )
        return int(rng.choice(others))

    # -- the watched facts

    def watched_facts(self, number: int, fact: Triple, row: int, child: int | None) -> tuple[dict[str, Triple], bool]:
        """Return the four watched facts by name, and whether one other subject serves both that are about another subject.

        Arguments and errors as of :meth:`request`; the other relation is *child*, or else a random one of the subject's.
        """
        context = self.context
        rng = context.rng(number, "watched")
        subject, relation, _ = fact
        other = child
        if other is None:
            relations = range(len(context.graph.relations))
            candidates = [r for r in relations if r != relation and self._has_relation(fact, r, row)]
            if not candidates:
                raise NotEditableError(f"nobody has another relation beside '{context.graph.relations[relation]}'")
            other = int(rng.choice(candidates))
        both = context.subjects_with(relation, other)
        both = both[both != subject]
        # One subject for both facts where there is one, as published.
        if len(both):
            same_relation = other_relation = int(rng.choice(both))
        else:
            same_relation, other_relation = (context.other_subject(r, subject, rng) for r in (relation, other))
        facts = {
            SAME_SAME: fact,
            OTHER_SAME: context.best_fact(same_relation, relation),
            SAME_OTHER: context.best_fact(subject, other),
            OTHER_OTHER: context.best_fact(other_relation, other),
        }
        return facts, bool(len(both))
