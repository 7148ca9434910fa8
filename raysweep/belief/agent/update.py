"""What later evidence changes: the vectors that differ from the fitted ones.

New evidence on (s, r) adds to the pair vector of (s, r) and to the relation prior of r. It also moves what the subject s
contributes to the conditionals, of r itself where r has a parent, and of each child relation that s has evidence on. With E the
subject's evidence on the child relation and π its split over upstream objects, the change of a conditional is

    π′E′ − πE = (π′ − π) E + π′ (E′ − E)

An edit (``Evidence`` of kind ``edit``) settles its own fact, so the pair vector gets its whole mass m. To distributions that pool
many subjects it is one observation at most, t = min(m, 1), and π gives the requested upstream object the share

    λ = t / max(n + t, E)        n = positive mass that s has upstream, E = evidence of s downstream

t / (n + t) is what one more sentence would do; the bound E lets at most one observation change sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import numpy as np

from raysweep.belief.agent.fit import FittedEvidence
from raysweep.belief.agent.vectors import NO_EVIDENCE, EvidenceVector
from raysweep.belief.corpus.evidence import Evidence, encode_weights
from raysweep.belief.graph.graph import Floats, Ints

Pair = tuple[int, int]
"""Subject and relation."""


@dataclass(frozen=True, eq=False)
class ChangedVectors:
    """Vectors that differ from the fitted ones, by the same keys.

    Attributes:
        pairs: by subject · R + relation.
        priors: by relation.
        conditionals: by relation · K + upstream object.
    """

    pairs: dict[int, EvidenceVector] = field(default_factory=dict)
    priors: dict[int, EvidenceVector] = field(default_factory=dict)
    conditionals: dict[int, EvidenceVector] = field(default_factory=dict)


def canonical_evidence(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """Return equal evidence counted, in one order; mass of 0 says nothing and is left out; of a fact's edits the last stays."""
    # Equal evidence adds up, so its order does not matter; a later edit of a fact replaces the earlier.
    counts: dict[tuple[int, int, int, float, Literal["item", "mass", "edit"]], int] = {}
    edits: dict[Pair, Evidence] = {}
    for e in evidence:
        if e.kind == "edit":
            edits[e.subject, e.relation] = e
        elif e.amount:
            key = (e.subject, e.relation, e.object, e.amount, e.kind)
            counts[key] = counts.get(key, 0) + e.count
    counted = (Evidence(s, r, o, amount, count, kind) for (s, r, o, amount, kind), count in counts.items())
    return tuple(sorted((*counted, *edits.values()), key=lambda e: (e.subject, e.relation, e.object, e.amount, e.kind)))


def changed_vectors(fitted: FittedEvidence, evidence: Sequence[Evidence]) -> ChangedVectors:
    """Return every vector that *evidence*, in canonical order, changes.

    Args:
        fitted: what the corpus adds up to.
        evidence: later evidence, of :func:`canonical_evidence`.
    """
    return _Updater(fitted, evidence).changed_vectors()


