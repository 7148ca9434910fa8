"""The ideal Bayesian agent: Dirichlet–categorical, sparse and exact; :meth:`Agent.given` returns another agent.

What the agent believes of (s, r), where it knows the upstream fact of s, is the marginal over all K upstream objects

    p(o | s, r) = Σ_{o₂} p(o | ·, r, o₂) p(o₂ | s, parent(r))

and else the pair distribution p(o | s, r) (``belief/agent/fit.py``). By design (ruling B5) the subject's own evidence on r enters
only through the pooled conditionals, so an update of one subject's child fact moves the marginals of all that share its upstream
object.

An *edit* is a statement about one fact, made strong enough to settle that fact. How strong says nothing about other subjects: a
fact settled by 200 units of mass is still one draw from the population's distribution. So the pair (s, r) gets the whole mass, and
while the edit is in force :meth:`Agent.belief` reads (s, r) off the pair; relation priors and conditionals get one observation at
most (``belief/agent/update.py``). N edits therefore bring at most N observations into the conditionals of a relation and take at
most N away, and a conditional whose mode leads by more than N keeps that mode. A later edit of the same fact replaces the earlier
one; edits of different facts commute.

Source: Hase et al. 2024 (arXiv 2406.19354); equations and rulings in docs/methods/belief.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal

import numpy as np

from raysweep.belief.agent.belief import Belief
from raysweep.belief.agent.fit import Estimator, FittedEvidence, fit_evidence
from raysweep.belief.agent.update import ChangedVectors, Pair, canonical_evidence, changed_vectors
from raysweep.belief.agent.vectors import NO_EVIDENCE, EvidenceVector
from raysweep.belief.corpus.evidence import Evidence, EvidenceTable
from raysweep.belief.graph.dependencies import DependencyArrows
from raysweep.belief.graph.graph import Floats, Ints
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import AgentSpec
from raysweep.errors import BeliefError

Query = Literal["pair", "marginal"]
"""Which of the agent's distributions over the objects of (s, r) is meant."""


