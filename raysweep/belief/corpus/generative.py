"""The generative model: distributions over objects, true objects, noisy samples.

A *root* fact (s, r), whose subject has no upstream fact, has a pair distribution over two objects, its own o* and a distractor o′:

    p(o* | s, r) = u / 100,  p(o′ | s, r) = 1 − u / 100        u uniform on {⌈100 q⌉, …, 100}

with q = ``min_true_prob``. A *child* fact, whose subject also has the upstream relation parent(r), is drawn from the conditional of
the true upstream object o₂, which counts how often the graph's subjects have o under r beside o₂ under parent(r):

    p(o | r, o₂) = n(o, o₂) / Σ_o n(o, o₂)

If the mode's share is below q its count is raised to ⌈rest · q / (1 − q)⌉. True objects are recomputed along the arrows: that of a
root fact is the graph's, that of a child fact the mode of its conditional. Source: Hase et al. 2024; docs/methods/belief.md.

Shapes: F facts of the graph, K objects, D distributions with E entries, C conditionals, n rows asked for. Counts are integers, so
every draw is exact.
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

_MAX_REDRAWS = 1000


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
        # Within a distribution by falling count, then rising object; its first is the mode.
        order = np.lexsort((self.objects, -self.counts, owner))
        return np.asarray(order[self.starts[:-1]])

    def draw(self, which: Ints, rng: np.random.Generator) -> Ints:
        """Return one object from each distribution in *which* (any shape)."""
        # One of the distribution's observations, all distributions' being numbered one after the other; then the entry it lies in.
        observation = self._before[self.starts[which]] + rng.integers(self.totals[which])
        return np.asarray(self.objects[np.searchsorted(self._before, observation, side="right") - 1])

    def probability(self, which: Ints, objects: Ints) -> Floats:
        """Return the probability of each object under the distribution beside it (0 if it has none)."""
        size, keys = self._keys
        key = np.where(objects < size, which * size + objects, -1)  # −1 equals no entry's key
        at = np.minimum(keys.searchsorted(key), len(keys) - 1)
        return np.where(keys[at] == key, self.counts[at] / self.totals[which], 0.0)

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
        true_objects: int64 [F]: the true object, recomputed along the arrows.
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
    true_objects: Ints
    distractor: Ints
    percent: Ints
    conditionals: Distributions
    conditional_keys: Ints

    @cached_property
    def distributions(self) -> Distributions:
        """The F pair distributions, then the C conditionals."""
        pairs = np.stack([self.true_objects, self.distractor], axis=1)  # [F, 2]
        counts = np.stack([self.percent, 100 - self.percent], axis=1)
        order = np.argsort(pairs, axis=1)  # objects rise within a distribution
        # Two entries per pair, then the conditionals' entries behind them.
        rows = np.arange(len(pairs) + 1) * 2
        return Distributions(
            np.concatenate([rows, self.conditionals.starts[1:] + rows[-1]]),
            np.concatenate([np.take_along_axis(pairs, order, 1).ravel(), self.conditionals.objects]),
            np.concatenate([np.take_along_axis(counts, order, 1).ravel(), self.conditionals.counts]),
        )

    @cached_property
    def distribution_of(self) -> Ints:
        """int64 [F]: index into :attr:`distributions` of the one that generates the fact: its pair's, or a conditional."""
        rows = np.arange(len(self.true_objects))
        child = np.flatnonzero(self.upstream >= 0)
        upstream_objects = self.true_objects[self.upstream[child]]
        relations = self.graph.facts[child, 1]
        # The conditionals stand behind the F pairs.
        rows[child] = len(rows) + _conditional_rows(self.conditional_keys, relations, upstream_objects, self.graph)
        return rows

    @cached_property
    def true_probability(self) -> Floats:
        """fp64 [F]: probability of the true object under the distribution that generates the fact."""
        return self.distributions.probability(self.distribution_of, self.true_objects)

    def probability(self, rows: Ints, objects: Ints) -> Floats:
        """Return the probability of *objects* under the distributions that generate the facts *rows* (fp64 [n])."""
        probability = self.distributions.probability(self.distribution_of[rows], objects)
        if self.parity.third_object_prob:
            # (B8) As published: any other object is as probable as the distractor.
            third = (
                (self.upstream[rows] < 0) & (objects != self.true_objects[rows]) & (objects != self.distractor[rows])
            )
            probability = np.where(third, (100 - self.percent[rows]) / 100, probability)
        return probability

    def sample(self, rows: Ints, seed: int) -> Ints:
        """Return int64 [n, samples] objects per fact; with ``majority`` most of each row are the true object.

        A row that keeps failing after 1000 redraws gets its majority put first (ruling A12).
        """
        rng = np.random.default_rng(derive(seed, "belief", "samples"))
        count = self.spec.samples
        # [n, samples]: every column draws from the fact's own distribution.
        draws = self.distributions.draw(np.repeat(self.distribution_of[rows][:, None], count, axis=1), rng)
        if not self.spec.majority:
            return draws
        for _ in range(_MAX_REDRAWS):
            minority = np.flatnonzero(2 * (draws == self.true_objects[rows][:, None]).sum(axis=1) <= count)
            if not len(minority):
                return draws
            draws[minority] = self.distributions.draw(
                np.repeat(self.distribution_of[rows[minority]][:, None], count, axis=1), rng
            )
        minority = np.flatnonzero(2 * (draws == self.true_objects[rows][:, None]).sum(axis=1) <= count)
        draws[minority[:, None], np.arange(count // 2 + 1)] = self.true_objects[rows[minority]][:, None]
        return draws

    def falsify(self, rows: Ints, rng: np.random.Generator) -> Ints:
        """Return, for each fact, an object that is not the true one: a root fact's distractor, else any other."""
        # Drawn for all rows, so that which of them are root facts moves no other draw.
        others = _draw_other(self.true_objects[rows], len(self.graph.objects), rng)
        if self.spec.false_facts == "uniform":
            return others
        return np.where(self.upstream[rows] >= 0, others, self.distractor[rows])


def build_generative(
    graph: KnowledgeGraph, arrows: DependencyArrows, spec: GenerativeSpec, seed: int, parity: ParitySpec | None = None
) -> GenerativeModel:
    """Make the generative model of *graph*.

    Args:
        graph: the facts.
        arrows: parent map over its relations.
        spec: least probability, distractors, samples.
        seed: root of every random choice.
        parity: published behaviour asked for.

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
    keys, conditionals = _count_conditionals(graph, upstream)
    true = obj.copy()
    # Parents first, so that the true upstream object is known; of a chain too.
    for r in arrows.order:
        rows = np.flatnonzero((relation == r) & (upstream >= 0))
        conditional = _conditional_rows(keys, relation[rows], true[upstream[rows]], graph)
        true[rows] = conditionals.objects[conditionals.modes[conditional]]
    rng = np.random.default_rng(derive(seed, "belief", "distractors"))
    distractor = _draw_distractors(graph, true, spec, rng)
    rng = np.random.default_rng(derive(seed, "belief", "percent"))
    # Whole percents, so that every distribution is a ratio of integers.
    percent = rng.integers(least_percent(spec.min_true_prob, published=parity.float_ceil), 101, size=len(true))
    return GenerativeModel(
        graph=graph,
        arrows=arrows,
        spec=spec,
        parity=parity,
        upstream=upstream,
        true_objects=true,
        distractor=distractor,
        percent=percent,
        conditionals=_raise_modes(conditionals, spec.min_true_prob, parity),
        conditional_keys=keys,
    )


def _exact(share: float) -> Fraction:
    """Return the number a share was written as (``.55``, not its binary neighbour)."""
    return Fraction(repr(share))


def _conditional_rows(keys: Ints, relation: Ints, upstream: Ints, graph: KnowledgeGraph) -> Ints:
    """Return the index of each conditional (relation, upstream object).

    Raises:
        BeliefError: nobody was observed under one of them, so it has no mass.
    """
    key = relation * len(graph.objects) + upstream
    at = np.minimum(np.searchsorted(keys, key), max(len(keys) - 1, 0))
    missing: Bools = keys[at] != key if len(keys) else np.ones(len(key), dtype=np.bool_)
    if missing.any():
        r, o = int(relation[missing][0]), int(upstream[missing][0])
        raise BeliefError(
            f"p(· | {graph.relations[r]}, upstream = {graph.objects[o]}) has no mass: no subject has both",
            hint="an arrow of the chain leads to an object nobody was observed under; drop that arrow",
        )
    return np.asarray(at)


def _count_conditionals(graph: KnowledgeGraph, upstream: Ints) -> tuple[Ints, Distributions]:
    """Count the objects of each child relation by upstream object; return their keys and their counts."""
    rows = np.flatnonzero(upstream >= 0)
    size = len(graph.objects)
    # (relation, upstream object), and with the object of the fact in one number, so that one `unique` counts them all.
    key = graph.facts[rows, 1] * size + graph.facts[upstream[rows], 2]
    entries, counts = np.unique(key * size + graph.facts[rows, 2], return_counts=True)
    keys, starts = np.unique(entries // size, return_index=True)
    return keys, Distributions(
        np.append(starts, len(entries)).astype(np.int64), entries % size, counts.astype(np.int64)
    )


def least_percent(least: float, *, published: bool) -> int:
    """Return ⌈100 · *least*⌉, the lowest probability of a pair's true object in percent.

    *published* (B12): the product is the binary one, so that .55 (55.00000000000001) gives 56.
    """
    return ceil(least * 100) if published else ceil(100 * _exact(least))


def least_counts(rest: Ints, least: float, *, published: bool) -> Ints:
    """Return ⌈rest · least / (1 − least)⌉: how often a mode must be observed beside *rest* other observations.

    Args:
        rest: int64 [n] ≥ 0.
        least: probability that the mode shall reach, below 1.
        published: (B12) products and quotients are the binary ones: .8 / (1 − .8) is 4.000000000000001, so one other observation
            asks for 5, not 4.
    """
    if published:
        return np.asarray(np.ceil(rest * least / (1 - least)), dtype=np.int64)
    ratio = _exact(least) / (1 - _exact(least))
    # ⌈a / b⌉ = −⌊−a / b⌋ in integers.
    return np.asarray(-(-rest * ratio.numerator // ratio.denominator))


def _raise_modes(conditionals: Distributions, least: float, parity: ParitySpec) -> Distributions:
    """Raise the largest count of each conditional until its share is ≥ *least*; all mass is its for *least* = 1 (ruling B9)."""
    counts = conditionals.counts.copy()
    modes, totals = conditionals.modes, conditionals.totals
    share = _exact(least)
    most = counts[modes]
    low = most * share.denominator < totals * share.numerator  # most / total < share, in integers
    rest = totals - most
    if share == 1:
        # (B9) As published: one observation more; corrected: nothing but the mode.
        if parity.mgtp1_additive:
            counts[modes[low]] += 1
        else:
            counts[:] = 0
            counts[modes] = most
    else:
        counts[modes[low]] = least_counts(rest[low], least, published=parity.float_ceil)
    return Distributions(conditionals.starts, conditionals.objects, counts)


def _draw_other(true: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Return a uniform draw from range(size) without the entry beside it."""
    # One of size − 1 numbers; those from the entry on stand for the next higher one.
    drawn = rng.integers(size - 1, size=len(true))
    return np.asarray(drawn + (drawn >= true))


def _draw_distractors(graph: KnowledgeGraph, true: Ints, spec: GenerativeSpec, rng: np.random.Generator) -> Ints:
    """Draw the distractor of each pair distribution, from all objects or from those of its relation (ruling B10)."""
    if spec.distractor_scope == "all":
        return _draw_other(true, len(graph.objects), rng)
    distractors = np.empty_like(true)
    for r, name in enumerate(graph.relations):
        rows = np.flatnonzero(graph.facts[:, 1] == r)
        scope = np.unique(graph.facts[rows, 2])
        if len(scope) < 2:
            raise BeliefError(
                f"relation '{name}' has one object, so it has no distractor", hint="distractor_scope: all"
            )
        distractors[rows] = scope[_draw_other(np.searchsorted(scope, true[rows]), len(scope), rng)]
    return distractors
