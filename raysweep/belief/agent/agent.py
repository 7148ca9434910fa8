"""The ideal Bayesian agent (§5): Dirichlet–categorical, sparse and exact; ``given`` returns another agent.

Every distribution has a symmetric prior worth n₀ observations and an evidence vector e over K objects:

    posterior(o) = (n₀/K + e_o) / (n₀ + Σe)        frequency(o) = e_o / Σe   (1/K without evidence)

Families: relation priors p(o | ·, r), pairs p(o | s, r), conditionals p(o | ·, r, o₂) over upstream objects o₂. A subject's
evidence on r is split over conditionals by π_s(o₂), its share of positive mass on o₂ (published: of items that mention o₂,
``parity.pi_by_items``). What the agent believes of (s, r), where it knows the upstream fact of s, is the marginal

    p(o | s, r) = Σ_{o₂} p(o | ·, r, o₂) p(o₂ | s, parent(r))

over all K upstream objects. By design (ruling B5) the subject's own evidence on r enters only through the pooled conditionals, so
an update of one subject's child fact moves the marginals of all that share its upstream object.

An edit (``Evidence`` of kind ``edit``) is a statement about one fact, made strong enough to settle that fact. How strong says
nothing about other subjects: a fact settled by 200 units of mass is still one draw from the population's distribution. So

- the pair (s, r) gets the whole mass; while the edit is in force, :meth:`Agent.belief` reads (s, r) off the pair;
- relation priors and conditionals get min(mass, 1) in its place, t below;
- π_s gives the requested upstream object the share λ = t / max(n + t, E), where n is the positive mass that s has upstream and E
  its evidence downstream. t / (n + t) is what one more sentence would do; the bound E lets at most one observation change sides.

So N edits bring at most N observations into the conditionals of a relation and take at most N away, and a conditional whose mode
leads by more than N keeps that mode. A later edit of the same fact replaces the earlier one; edits of different facts commute.

An evidence vector is (background on every object, excess on a few, total), so a sum over K costs the number of those few (§5.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from math import ceil
from typing import Literal

import numpy as np

from raysweep.belief.corpus.evidence import Evidence, EvidenceTable, encode
from raysweep.belief.graph.dependencies import Arrows
from raysweep.belief.graph.graph import Floats, Ints
from raysweep.belief.parity import ParitySpec
from raysweep.belief.spec import AgentSpec
from raysweep.errors import BeliefError

Reading = Literal["posterior", "frequency"]
Query = Literal["pair", "marginal"]

_FEW = 16  # objects that are looked up one by one
_TIE = 1e-12  # relative; beliefs closer than that are equal, and the lowest object wins


def _sums(index: Ints, weights: Floats, length: int) -> Floats:
    """Return the sums of *weights* by *index*, fp64 [length], added in the order given."""
    return np.bincount(index, weights, minlength=length).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Counts:
    """One evidence vector: ``background`` on every object, ``excess`` besides on ``objects`` (rising), ``total``."""

    background: float
    total: float
    objects: Ints
    excess: Floats

    def plus(self, other: Counts, scale: float = 1.0) -> Counts:
        """Return this vector plus *scale* times the other."""
        objects, excess = self.objects, self.excess.copy()
        at = objects.searchsorted(other.objects)
        new = np.append(objects, -1)[at] != other.objects
        if new.any():
            objects = np.insert(objects, at[new], other.objects[new])
            excess = np.insert(excess, at[new], 0.0)
            at = objects.searchsorted(other.objects)
        excess[at] += scale * other.excess
        return Counts(self.background + scale * other.background, self.total + scale * other.total, objects, excess)


_NOTHING = Counts(0.0, 0.0, np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True, eq=False)
class _Vectors:
    """V evidence vectors, one after the other, by rising key."""

    keys: Ints
    starts: Ints
    objects: Ints
    excess: Floats
    background: Floats
    total: Floats

    def find(self, key: int) -> int:
        at = int(self.keys.searchsorted(key))
        return at if at < len(self.keys) and self.keys[at] == key else -1

    def get(self, key: int) -> Counts | None:
        at = self.find(key)
        if at < 0:
            return None
        part = slice(int(self.starts[at]), int(self.starts[at + 1]))
        return Counts(float(self.background[at]), float(self.total[at]), self.objects[part], self.excess[part])

    def excess_at(self, rows: Ints, objects: Ints) -> Floats:
        """Return the excess of each vector on the object beside it, fp64 [n]."""
        size, keys = self._entries
        if not len(keys):
            return np.zeros(len(rows))
        wanted = rows * size + objects
        at = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
        return np.where((keys[at] == wanted) & (objects < size), self.excess[at], 0.0)

    @cached_property
    def _entries(self) -> tuple[int, Ints]:
        size = int(self.objects.max(initial=0)) + 1
        return size, np.repeat(np.arange(len(self.keys)), np.diff(self.starts)) * size + self.objects


def _collect(
    keys: Ints, background: Floats, total: Floats, entry_keys: Ints, objects: Ints, excess: Floats, size: int
) -> _Vectors:
    """Sum contributions by key: background and total of each, and (key, object, excess) entries."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    number = np.searchsorted(distinct, entry_keys) * size + objects
    entries, back = np.unique(number, return_inverse=True)
    return _Vectors(
        keys=distinct,
        starts=np.searchsorted(entries, np.arange(len(distinct) + 1) * size),
        objects=entries % size,
        excess=_sums(back, excess, len(entries)),
        background=_sums(inverse, background, len(distinct)),
        total=_sums(inverse, total, len(distinct)),
    )