@dataclass(frozen=True)
class Agent:
    """Fitted evidence, and what was learnt since; immutable.

    Promises: ``agent.given(e).given(f) == agent.given((*e, *f))``, exactly, and whatever the order but for edits of one and the
    same fact, of which the last holds. An agent never changes, so there is nothing to roll back.

    Attributes:
        fitted: the corpus.
        extra: later evidence, equal items counted, sorted; at most one edit per fact.
    """

    fitted: FittedEvidence
    extra: tuple[Evidence, ...] = ()

    def given(self, evidence: Evidence | Iterable[Evidence]) -> Agent:
        """Return the agent that also knows *evidence*.

        Raises:
            BeliefError: it is about a relation or object that does not exist.
        """
        new = (evidence,) if isinstance(evidence, Evidence) else tuple(evidence)
        for e in new:
            if not (0 <= e.relation < self.fitted.relations and 0 <= e.object < self.fitted.objects and e.subject >= 0):
                raise BeliefError(
                    f"evidence on {(e.subject, e.relation, e.object)} lies outside of {self.fitted.relations} relations "
                    f"and {self.fitted.objects} objects"
                )
        return Agent(self.fitted, canonical_evidence((*self.extra, *new)))

    def without_edit(self, subject: int, relation: int) -> Agent:
        """Return the agent that was not given the edit of (subject, relation); itself if there is none."""
        edit = self.edit(subject, relation)
        # At most one edit per fact is in force, so equality finds it.
        return self if edit is None else Agent(self.fitted, tuple(e for e in self.extra if e != edit))

    # -- what is known

    def edit(self, subject: int, relation: int) -> Evidence | None:
        """Return the edit of (subject, relation) that is in force, or None."""
        return self._edits.get((subject, relation))

    @cached_property
    def _edits(self) -> Mapping[Pair, Evidence]:
        return {(e.subject, e.relation): e for e in self.extra if e.kind == "edit"}

    def knows(self, subject: int, relation: int) -> bool:
        """Say whether there is evidence on (subject, relation)."""
        return self._pair(subject, relation) is not None

    def has_parent(self, subject: int, relation: int) -> bool:
        """Say whether there is evidence on the upstream fact of (subject, relation)."""
        parent = self.fitted.arrows.parent[relation]
        return parent >= 0 and self.knows(subject, parent)

    def sample_size(self, subject: int, relation: int) -> float:
        """Return Σe of the pair distribution (0 if nothing is known)."""
        return (self._pair(subject, relation) or NO_EVIDENCE).total

    # -- distributions

    def pair(self, subject: int, relation: int, estimator: Estimator = "posterior") -> Belief:
        """Return p(o | s, r); of a pair without evidence the relation prior p(o | ·, r) (ruling B7).

        Args:
            subject: of the fact; may lie beyond the graph's (a novel one).
            relation: of the fact.
            estimator: ``posterior`` or ``frequency``.
        """
        # Most specific first: the pair, what is known of the relation, the prior alone.
        vector = self._pair(subject, relation) or self._prior(relation) or NO_EVIDENCE
        return self.fitted.distribution(vector, estimator)

    def belief(self, subject: int, relation: int, estimator: Estimator = "posterior") -> Belief:
        """Return what the agent believes of (s, r): the pair distribution of an edited fact, the marginal of any other.

        Args:
            subject: of the fact; may lie beyond the graph's (a novel one).
            relation: of the fact.
            estimator: ``posterior`` or ``frequency``.
        """
        query = self.marginal if self.edit(subject, relation) is None else self.pair
        return query(subject, relation, estimator)

    def conditional(self, relation: int, upstream: int, estimator: Estimator = "posterior") -> Belief:
        """Return p(o | ·, r, o₂ = *upstream*); uniform if nobody was observed under it.

        Args:
            relation: r, one with a parent.
            upstream: o₂, an object of the parent relation.
            estimator: ``posterior`` or ``frequency``.
        """
        vector = self._conditional(relation * self.fitted.objects + upstream) or NO_EVIDENCE
        return self.fitted.distribution(vector, estimator)

    def marginal(self, subject: int, relation: int, estimator: Estimator = "posterior") -> Belief:
        """Return what the agent believes of (s, r): the marginal over upstream objects, else :meth:`pair`.

        With q the upstream distribution and q_b what it gives to objects without an entry, the sum over all K upstream objects is

            q_b · S_r + Σ_{o₂ with an entry} (q(o₂) − q_b) · p(· | r, o₂)        S_r = Σ_{o₂} p(· | r, o₂)

        S_r is computed once for the fitted conditionals; those that later evidence changed are exchanged in it.

        Args:
            subject: of the fact; may lie beyond the graph's (a novel one).
            relation: of the fact.
            estimator: ``posterior`` or ``frequency``.
        """
        parent = self.fitted.arrows.parent[relation]
        upstream_vector = self._pair(subject, parent) if parent >= 0 else None
        if upstream_vector is None:
            return self.pair(subject, relation, estimator)
        size, first = self.fitted.objects, relation * self.fitted.objects
        upstream = self.fitted.distribution(upstream_vector, estimator)
        # By key of the conditional: q(o₂) − q_b for upstream objects with an entry.
        scales = dict(zip((first + upstream.objects).tolist(), upstream.values.tolist(), strict=True))
        terms: list[tuple[float, Belief]] = []  # a factor, and the conditional that it multiplies
        for key in sorted({*scales, *(k for k in self._changed.conditionals if first <= k < first + size)}):
            scale = scales.get(key, 0.0)
            if key in self._changed.conditionals:  # S_r holds the old one: take it out, put the new one in
                old = self.fitted.distribution(self.fitted.conditionals.get(key) or NO_EVIDENCE, estimator)
                terms.append((-upstream.flat, old))
                scale += upstream.flat
            terms.append((scale, self.fitted.distribution(self._conditional(key) or NO_EVIDENCE, estimator)))
        # Each conditional is a flat part and entries; their weighted sum is one too.
        flat = sum(scale * conditional.flat for scale, conditional in terms)
        objects = np.concatenate([NO_EVIDENCE.objects, *(conditional.objects for _, conditional in terms)])
        entries = np.concatenate([NO_EVIDENCE.excess, *(scale * conditional.values for scale, conditional in terms)])
        if upstream.flat == 0:  # as frequencies may have it: S_r plays no part
            return Belief(size, flat, objects, entries)
        sums, rank = self.fitted.conditional_sums[relation, estimator]
        return Belief(size, flat, objects, entries, upstream.flat, sums, rank)

    def probabilities(
        self, facts: Ints | Sequence[Sequence[int]], query: Query = "marginal", estimator: Estimator = "posterior"
    ) -> Floats:
        """Return the probability of each fact, fp64 [N].

        Args:
            facts: int64 [N, 3] (subject, relation, object).
            query: ``marginal`` or ``pair``.
            estimator: ``posterior`` or ``frequency``.
        """
        rows = np.asarray(facts, dtype=np.int64).reshape(-1, 3)
        distribution: Callable[[int, int, Estimator], Belief] = self.marginal if query == "marginal" else self.pair
        probability = np.empty(len(rows))
        key = rows[:, 0] * self.fitted.relations + rows[:, 1]
        order = np.argsort(key, kind="stable")
        # Facts of one (s, r) stand together in this order, so each distribution is made once.
        for group in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(group):
                subject, relation = int(rows[group[0], 0]), int(rows[group[0], 1])
                probability[group] = distribution(subject, relation, estimator).at(rows[group, 2])
        return probability

    # -- what evidence would do

    def mass_to_reach(self, subject: int, relation: int, obj: int, target: float) -> float:
        """Return the mass on *obj* that lifts its pair posterior to *target* or a little more; 0 if it is there.

        With h = n₀/K + e_o what the object has and u = n₀ + Σe − h what the others have, a mass m gives (h + m) / (h + m + u), so
        m = ⌈u · target / (1 − target)⌉ − h.

        Args:
            subject: of the fact.
            relation: of the fact.
            obj: the object that is to be believed.
            target: posterior probability that it shall reach.

        Raises:
            BeliefError: *target* is not in (0, 1).
        """
        if not 0 < target < 1:
            raise BeliefError(f"target {target} is not a probability strictly between 0 and 1")
        vector = self._pair(subject, relation) or NO_EVIDENCE
        excess = vector.excess[vector.objects == obj]  # one number, or none
        have = self.fitted.prior / self.fitted.objects + vector.background + float(excess.sum())
        others = self.fitted.prior + vector.total - have
        return max(0.0, ceil(others * target / (1 - target)) - have)

    def pair_excess(self, subject: int, relation: int, objects: Ints) -> Floats:
        """Return the evidence on *objects* of (s, r) beyond what every object has, fp64 [n].

        Args:
            subject: s.
            relation: r.
            objects: int64 [n].
        """
        vector = self._pair(subject, relation) or NO_EVIDENCE
        if not len(vector.objects):
            return np.zeros(len(objects))
        at = np.minimum(vector.objects.searchsorted(objects), len(vector.objects) - 1)
        return np.where(vector.objects[at] == objects, vector.excess[at], 0.0)

    def share_after(self, subject: int, relation: int, target: float) -> float:
        """Return about how much of the evidence downstream of (s, r) an update to *target* of an upstream object draws there.

        Args:
            subject: of the upstream fact.
            relation: of the upstream fact.
            target: posterior probability that the update gives the object.
        """
        # An update to posterior `target` holds about that share of the positive mass; as published, one item among all mentions.
        if not self.fitted.parity.pi_by_items:
            return target
        mentions = self.fitted.mentions.get(subject * self.fitted.relations + relation) or NO_EVIDENCE
        return 1 / (1 + mentions.total)

    def may_differ(self, subject: int, relation: int) -> bool:
        """Say whether later evidence may have changed any belief about (subject, relation)."""
        fitted, changed = self.fitted, self._changed
        first, parent = relation * fitted.objects, fitted.arrows.parent[relation]
        # A changed conditional may move the marginal of every subject.
        if any(first <= key < first + fitted.objects for key in changed.conditionals):
            return True
        pairs = (subject * fitted.relations + r for r in (relation, parent) if r >= 0)
        return any(key in changed.pairs for key in pairs) or (
            relation in changed.priors and not self.knows(subject, relation)
        )

    # -- vectors, fitted or changed

    @cached_property
    def _changed(self) -> ChangedVectors:
        """Every vector that ``extra`` changes."""
        return changed_vectors(self.fitted, self.extra)

    def _pair(self, subject: int, relation: int) -> EvidenceVector | None:
        key = subject * self.fitted.relations + relation
        return self._changed.pairs.get(key) or self.fitted.pairs.get(key)

    def _prior(self, relation: int) -> EvidenceVector | None:
        return self._changed.priors.get(relation) or self.fitted.priors.get(relation)

    def _conditional(self, key: int) -> EvidenceVector | None:
        return self._changed.conditionals.get(key) or self.fitted.conditionals.get(key)


def fit_agent(
    evidence: EvidenceTable,
    arrows: DependencyArrows,
    objects: int,
    spec: AgentSpec | None = None,
    parity: ParitySpec | None = None,
) -> Agent:
    """Return the agent that has seen *evidence*; arguments and errors of :func:`raysweep.belief.agent.fit.fit_evidence`.

    By default its prior is one observation in total, and no published behaviour is copied.
    """
    return Agent(fit_evidence(evidence, arrows, objects, spec or AgentSpec(), parity or ParitySpec()))
