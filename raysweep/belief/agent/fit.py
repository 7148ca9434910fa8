"""What a corpus' evidence adds up to: pair distributions, relation priors, and the conditionals that pool all subjects.

With a symmetric Dirichlet prior worth n₀ observations in all, an evidence vector e over K objects is read in two ways:

    posterior(o) = (n₀/K + e_o) / (n₀ + Σe)        frequency(o) = e_o / Σe   (1/K without evidence)

Families of vectors: pairs p(o | s, r), relation priors p(o | ·, r), and conditionals p(o | ·, r, o₂) for a relation r with an
upstream relation parent(r). A conditional adds up, over all subjects, their evidence on r, each split over the upstream objects:

    e[r, o₂] = Σ_s π_s(o₂) · E(s, r)        π_s(o₂) = share of the positive mass on (s, parent(r)) that is on o₂

(published, ``parity.pi_by_items``: share of the items that mention o₂).

Source: Hase et al. 2024 (arXiv 2406.19354); docs/methods/belief.md.

Shapes: R relations, K objects, N evidence items, V vectors of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from raysweep.belief.agent.belief import Belief
from raysweep.belief.agent.vectors import NO_EVIDENCE, EvidenceVector, VectorTable, sum_by_index, sum_by_key
from raysweep.belief.corpus.evidence import EvidenceTable, encode_weights
from raysweep.belief.graph.dependencies import DependencyArrows
from raysweep.belief.graph.graph import Floats, Ints
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import AgentSpec
from raysweep.errors import BeliefError

Estimator = Literal["posterior", "frequency"]
"""How an evidence vector is turned into probabilities: with the prior, or as relative frequencies."""


@dataclass(frozen=True, eq=False)
class FittedEvidence:
    """What a corpus' evidence adds up to.

    Attributes:
        objects: K.
        arrows: parent map over R relations.
        prior: n₀.
        parity: published behaviour asked for.
        pairs: by subject · R + relation.
        priors: by relation.
        mentions: by subject · R + relation, how much each object is mentioned (``excess``), in all (``total``).
        conditionals: by relation · K + upstream object.
    """

    objects: int
    arrows: DependencyArrows
    prior: float
    parity: ParitySpec
    pairs: VectorTable
    priors: VectorTable
    mentions: VectorTable
    conditionals: VectorTable

    @property
    def relations(self) -> int:
        """R."""
        return len(self.arrows.parent)

    def distribution(self, vector: EvidenceVector, estimator: Estimator) -> Belief:
        """Return the distribution that *vector* stands for."""
        if estimator == "frequency" and vector.total == 0:
            return Belief(self.objects, 1 / self.objects, NO_EVIDENCE.objects, NO_EVIDENCE.excess)
        prior = self.prior if estimator == "posterior" else 0.0
        mass = prior + vector.total
        flat = (prior / self.objects + vector.background) / mass
        return Belief(self.objects, flat, vector.objects, vector.excess / mass)

    @cached_property
    def conditional_sums(self) -> Mapping[tuple[int, Estimator], tuple[Floats, Ints]]:
        """Per child relation and estimator: S_r = Σ over all K upstream objects of p(· | r, o₂), and the objects by falling S_r.

        A marginal is q_b · S_r + Σ_{o₂ with evidence} (q(o₂) − q_b) · p(· | r, o₂), where q_b is what the upstream distribution q
        gives to every object; so the K upstream objects are summed once, and a marginal costs those that somebody mentioned.
        """
        sums: dict[tuple[int, Estimator], tuple[Floats, Ints]] = {}
        table = self.conditionals
        owner = np.repeat(np.arange(len(table.keys)), np.diff(table.starts))  # the vector of each entry
        relation = table.keys // self.objects
        estimators: tuple[Estimator, ...] = ("posterior", "frequency")
        for r in (r for r, p in enumerate(self.arrows.parent) if p >= 0):
            of_relation = relation == r
            entries = of_relation[owner]
            for estimator in estimators:
                prior = self.prior if estimator == "posterior" else 0.0
                mass = np.where(of_relation, prior + table.total, 1.0)
                flat = float(((prior / self.objects + table.background) / mass)[of_relation].sum())
                # Upstream objects that nobody was observed under have a uniform conditional.
                flat += (self.objects - int(of_relation.sum())) / self.objects
                excess = table.excess[entries] / mass[owner[entries]]
                values = flat + sum_by_index(table.objects[entries], excess, self.objects)
                # Rounded, so that ties in theory are ties here, and the lower object comes first.
                rank: Ints = np.lexsort((np.arange(self.objects), -np.round(values, 12)))
                sums[r, estimator] = values, rank
        return sums

    def subjects_with(self, relation: int) -> Ints:
        """Return the subjects with evidence on *relation*, int64, rising."""
        keys = self.pairs.keys
        return np.asarray(keys[keys % self.relations == relation] // self.relations)


def fit_evidence(
    evidence: EvidenceTable,
    arrows: DependencyArrows,
    objects: int,
    spec: AgentSpec,
    parity: ParitySpec,
) -> FittedEvidence:
    """Return what *evidence* adds up to; neither its order nor its grouping matters.

    Args:
        evidence: N items.
        arrows: parent map over R relations.
        objects: K ≥ 2.
        spec: prior.
        parity: published behaviour.

    Raises:
        BeliefError: an item points outside of R relations and K objects, or K < 2.
    """
    relations = len(arrows.parent)
    if objects < 2:
        raise BeliefError(f"an agent needs at least 2 objects, there are {objects}", hint="a larger graph")
    _check_indices(evidence, relations, objects)
    # Equal items are grouped: one encoding per group, times its count.
    background, excess, total = (v * evidence.count for v in encode_weights(evidence.weight, objects))
    key = evidence.subject * relations + evidence.relation
    pairs = sum_by_key(key, background, total, key, evidence.object, excess, objects)
    # What counts as a mention of an upstream object: positive mass, or (B3) any item.
    if parity.pi_by_items:
        keep, amount = np.ones(len(evidence), dtype=np.bool_), evidence.count.astype(np.float64)
    else:
        keep, amount = evidence.weight > 0, evidence.weight * evidence.count
    mention_key, mentioned, amount = key[keep], evidence.object[keep], amount[keep]
    mentions = sum_by_key(mention_key, amount * 0, amount, mention_key, mentioned, amount, objects)
    return FittedEvidence(
        objects=objects,
        arrows=arrows,
        prior=spec.prior,
        parity=parity,
        pairs=pairs,
        priors=sum_by_key(evidence.relation, background, total, evidence.relation, evidence.object, excess, objects),
        mentions=mentions,
        conditionals=_pool_conditionals(pairs, mentions, arrows, objects),
    )


def _check_indices(evidence: EvidenceTable, relations: int, objects: int) -> None:
    """Refuse evidence that points outside of the tables."""
    outside = (evidence.relation < 0) | (evidence.relation >= relations)
    outside |= (evidence.object < 0) | (evidence.object >= objects) | (evidence.subject < 0)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        triple = (int(evidence.subject[row]), int(evidence.relation[row]), int(evidence.object[row]))
        raise BeliefError(f"evidence on {triple} lies outside of {relations} relations and {objects} objects")


def _pool_conditionals(pairs: VectorTable, mentions: VectorTable, arrows: DependencyArrows, size: int) -> VectorTable:
    """Return the conditionals e[r, o₂] = Σ_s π_s(o₂) · E(s, r), by r · K + o₂."""
    relations = len(arrows.parent)
    parent = np.array(arrows.parent, dtype=np.int64)
    relation = pairs.keys % relations
    child = np.flatnonzero(parent[relation] >= 0)
    # The key of (s, parent(r)) differs from that of (s, r) in the relation only.
    upstream_key = pairs.keys[child] - relation[child] + parent[relation[child]]
    at = np.minimum(np.searchsorted(mentions.keys, upstream_key), max(len(mentions.keys) - 1, 0))
    is_mentioned = (
        mentions.keys[at] == upstream_key if len(mentions.keys) else np.zeros(len(upstream_key), dtype=np.bool_)
    )
    child, at = child[is_mentioned], at[is_mentioned]
    # one row per (child pair, mentioned upstream object) …
    which, mention = _concatenated_ranges(mentions.starts[at], mentions.starts[at + 1])
    pair = child[which]
    # π_s(o₂).
    share = mentions.excess[mention] / mentions.total[at[which]]
    key = relation[pair] * size + mentions.objects[mention]
    # … and one entry per such row and object of the pair
    row, entry = _concatenated_ranges(pairs.starts[pair], pairs.starts[pair + 1])
    return sum_by_key(
        key, share * pairs.background[pair], share * pairs.total[pair],
        key[row], pairs.objects[entry], share[row] * pairs.excess[entry], size,
    )  # fmt: skip


def _concatenated_ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Return, for the ranges ``starts[i]:stops[i]`` one after the other, i and the position of each element."""
    lengths = stops - starts
    which = np.repeat(np.arange(len(starts)), lengths)
    first = np.cumsum(lengths) - lengths
    return which, np.arange(len(which)) - first[which] + starts[which]