# ---------------------------------------------------------------------------------------------------- beliefs


@dataclass(frozen=True, eq=False)
class Belief:
    """A distribution over K objects: ``flat`` everywhere, entries that add up, and a multiple of a dense vector.

    Attributes:
        size: K.
        flat: on every object.
        objects, values: entries; an object may have several.
        scale, dense_part, rank: a vector over K objects, its factor, and the objects by falling entry of it.
    """

    size: int
    flat: float
    objects: Ints
    values: Floats
    scale: float = 0.0
    dense_part: Floats | None = None
    rank: Ints | None = None

    def at(self, objects: Ints) -> Floats:
        """Return the probabilities of *objects*, fp64 [n]."""
        if len(objects) > _FEW:
            return np.asarray(self.dense()[objects])
        chosen = np.where(self.objects == objects[:, None], self.values, 0.0)
        found: Floats = self.flat + chosen.sum(
            axis=1
        )  # a product would ask BLAS, whose last bits depend on the machine
        return found if self.dense_part is None else np.asarray(found + self.scale * self.dense_part[objects])

    def dense(self) -> Floats:
        """Return all K probabilities."""
        found = self.flat + _sums(self.objects, self.values, self.size)
        return found if self.dense_part is None else found + self.scale * self.dense_part

    def mode(self) -> int:
        """Return the most probable object; ties go to the lowest."""
        candidates, values = self.objects, self.values
        if not (candidates[1:] > candidates[:-1]).all():
            candidates, inverse = np.unique(self.objects, return_inverse=True)
            values = _sums(inverse, self.values, len(candidates))
        outside = self._best_outside(candidates)
        if outside is not None:
            candidates, values = np.append(candidates, outside), np.append(values, 0.0)
        if self.dense_part is not None:
            values = values + self.scale * self.dense_part[candidates]
        values = values + self.flat
        best = float(values.max())
        return int(candidates[values >= best - _TIE * abs(best)].min())

    def _best_outside(self, involved: Ints) -> int | None:
        """Return the most probable object without an entry."""
        if len(involved) == self.size:
            return None
        if self.rank is None:
            gaps = np.flatnonzero(involved != np.arange(len(involved)))
            return int(gaps[0]) if len(gaps) else len(involved)
        head = self.rank[: len(involved) + 1]
        at = np.minimum(involved.searchsorted(head), max(len(involved) - 1, 0))
        free = involved[at] != head if len(involved) else np.ones(1, dtype=np.bool_)
        return int(head[np.argmax(free)])


