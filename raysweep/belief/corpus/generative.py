"""The generative model: distributions over objects, true objects, noisy samples (§3).

Shapes: F facts of the graph, K objects, n rows asked for. Counts are integers, so every draw is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np

from raysweep.belief.graph.dependencies import DependencyArrows
from raysweep.belief.graph.graph import Bools, Floats, Ints, KnowledgeGraph
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import GenerativeSpec
from raysweep.errors import BeliefError
from raysweep.seeds import derive

_REDRAWS = 1000


@dataclass(frozen=True, eq=False)
class Distributions:
    """D categorical distributions by integer counts, one after the other.

    Attributes:
        starts: int64 [D + 1]: distribution d has the entries ``starts[d]:starts[d + 1]``.
        objects: int64 [E], rising within a distribution.
        counts: int64 [E] ≥ 0; every distribution has some.
    """

    starts: Ints
    objects: Ints
    counts: Ints

    @cached_property
    def _before(self) -> Ints:
        """int64 [E + 1]: counts before each entry."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def totals(self) -> Ints:
        """int64 [D]."""
        return np.asarray(self._before[self.starts[1:]] - self._before[self.starts[:-1]])

    @cached_property
    def modes(self) -> Ints:
        """int64 [D]: the entry with the largest count; ties go to the lowest object."""
        owner = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        order = np.lexsort((self.objects, -self.counts, owner))
        return np.asarray(order[self.starts[:-1]])

    def draw(self, which: Ints, rng: np.random.Generator) -> Ints:
        """Return one object from each distribution in *which* (any shape)."""
        at = self._before[self.starts[which]] + rng.integers(self.totals[which])
        return np.asarray(self.objects[np.searchsorted(self._before, at, side="right") - 1])

    def probability(self, which: Ints, objects: Ints) -> Floats:
        """Return the probability of each object under the distribution beside it (0 if it has none)."""
        size, keys = self._keys
        wanted = np.where(objects < size, which * size + objects, -1)
        at = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, self.counts[at] / self.totals[which], 0.0)

    @cached_property
    def _keys(self) -> tuple[int, Ints]:
        """A bound of the objects, and int64 [E]: distribution · bound + object, rising."""
        size = int(self.objects.max(initial=0)) + 1
        owner = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return size, owner * size + self.objects