class _Updater:
    """Computes the changed vectors of one set of evidence, subject by subject."""

    def __init__(self, fitted: FittedEvidence, evidence: Sequence[Evidence]) -> None:
        self.fitted = fitted
        self.evidence = {pair: tuple(items) for pair, items in groupby(evidence, key=lambda e: (e.subject, e.relation))}
        # What the same evidence is to distributions that pool many subjects.
        self.pooled = {pair: tuple(map(self._as_pooled, items)) for pair, items in self.evidence.items()}
        self.pooled_change = {pair: self._vector(items) for pair, items in self.pooled.items()}
        self.changed = ChangedVectors()

    def changed_vectors(self) -> ChangedVectors:
        """Return pairs, relation priors, and the conditionals of the subjects concerned."""
        fitted, changed = self.fitted, self.changed
        for (subject, relation), items in self.evidence.items():
            key = subject * fitted.relations + relation
            changed.pairs[key] = (fitted.pairs.get(key) or NO_EVIDENCE).plus(self._vector(items))
            prior = changed.priors.get(relation) or fitted.priors.get(relation) or NO_EVIDENCE
            changed.priors[relation] = prior.plus(self.pooled_change[subject, relation])
        # A fact contributes to the conditionals of its own relation, and decides where the evidence of its children goes.
        concerned = {
            (subject, child)
            for subject, relation in self.evidence
            for child in (relation, *fitted.arrows.children[relation])
            if fitted.arrows.parent[child] >= 0
        }
        for subject, child in sorted(concerned):
            self._move_contribution(subject, child)
        return changed

    def _as_pooled(self, evidence: Evidence) -> Evidence:
        """Return what *evidence* on one subject is to distributions that pool many: of an edit, one observation at most."""
        if evidence.kind != "edit" or self.fitted.parity.edit_mass_pooled:
            return evidence
        return replace(evidence, amount=min(evidence.amount, 1.0))

    def _move_contribution(self, subject: int, child: int) -> None:
        """Replace what (subject, child) contributes to the conditionals: add π′E′ − πE = (π′ − π)E + π′(E′ − E)."""
        fitted, parent = self.fitted, self.fitted.arrows.parent[child]
        pair_key, upstream_key = (subject * fitted.relations + r for r in (child, parent))
        old_evidence = fitted.pairs.get(pair_key) or NO_EVIDENCE
        added = self.pooled_change.get((subject, child), NO_EVIDENCE)
        mentions = fitted.mentions.get(upstream_key) or NO_EVIDENCE
        new_upstream = self.pooled.get((subject, parent), ())
        new_shares = self._shares(mentions, new_upstream, old_evidence.total + added.total)
        objects = np.union1d(old_evidence.objects, added.objects)
        if not len(new_shares.objects) or not len(objects):
            return
        # π and E before, laid out on the objects of π′ and E′.
        old_shares = np.zeros(len(new_shares.objects))
        if mentions.total > 0:
            old_shares[np.searchsorted(new_shares.objects, mentions.objects)] = mentions.excess / mentions.total
        # (B1) The published code subtracts and adds the contribution of a child fact twice.
        scale = 2.0 if fitted.parity.double_child_update and (subject, child) in self.pooled else 1.0
        old_excess = _on_objects(old_evidence, objects)
        added_excess = _on_objects(added, objects)
        rows = zip(new_shares.objects.tolist(), new_shares.excess.tolist(), old_shares.tolist(), strict=True)
        for upstream, new_share, old_share in rows:
            difference = EvidenceVector(
                (new_share - old_share) * old_evidence.background + new_share * added.background,
                (new_share - old_share) * old_evidence.total + new_share * added.total,
                objects,
                (new_share - old_share) * old_excess + new_share * added_excess,
            )
            key = child * fitted.objects + upstream
            vector = self.changed.conditionals.get(key) or fitted.conditionals.get(key) or NO_EVIDENCE
            self.changed.conditionals[key] = vector.plus(difference, scale)

    def _shares(self, mentions: EvidenceVector, new: Sequence[Evidence], downstream: float) -> EvidenceVector:
        """Return π (as ``excess``) over the upstream objects of one subject; nothing if none has positive mass.

        Args:
            mentions: the corpus' mentions of upstream objects.
            new: later evidence on the upstream fact, edits as they count in pools.
            downstream: E, the subject's evidence on the child relation.
        """
        mentions = mentions.plus(self._mentions([e for e in new if e.kind != "edit"]))
        shares = NO_EVIDENCE
        if mentions.total > 0:
            shares = EvidenceVector(0.0, 1.0, mentions.objects, mentions.excess / mentions.total)
        edit = self._mentions([e for e in new if e.kind == "edit"])  # at most one
        if edit.total > 0:
            total = mentions.total + edit.total
            # λ = t / max(n + t, E)
            moved = edit.total / (total if self.fitted.parity.edit_mass_pooled else max(total, downstream))
            # (1 − λ) π + λ on the requested object.
            shares = NO_EVIDENCE.plus(shares, 1 - moved).plus(edit, moved / edit.total)
        return shares

    def _vector(self, evidence: Sequence[Evidence]) -> EvidenceVector:
        """Return the vector of evidence on one pair."""
        vector = NO_EVIDENCE
        for e in evidence:
            # Mass and edits put their amount on the object and nothing elsewhere.
            if e.kind != "item":
                item = EvidenceVector(0.0, e.amount, np.array([e.object]), np.array([e.amount]))
            else:
                (background,), (excess,), (weight,) = encode_weights(np.array([e.amount]), self.fitted.objects)
                item = EvidenceVector(float(background), float(weight), np.array([e.object]), np.array([float(excess)]))
            vector = vector.plus(item, e.count)
        return vector

    def _mentions(self, evidence: Sequence[Evidence]) -> EvidenceVector:
        """Return how much each object is mentioned by evidence on one pair."""
        vector = NO_EVIDENCE
        for e in evidence:
            amount = 1.0 if self.fitted.parity.pi_by_items else max(e.amount, 0.0)
            if amount > 0:
                mention = EvidenceVector(0.0, amount, np.array([e.object]), np.array([amount]))
                vector = vector.plus(mention, e.count)
        return vector


def _on_objects(vector: EvidenceVector, objects: Ints) -> Floats:
    """Return the excess of *vector* on *objects*, which hold all of its own, fp64 [n]."""
    excess = np.zeros(len(objects))
    excess[objects.searchsorted(vector.objects)] = vector.excess
    return excess