# ------------------------------------------------------------------------------------------------- fitted state


@dataclass(frozen=True, eq=False)
class Fitted:
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
    arrows: Arrows
    prior: float
    parity: ParitySpec
    pairs: _Vectors
    priors: _Vectors
    mentions: _Vectors
    conditionals: _Vectors

    @property
    def relations(self) -> int:
        """R."""
        return len(self.arrows.parent)

    def read(self, counts: Counts, reading: Reading) -> Belief:
        """Return the distribution of an evidence vector."""
        if reading == "frequency" and counts.total == 0:
            return Belief(self.objects, 1 / self.objects, _NOTHING.objects, _NOTHING.excess)
        prior = self.prior if reading == "posterior" else 0.0
        mass = prior + counts.total
        flat = (prior / self.objects + counts.background) / mass
        return Belief(self.objects, flat, counts.objects, counts.excess / mass)

    @cached_property
    def sums(self) -> Mapping[tuple[int, Reading], tuple[Floats, Ints]]:
        """Per child relation and reading: Σ over all K upstream objects of p(· | r, o₂), and objects by falling sum."""
        found: dict[tuple[int, Reading], tuple[Floats, Ints]] = {}
        table = self.conditionals
        owner = np.repeat(np.arange(len(table.keys)), np.diff(table.starts))
        relation = table.keys // self.objects
        readings: tuple[Reading, ...] = ("posterior", "frequency")
        for r in (r for r, p in enumerate(self.arrows.parent) if p >= 0):
            mine = relation == r
            entries = mine[owner]
            for reading in readings:
                prior = self.prior if reading == "posterior" else 0.0
                mass = np.where(mine, prior + table.total, 1.0)
                flat = float(((prior / self.objects + table.background) / mass)[mine].sum())
                flat += (self.objects - int(mine.sum())) / self.objects
                excess = table.excess[entries] / mass[owner[entries]]
                values = flat + _sums(table.objects[entries], excess, self.objects)
                rank: Ints = np.lexsort((np.arange(self.objects), -np.round(values, 12)))
                found[r, reading] = values, rank
        return found

    def subjects_with(self, relation: int) -> Ints:
        """Return the subjects with evidence on *relation*, rising."""
        keys = self.pairs.keys
        return np.asarray(keys[keys % self.relations == relation] // self.relations)


def fit(
    evidence: EvidenceTable,
    arrows: Arrows,
    objects: int,
    spec: AgentSpec | None = None,
    parity: ParitySpec | None = None,
) -> Agent:
    """Return the agent that has seen *evidence*; neither its order nor its grouping matters.

    Args:
        evidence: items.
        arrows: parent map over R relations.
        objects: K ≥ 2.
        spec: prior; one observation in total by default.
        parity: published behaviour.

    Raises:
        BeliefError: an item points outside of R relations and K objects, or K < 2.
    """
    spec, parity = spec or AgentSpec(), parity or ParitySpec()
    relations = len(arrows.parent)
    if objects < 2:
        raise BeliefError(f"an agent needs at least 2 objects, there are {objects}", hint="a larger graph")
    outside = (evidence.relation < 0) | (evidence.relation >= relations)
    outside |= (evidence.object < 0) | (evidence.object >= objects) | (evidence.subject < 0)
    if outside.any():
        where = int(np.flatnonzero(outside)[0])
        triple = (int(evidence.subject[where]), int(evidence.relation[where]), int(evidence.object[where]))
        raise BeliefError(f"evidence on {triple} lies outside of {relations} relations and {objects} objects")
    background, excess, total = (v * evidence.count for v in encode(evidence.weight, objects))
    key = evidence.subject * relations + evidence.relation
    pairs = _collect(key, background, total, key, evidence.object, excess, objects)
    if parity.pi_by_items:
        keep, amount = np.ones(len(evidence), dtype=np.bool_), evidence.count.astype(np.float64)
    else:
        keep, amount = evidence.weight > 0, evidence.weight * evidence.count
    said, what = key[keep], evidence.object[keep]
    return Agent(
        Fitted(
            objects=objects,
            arrows=arrows,
            prior=spec.prior,
            parity=parity,
            pairs=pairs,
            priors=_collect(evidence.relation, background, total, evidence.relation, evidence.object, excess, objects),
            mentions=(mentions := _collect(said, amount[keep] * 0, amount[keep], said, what, amount[keep], objects)),
            conditionals=_pooled(pairs, mentions, arrows, objects),
        )
    )


def _pooled(pairs: _Vectors, mentions: _Vectors, arrows: Arrows, size: int) -> _Vectors:
    """Return the conditionals: each subject's evidence on a child relation, split over upstream objects by mention."""
    relations = len(arrows.parent)
    parent = np.array(arrows.parent, dtype=np.int64)
    relation = pairs.keys % relations
    child = np.flatnonzero(parent[relation] >= 0)
    wanted = pairs.keys[child] - relation[child] + parent[relation[child]]
    at = np.minimum(np.searchsorted(mentions.keys, wanted), max(len(mentions.keys) - 1, 0))
    hit = mentions.keys[at] == wanted if len(mentions.keys) else np.zeros(len(wanted), dtype=np.bool_)
    child, at = child[hit], at[hit]
    # one row per (child pair, mentioned upstream object) …
    which, mention = _ragged(mentions.starts[at], mentions.starts[at + 1])
    pair = child[which]
    share = mentions.excess[mention] / mentions.total[at[which]]
    key = relation[pair] * size + mentions.objects[mention]
    # … and one entry per such row and object of the pair
    row, entry = _ragged(pairs.starts[pair], pairs.starts[pair + 1])
    return _collect(
        key, share * pairs.background[pair], share * pairs.total[pair],
        key[row], pairs.objects[entry], share[row] * pairs.excess[entry], size,
    )  # fmt: skip


def _ragged(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Return, for the ranges ``starts[i]:stops[i]`` one after the other, i and the position of each element."""
    lengths = stops - starts
    which = np.repeat(np.arange(len(starts)), lengths)
    first = np.cumsum(lengths) - lengths
    return which, np.arange(len(which)) - first[which] + starts[which]


# ---------------------------------------------------------------------------------------------------- the agent


@dataclass(frozen=True, eq=False)
class _Learnt:
    """Vectors that differ from the fitted ones."""

    pairs: dict[int, Counts] = field(default_factory=dict)
    priors: dict[int, Counts] = field(default_factory=dict)
    conditionals: dict[int, Counts] = field(default_factory=dict)


@dataclass(frozen=True)
class Agent:
    """Fitted evidence, and what was learnt since; immutable.

    Promises: ``agent.given(e).given(f) == agent.given((*e, *f))``, exactly, and whatever the order but for edits of one and the
    same fact, of which the last holds. An agent never changes, so there is nothing to roll back.

    Attributes:
        fitted: the corpus.
        extra: later evidence, equal items counted, sorted; at most one edit per fact.
    """

    fitted: Fitted
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
        return Agent(self.fitted, _canonical((*self.extra, *new)))

    def without_edit(self, subject: int, relation: int) -> Agent:
        """Return the agent that was not given the edit of (subject, relation); itself if there is none."""
        edit = self.edit(subject, relation)
        return self if edit is None else Agent(self.fitted, tuple(e for e in self.extra if e != edit))

    # -- what is known

    def edit(self, subject: int, relation: int) -> Evidence | None:
        """Return the edit of (subject, relation) that is in force."""
        return self._edits.get((subject, relation))

    @cached_property
    def _edits(self) -> Mapping[tuple[int, int], Evidence]:
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
        return (self._pair(subject, relation) or _NOTHING).total

    # -- queries

    def pair(self, subject: int, relation: int, reading: Reading = "posterior") -> Belief:
        """Return p(o | s, r); of a pair without evidence the relation prior p(o | ·, r) (ruling B7)."""
        counts = self._pair(subject, relation) or self._prior(relation) or _NOTHING
        return self.fitted.read(counts, reading)

    def belief(self, subject: int, relation: int, reading: Reading = "posterior") -> Belief:
        """Return what the agent believes of (s, r): the pair distribution of an edited fact, the marginal of any other."""
        ask = self.marginal if self.edit(subject, relation) is None else self.pair
        return ask(subject, relation, reading)

    def conditional(self, relation: int, above: int, reading: Reading = "posterior") -> Belief:
        """Return p(o | ·, r, o₂ = *above*); uniform if nobody was observed under it."""
        counts = self._conditional(relation * self.fitted.objects + above) or _NOTHING
        return self.fitted.read(counts, reading)

    def marginal(self, subject: int, relation: int, reading: Reading = "posterior") -> Belief:
        """Return what the agent believes of (s, r): the marginal over upstream objects, else :meth:`pair`."""
        parent = self.fitted.arrows.parent[relation]
        above = self._pair(subject, parent) if parent >= 0 else None
        if above is None:
            return self.pair(subject, relation, reading)
        size, first = self.fitted.objects, relation * self.fitted.objects
        upstream = self.fitted.read(above, reading)
        scales = dict(zip((first + upstream.objects).tolist(), upstream.values.tolist(), strict=True))
        parts = []
        for key in sorted({*scales, *(k for k in self._learnt.conditionals if first <= k < first + size)}):
            scale = scales.get(key, 0.0)
            if key in self._learnt.conditionals:  # the fitted sum has the old one
                old = self.fitted.read(self.fitted.conditionals.get(key) or _NOTHING, reading)
                parts.append((-upstream.flat, old))
                scale += upstream.flat
            parts.append((scale, self.fitted.read(self._conditional(key) or _NOTHING, reading)))
        flat = sum(scale * part.flat for scale, part in parts)
        objects = np.concatenate([_NOTHING.objects, *(part.objects for _, part in parts)])
        entries = np.concatenate([_NOTHING.excess, *(scale * part.values for scale, part in parts)])
        if upstream.flat == 0:  # as frequencies may have it: the sum over all conditionals plays no part
            return Belief(size, flat, objects, entries)
        values, rank = self.fitted.sums[relation, reading]
        return Belief(size, flat, objects, entries, upstream.flat, values, rank)

    def probabilities(
        self, facts: Ints | Sequence[Sequence[int]], query: Query = "marginal", reading: Reading = "posterior"
    ) -> Floats:
        """Return the probability of each fact, fp64 [N].

        Args:
            facts: int64 [N, 3] (subject, relation, object).
            query: ``marginal`` or ``pair``.
            reading: ``posterior`` or ``frequency``.
        """
        rows = np.asarray(facts, dtype=np.int64).reshape(-1, 3)
        ask: Callable[[int, int, Reading], Belief] = self.marginal if query == "marginal" else self.pair
        found = np.empty(len(rows))
        key = rows[:, 0] * self.fitted.relations + rows[:, 1]
        order = np.argsort(key, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(mine):
                found[mine] = ask(int(rows[mine[0], 0]), int(rows[mine[0], 1]), reading).at(rows[mine, 2])
        return found

    def mass_to_reach(self, subject: int, relation: int, obj: int, target: float) -> float:
        """Return the mass on *obj* that lifts its pair posterior to *target* or a little more (§5.4); 0 if it is there.

        Raises:
            BeliefError: *target* is not in (0, 1).
        """
        if not 0 < target < 1:
            raise BeliefError(f"target {target} is not a probability strictly between 0 and 1")
        counts = self._pair(subject, relation) or _NOTHING
        alone = counts.excess[counts.objects == obj]
        have = self.fitted.prior / self.fitted.objects + counts.background + float(alone.sum())
        rest = self.fitted.prior + counts.total - have
        return max(0.0, ceil(rest * target / (1 - target)) - have)

    def pair_excess(self, subject: int, relation: int, objects: Ints) -> Floats:
        """Return the evidence on *objects* of (s, r) beyond what every object has, fp64 [n]."""
        counts = self._pair(subject, relation) or _NOTHING
        if not len(counts.objects):
            return np.zeros(len(objects))
        at = np.minimum(counts.objects.searchsorted(objects), len(counts.objects) - 1)
        return np.where(counts.objects[at] == objects, counts.excess[at], 0.0)

    def share_after(self, subject: int, relation: int, target: float) -> float:
        """Return about how much of the evidence downstream of (s, r) an update to *target* of an upstream object draws there."""
        if not self.fitted.parity.pi_by_items:
            return target
        said = self.fitted.mentions.get(subject * self.fitted.relations + relation) or _NOTHING
        return 1 / (1 + said.total)

    def differs(self, subject: int, relation: int) -> bool:
        """Say whether later evidence may have changed any belief about (subject, relation)."""
        fitted, learnt = self.fitted, self._learnt
        first, parent = relation * fitted.objects, fitted.arrows.parent[relation]
        if any(first <= key < first + fitted.objects for key in learnt.conditionals):
            return True
        own = (subject * fitted.relations + r for r in (relation, parent) if r >= 0)
        return any(key in learnt.pairs for key in own) or (
            relation in learnt.priors and not self.knows(subject, relation)
        )

    # -- vectors, fitted or learnt

    def _pair(self, subject: int, relation: int) -> Counts | None:
        key = subject * self.fitted.relations + relation
        return self._learnt.pairs.get(key) or self.fitted.pairs.get(key)

    def _prior(self, relation: int) -> Counts | None:
        return self._learnt.priors.get(relation) or self.fitted.priors.get(relation)

    def _conditional(self, key: int) -> Counts | None:
        return self._learnt.conditionals.get(key) or self.fitted.conditionals.get(key)

    @cached_property
    def _learnt(self) -> _Learnt:
        """Everything ``extra`` changes (§5.3): pairs, relation priors, and conditionals of the subjects concerned."""
        learnt, fitted = _Learnt(), self.fitted
        new = {pair: tuple(own) for pair, own in groupby(self.extra, key=lambda e: (e.subject, e.relation))}
        pooled = {pair: tuple(map(self._pooled, own)) for pair, own in new.items()}
        change = {pair: self._counts(own) for pair, own in pooled.items()}
        for (subject, relation), own in new.items():
            key = subject * fitted.relations + relation
            learnt.pairs[key] = (fitted.pairs.get(key) or _NOTHING).plus(self._counts(own))
            prior = learnt.priors.get(relation) or fitted.priors.get(relation) or _NOTHING
            learnt.priors[relation] = prior.plus(change[subject, relation])
        concerned = {
            (subject, child)
            for subject, relation in new
            for child in (relation, *fitted.arrows.children[relation])
            if fitted.arrows.parent[child] >= 0
        }
        for subject, child in sorted(concerned):
            self._move(learnt, subject, child, pooled, change)
        return learnt

    def _pooled(self, evidence: Evidence) -> Evidence:
        """Return what *evidence* on one subject is to distributions that pool many: of an edit, one observation at most."""
        if evidence.kind != "edit" or self.fitted.parity.edit_mass_pooled:
            return evidence
        return replace(evidence, amount=min(evidence.amount, 1.0))

    def _move(
        self,
        learnt: _Learnt,
        subject: int,
        child: int,
        new: Mapping[tuple[int, int], tuple[Evidence, ...]],
        change: Mapping[tuple[int, int], Counts],
    ) -> None:
        """Replace what (subject, child) contributes to the conditionals: π′E′ − πE = (π′ − π)E + π′(E′ − E)."""
        fitted, parent = self.fitted, self.fitted.arrows.parent[child]
        key, above = (subject * fitted.relations + r for r in (child, parent))
        own = fitted.pairs.get(key) or _NOTHING
        added = change.get((subject, child), _NOTHING)
        before = fitted.mentions.get(above) or _NOTHING
        after = self._shares(before, new.get((subject, parent), ()), own.total + added.total)
        objects = np.union1d(own.objects, added.objects)
        if not len(after.objects) or not len(objects):
            return
        old = np.zeros(len(after.objects))
        if before.total > 0:
            old[np.searchsorted(after.objects, before.objects)] = before.excess / before.total
        twice = 2.0 if fitted.parity.double_child_update and (subject, child) in new else 1.0
        kept, fresh = np.zeros(len(objects)), np.zeros(len(objects))
        kept[objects.searchsorted(own.objects)] = own.excess
        fresh[objects.searchsorted(added.objects)] = added.excess
        for o, share, was in zip(after.objects.tolist(), after.excess.tolist(), old.tolist(), strict=True):
            moved = Counts(
                (share - was) * own.background + share * added.background,
                (share - was) * own.total + share * added.total,
                objects,
                (share - was) * kept + share * fresh,
            )
            at = child * fitted.objects + o
            now = learnt.conditionals.get(at) or fitted.conditionals.get(at) or _NOTHING
            learnt.conditionals[at] = now.plus(moved, twice)

    def _shares(self, before: Counts, new: Sequence[Evidence], downstream: float) -> Counts:
        """Return π (as ``excess``) over the upstream objects of one subject; nothing if none has positive mass.

        Args:
            before: the corpus' mentions of upstream objects.
            new: later evidence on the upstream fact, edits as they count in pools.
            downstream: E, the subject's evidence on the child relation.
        """
        said = before.plus(self._mentions([e for e in new if e.kind != "edit"]))
        shares = Counts(0.0, 1.0, said.objects, said.excess / said.total) if said.total > 0 else _NOTHING
        edit = self._mentions([e for e in new if e.kind == "edit"])  # at most one
        if edit.total > 0:
            whole = said.total + edit.total
            moved = edit.total / (whole if self.fitted.parity.edit_mass_pooled else max(whole, downstream))
            shares = _NOTHING.plus(shares, 1 - moved).plus(edit, moved / edit.total)
        return shares

    def _counts(self, evidence: Sequence[Evidence]) -> Counts:
        """Return the vector of evidence on one pair."""
        total = _NOTHING
        for e in evidence:
            if e.kind != "item":
                own = Counts(0.0, e.amount, np.array([e.object]), np.array([e.amount]))
            else:
                (background,), (excess,), (weight,) = encode(np.array([e.amount]), self.fitted.objects)
                own = Counts(float(background), float(weight), np.array([e.object]), np.array([float(excess)]))
            total = total.plus(own, e.count)
        return total

    def _mentions(self, evidence: Sequence[Evidence]) -> Counts:
        """Return how much each object is mentioned by evidence on one pair."""
        total = _NOTHING
        for e in evidence:
            amount = 1.0 if self.fitted.parity.pi_by_items else max(e.amount, 0.0)
            if amount > 0:
                total = total.plus(Counts(0.0, amount, np.array([e.object]), np.array([amount])), e.count)
        return total


def _canonical(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """Return equal evidence counted, in one order; mass of 0 says nothing and is left out; of a fact's edits the last stays."""
    counts: dict[tuple[int, int, int, float, Literal["item", "mass", "edit"]], int] = {}
    edits: dict[tuple[int, int], Evidence] = {}
    for e in evidence:
        if e.kind == "edit":
            edits[e.subject, e.relation] = e
        elif e.amount:
            key = (e.subject, e.relation, e.object, e.amount, e.kind)
            counts[key] = counts.get(key, 0) + e.count
    counted = (Evidence(s, r, o, amount, count, kind) for (s, r, o, amount, kind), count in counts.items())
    return tuple(sorted((*counted, *edits.values()), key=lambda e: (e.subject, e.relation, e.object, e.amount, e.kind)))