@dataclass(frozen=True, eq=False)
class GenerativeModel:
    """A graph with a distribution for each fact.

    Attributes:
        graph: the original facts.
        arrows: parent map.
        spec: how it was made.
        parity: published behaviour asked for.
        upstream: int64 [F]: row of the fact (subject, parent relation), or −1.
        true: int64 [F]: the true object, recomputed along the arrows (§3.4).
        distractor: int64 [F]: the one other object of the pair distribution.
        percent: int64 [F]: probability of the true object in the pair distribution, in percent.
        conditionals: p(o | r, upstream object), raised to ``min_true_prob``.
        conditional_keys: int64 [C], rising: relation · K + upstream object.
    """

    graph: KnowledgeGraph
    arrows: DependencyArrows
    spec: GenerativeSpec
    parity: ParitySpec
    upstream: Ints
    true: Ints
    distractor: Ints
    percent: Ints
    conditionals: Distributions
    conditional_keys: Ints

    @cached_property
    def distributions(self) -> Distributions:
        """The F pair distributions, then the C conditionals."""
        pairs = np.stack([self.true, self.distractor], axis=1)
        counts = np.stack([self.percent, 100 - self.percent], axis=1)
        order = np.argsort(pairs, axis=1)
        rows = np.arange(len(pairs) + 1) * 2
        return Distributions(
            np.concatenate([rows, self.conditionals.starts[1:] + rows[-1]]),
            np.concatenate([np.take_along_axis(pairs, order, 1).ravel(), self.conditionals.objects]),
            np.concatenate([np.take_along_axis(counts, order, 1).ravel(), self.conditionals.counts]),
        )

    @cached_property
    def which(self) -> Ints:
        """int64 [F]: index into :attr:`distributions` of the one that generates the fact (§3.6)."""
        rows = np.arange(len(self.true))
        child = np.flatnonzero(self.upstream >= 0)
        above = self.true[self.upstream[child]]
        rows[child] = len(rows) + self._conditional(self.graph.facts[child, 1], above)
        return rows

    def _conditional(self, relation: Ints, above: Ints) -> Ints:
        return _look_up(self.conditional_keys, relation, above, self.graph)

    @cached_property
    def true_probability(self) -> Floats:
        """fp64 [F]: probability of the true object under the distribution that generates the fact."""
        return self.distributions.probability(self.which, self.true)

    def probability(self, rows: Ints, objects: Ints) -> Floats:
        """Return the probability of *objects* under the distributions that generate the facts *rows* (fp64 [n])."""
        found = self.distributions.probability(self.which[rows], objects)
        if self.parity.third_object_prob:
            third = (self.upstream[rows] < 0) & (objects != self.true[rows]) & (objects != self.distractor[rows])
            found = np.where(third, (100 - self.percent[rows]) / 100, found)
        return found

    def sample(self, rows: Ints, seed: int) -> Ints:
        """Return int64 [n, samples] objects per fact; with ``majority`` most of each row are the true object (§3.7).

        A row that keeps failing after 1000 redraws gets its majority put first (ruling A12).
        """
        rng = np.random.default_rng(derive(seed, "belief", "samples"))
        count = self.spec.samples
        draws = self.distributions.draw(np.repeat(self.which[rows][:, None], count, axis=1), rng)
        if not self.spec.majority:
            return draws
        for _ in range(_REDRAWS):
            bad = np.flatnonzero(2 * (draws == self.true[rows][:, None]).sum(axis=1) <= count)
            if not len(bad):
                return draws
            draws[bad] = self.distributions.draw(np.repeat(self.which[rows[bad]][:, None], count, axis=1), rng)
        bad = np.flatnonzero(2 * (draws == self.true[rows][:, None]).sum(axis=1) <= count)
        draws[bad[:, None], np.arange(count // 2 + 1)] = self.true[rows[bad]][:, None]
        return draws

    def falsify(self, rows: Ints, rng: np.random.Generator) -> Ints:
        """Return, for each fact, an object that is not the true one (§4.5)."""
        drawn = _other(self.true[rows], len(self.graph.objects), rng)
        if self.spec.false_facts == "uniform":
            return drawn
        return np.where(self.upstream[rows] >= 0, drawn, self.distractor[rows])


def build_generative(
    graph: KnowledgeGraph, arrows: DependencyArrows, spec: GenerativeSpec, seed: int, parity: ParitySpec | None = None
) -> GenerativeModel:
    """Make the generative model of *graph*.

    Raises:
        BeliefError: fewer than two objects, a relation with one object where distractors come from its range, arrows
            of another graph, or a conditional nobody was observed under.
    """
    parity = parity or ParitySpec()
    if len(arrows.parent) != len(graph.relations):
        raise BeliefError(f"{len(arrows.parent)} parents for {len(graph.relations)} relations")
    if len(graph.objects) < 2:
        raise BeliefError("the graph has one object, so nothing could be false", hint="a larger graph")
    subject, relation, obj = graph.facts.T
    parent = np.array(arrows.parent, dtype=np.int64)[relation]
    upstream = np.where(parent >= 0, graph.row_of[subject, parent], -1).astype(np.int64)
    keys, conditionals = _conditionals(graph, upstream)
    true = obj.copy()
    for r in arrows.order:
        rows = np.flatnonzero((relation == r) & (upstream >= 0))
        found = _look_up(keys, relation[rows], true[upstream[rows]], graph)
        true[rows] = conditionals.objects[conditionals.modes[found]]
    rng = np.random.default_rng(derive(seed, "belief", "distractors"))
    distractor = _distractors(graph, true, spec, rng)
    rng = np.random.default_rng(derive(seed, "belief", "percent"))
    percent = rng.integers(least_percent(spec.min_true_prob, published=parity.float_ceil), 101, size=len(true))
    return GenerativeModel(
        graph=graph,
        arrows=arrows,
        spec=spec,
        parity=parity,
        upstream=upstream,
        true=true,
        distractor=distractor,
        percent=percent,
        conditionals=_raised(conditionals, spec.min_true_prob, parity),
        conditional_keys=keys,
    )


def _exact(share: float) -> Fraction:
    """Return the number a share was written as (``.55``, not its binary neighbour)."""
    return Fraction(repr(share))


def _look_up(keys: Ints, relation: Ints, above: Ints, graph: KnowledgeGraph) -> Ints:
    """Return the index of each conditional (relation, upstream object).

    Raises:
        BeliefError: nobody was observed under one of them, so it has no mass.
    """
    wanted = relation * len(graph.objects) + above
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    missing: Bools = keys[at] != wanted if len(keys) else np.ones(len(wanted), dtype=np.bool_)
    if missing.any():
        r, o = int(relation[missing][0]), int(above[missing][0])
        raise BeliefError(
            f"p(· | {graph.relations[r]}, upstream = {graph.objects[o]}) has no mass: no subject has both",
            hint="an arrow of the chain leads to an object nobody was observed under; drop that arrow",
        )
    return np.asarray(at)


def _conditionals(graph: KnowledgeGraph, upstream: Ints) -> tuple[Ints, Distributions]:
    """Count the objects of each child relation by upstream object (§3.3)."""
    rows = np.flatnonzero(upstream >= 0)
    size = len(graph.objects)
    key = graph.facts[rows, 1] * size + graph.facts[upstream[rows], 2]
    entries, counts = np.unique(key * size + graph.facts[rows, 2], return_counts=True)
    keys, starts = np.unique(entries // size, return_index=True)
    return keys, Distributions(
        np.append(starts, len(entries)).astype(np.int64), entries % size, counts.astype(np.int64)
    )


def least_percent(least: float, *, published: bool) -> int:
    """Return ⌈100 · *least*⌉, the lowest probability of a pair's true object in percent (§3.2).

    *published* (B12): the product is the binary one, so that .55 (55.00000000000001) gives 56.
    """
    return ceil(least * 100) if published else ceil(100 * _exact(least))


def least_counts(rest: Ints, least: float, *, published: bool) -> Ints:
    """Return ⌈rest · least / (1 − least)⌉: how often a mode must be observed beside *rest* other observations (§3.5).

    Args:
        rest: int64 [n] ≥ 0.
        least: probability that the mode shall reach, below 1.
        published: (B12) products and quotients are the binary ones: .8 / (1 − .8) is 4.000000000000001, so one other observation
            asks for 5, not 4.
    """
    if published:
        return np.asarray(np.ceil(rest * least / (1 - least)), dtype=np.int64)
    ratio = _exact(least) / (1 - _exact(least))
    return np.asarray(-(-rest * ratio.numerator // ratio.denominator))


def _raised(conditionals: Distributions, least: float, parity: ParitySpec) -> Distributions:
    """Raise the largest count of each conditional until its probability is ≥ *least* (§3.5, ruling B9)."""
    counts = conditionals.counts.copy()
    modes, totals = conditionals.modes, conditionals.totals
    share = _exact(least)
    most = counts[modes]
    low = most * share.denominator < totals * share.numerator
    rest = totals - most
    if share == 1:
        if parity.mgtp1_additive:
            counts[modes[low]] += 1
        else:
            counts[:] = 0
            counts[modes] = most
    else:
        counts[modes[low]] = least_counts(rest[low], least, published=parity.float_ceil)
    return Distributions(conditionals.starts, conditionals.objects, counts)


def _other(true: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Return a uniform draw from range(size) without the entry beside it."""
    drawn = rng.integers(size - 1, size=len(true))
    return np.asarray(drawn + (drawn >= true))


def _distractors(graph: KnowledgeGraph, true: Ints, spec: GenerativeSpec, rng: np.random.Generator) -> Ints:
    """Draw the distractor of each pair distribution (§3.2; ruling B10)."""
    if spec.distractor_scope == "all":
        return _other(true, len(graph.objects), rng)
    found = np.empty_like(true)
    for r, name in enumerate(graph.relations):
        rows = np.flatnonzero(graph.facts[:, 1] == r)
        scope = np.unique(graph.facts[rows, 2])
        if len(scope) < 2:
            raise BeliefError(
                f"relation '{name}' has one object, so it has no distractor", hint="distractor_scope: all"
            )
        found[rows] = scope[_other(np.searchsorted(scope, true[rows]), len(scope), rng)]
    return found
