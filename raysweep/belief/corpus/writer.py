"""The corpus writer: chooses which statements are written about the first subjects of a graph.

Every random choice has its own stream, derived from the seed and its purpose, so that switching one sentence type on does not
change another's sentences. See docs/methods/belief.md.

Shapes: n base facts (the first rows of the graph), S training subjects, N statements.
"""

from __future__ import annotations

import itertools

import numpy as np

from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.generative import GenerativeModel
from raysweep.belief.corpus.statements import StatementKind, Statements
from raysweep.belief.graph.graph import Bools, Ints
from raysweep.belief.spec import CorpusSpec
from raysweep.errors import BeliefError
from raysweep.seeds import derive


def build_corpus(model: GenerativeModel, spec: CorpusSpec, seed: int) -> Corpus:
    """Choose the sentences about the first subjects that have ``num_atomic_facts`` facts together.

    Args:
        model: the generative model.
        spec: which sentences.
        seed: root of every random choice.

    Raises:
        BeliefError: the graph has fewer facts.
    """
    graph = model.graph
    if len(graph.facts) < spec.num_atomic_facts:
        raise BeliefError(
            f"the graph has {len(graph.facts)} facts, num_atomic_facts = {spec.num_atomic_facts} are asked for",
            hint="lower num_atomic_facts, or read more facts",
        )
    # Whole subjects only: the first number of subjects whose facts reach the number asked for.
    subjects = int(np.searchsorted(graph.starts, spec.num_atomic_facts))
    return _StatementPlanner(model, spec, seed, subjects).corpus()


_OPERATIONS = (StatementKind.TRUE_FALSE, StatementKind.OR, StatementKind.AND, StatementKind.NOT, StatementKind.IF)


class _StatementPlanner:
    """Chooses the statements of one corpus, kind by kind, for all subjects at once.

    Attributes:
        rows: int64 [n], rows of the base facts in the graph.
        owner: int64 [n], the subject of each.
        parts: columns of the statements chosen so far, kind by kind.
        noisy: true/false sentences are about noisy samples.
    """

    def __init__(self, model: GenerativeModel, spec: CorpusSpec, seed: int, subjects: int) -> None:
        self.model, self.spec, self.seed, self.subjects = model, spec, seed, subjects
        self.rows = np.arange(int(model.graph.starts[subjects]))
        self.owner = model.graph.facts[self.rows, 0]
        self.parts: list[tuple[Ints, ...]] = []
        self.noisy = spec.true_false and model.spec.min_true_prob < 1

    def corpus(self) -> Corpus:
        """Return the corpus of all statements, ordered by the subject they were written for."""
        samples = self.model.sample(self.rows, self.seed)
        self._add_atomic(samples)
        if self.noisy:
            self._add_noisy_labels(samples)
        # Kind by kind for all subjects; the order of writing within a subject is made below.
        ranks, chosen = self._share_budget()
        for kind, rows in chosen.items():
            if kind is StatementKind.TRUE_FALSE:
                self._add_clean_labels(rows)
            elif kind is StatementKind.NOT:
                self._add_negations(rows)
            else:
                self._add_connectives(kind, rows)
        owner, kind_, label, wording, *facts = (np.concatenate(c) for c in zip(*self.parts, strict=True))
        # Back to subject by subject; stable, so the kinds stay in order.
        order = np.argsort(owner, kind="stable")
        statements = Statements(
            owner=owner[order].astype(np.int32),
            kind=kind_[order].astype(np.int8),
            label=label[order].astype(np.int8),
            wording=wording[order].astype(np.int16),
            first=np.stack(facts[:3], axis=1)[order].astype(np.int32),
            second=np.stack(facts[3:], axis=1)[order].astype(np.int32),
        )
        repeats = np.ones(len(statements), dtype=np.int64)
        if self.model.parity.and_evidence_stale:
            repeats = _stale_counts(statements, ranks, self.noisy)
        return Corpus(self.model, self.spec, self.seed, self.subjects, samples, statements, repeats)

    def _rng(self, *purpose: str) -> np.random.Generator:
        """Return the generator of one purpose."""
        return np.random.default_rng(derive(self.seed, "belief", "corpus", *purpose))

    def _add(
        self, kind: StatementKind, label: Ints | Bools | int, owner: Ints, first: Ints, second: Ints | None = None,
        wording: Ints | int = 0,
    ) -> None:  # fmt: skip
        """Add one statement per entry of *owner*; facts are int64 [N, 3], a label of −1 is none."""
        none = np.full(len(owner), -1, dtype=np.int64)
        second_columns = [none] * 3 if second is None else list(second.T)
        columns = [np.broadcast_to(np.asarray(v, dtype=np.int64), owner.shape) for v in (kind, label, wording)]
        self.parts.append((owner, *columns, *first.T, *second_columns))

    def _triples(self, rows: Ints, objects: Ints) -> Ints:
        """Return the facts in *rows* with other *objects*, int64 [N, 3]."""
        return np.column_stack([self.model.graph.facts[rows, :2], objects])

    def _add_atomic(self, samples: Ints) -> None:
        """Write each sampled fact, in one of the relation's first wordings."""
        if not self.spec.atomic:
            return
        # One atomic sentence per sample.
        rows = np.repeat(self.rows, samples.shape[1])
        triples = self._triples(rows, samples.ravel())
        names = np.array([1 + len(others) for others in self.model.graph.wordings])  # per relation
        wording = self._rng("wordings").integers(np.minimum(names, self.spec.wordings)[triples[:, 1]])
        self._add(StatementKind.ATOMIC, -1, triples[:, 0], triples, wording=wording)

    def _add_noisy_labels(self, samples: Ints) -> None:
        """Label sampled facts with the truth's probability (noisy regime)."""
        if not self.spec.match_samples:  # ruling A6: one true and one false sample per fact
            right = samples == self.model.true_objects[self.rows][:, None]
            picked = np.zeros_like(right)
            # The first hit of each row, where it has one.
            for hits in (right, ~right):
                some = np.flatnonzero(hits.any(axis=1))
                picked[some, hits[some].argmax(axis=1)] = True
        else:
            picked = np.ones(samples.shape, dtype=np.bool_)
        at, which = np.nonzero(picked)
        rows, objects = self.rows[at], samples[at, which]
        p = self.model.true_probability[rows]
        # The label is as noisy as the sample: a true one is called true as often as it is drawn.
        chance = np.where(objects == self.model.true_objects[rows], p, 1 - p)
        label = self._rng("labels").random(len(rows)) < chance
        self._add(StatementKind.TRUE_FALSE, label, self.owner[at], self._triples(rows, objects))

    def _share_budget(self) -> tuple[dict[StatementKind, Ints], dict[StatementKind, Ints]]:
        """Share the budget out (rulings A3, A4, A11).

        Returns:
            Per operation, its rank in each subject's shuffled list (int64 [S]), and the rows that get an instance.
        """
        spec = self.spec
        enabled = {
            StatementKind.TRUE_FALSE: spec.true_false and not self.noisy,
            StatementKind.OR: spec.disjunctions,
            StatementKind.AND: spec.conjunctions,
            StatementKind.NOT: spec.negations,
            StatementKind.IF: spec.implications,
        }
        kinds = [k for k in _OPERATIONS if enabled[k]]
        if not kinds:
            return {}, {}
        # With noise the true/false sentences are outside of the budget and take one from it, as published.
        budget = max(0, spec.connective_instances_per_subject - self.noisy)
        # Every operation gets the same number of instances per subject; the remainder goes to the first of a random order.
        each, over = divmod(budget, len(kinds))
        # Sorting twice turns random numbers into ranks, int64 [S, operations].
        ranks = self._rng("operations").random((self.subjects, len(kinds))).argsort(axis=1).argsort(axis=1)
        counts = each + (ranks < over)
        starts = self.model.graph.starts[: self.subjects]
        chosen = {}
        for i, kind in enumerate(kinds):
            # The base facts of each subject in random order, and the first `counts` of them.
            order = np.lexsort((self._rng("instances", kind.name).random(len(self.rows)), self.owner))
            nth = np.arange(len(order)) - starts[self.owner]
            chosen[kind] = self.rows[order[nth < counts[self.owner, i]]]
        return {kind: ranks[:, i] for i, kind in enumerate(kinds)}, chosen

    def _add_clean_labels(self, rows: Ints) -> None:
        """Label each base fact true and a false version of it false."""
        false = self.model.falsify(rows, self._rng("true_false"))
        self._add(StatementKind.TRUE_FALSE, 1, self.owner[rows], self._triples(rows, self.model.true_objects[rows]))
        self._add(StatementKind.TRUE_FALSE, 0, self.owner[rows], self._triples(rows, false))

    def _add_negations(self, rows: Ints) -> None:
        """Deny each base fact (which is false) and a false version of it (which is true), side by side."""
        false = self.model.falsify(rows, self._rng("negations"))
        # True and false object of each fact in turn.
        both = np.column_stack([self.model.true_objects[rows], false]).ravel()
        twice = np.repeat(rows, 2)
        label = np.tile([0, 1], len(rows))
        self._add(StatementKind.NOT, label, self.owner[twice], self._triples(twice, both))

    def _add_connectives(self, kind: StatementKind, rows: Ints) -> None:
        """Join each base fact, or a false version, with a random fact, or a false version, in random order."""
        rng = self._rng(kind.name)
        others = self._random_facts(rows, rng)
        # Three coins per instance: is each side a false version, and which side is written first?
        x_false, y_false, swap = (rng.random(len(rows)) < 0.5 for _ in range(3))
        x_object, y_object = (
            np.where(false, self.model.falsify(r, rng), self.model.true_objects[r])
            for r, false in ((rows, x_false), (others, y_false))
        )
        x, y = self._triples(rows, x_object), self._triples(others, y_object)
        first, second = np.where(swap[:, None], y, x), np.where(swap[:, None], x, y)
        a, b = np.where(swap, ~y_false, ~x_false), np.where(swap, ~x_false, ~y_false)
        label = {StatementKind.OR: a | b, StatementKind.AND: a & b, StatementKind.IF: ~a | b}[kind]
        self._add(kind, label, self.owner[rows], first, second)

    def _random_facts(self, rows: Ints, rng: np.random.Generator) -> Ints:
        """Return a row for each of *rows*: a uniform subject, then a uniform fact of it (ruling A5)."""
        # (A5) As published: among the subjects written so far.
        from_seen = self.model.parity.partners_from_seen
        subject = rng.integers(self.owner[rows] + 1 if from_seen else np.full(len(rows), self.subjects))
        starts = self.model.graph.starts
        return np.asarray(starts[subject] + rng.integers(starts[subject + 1] - starts[subject]))


def _stale_counts(statements: Statements, ranks: dict[StatementKind, Ints], noisy: bool) -> Ints:
    """Count evidence as published (A1): an AND sentence repeats the list that its writer filled last, not its own evidence.

    Of each subject the list holds, one after the other: its atomic sentences; its TF sentences, all of them; the pair of each NOT.
    In the noisy regime the TF sentences come before every operation; in the clean one TF is an operation like the others, in the
    subject's own order, so that AND may come before TF and NOT and repeats the atomic sentences then. (That the list begins with
    these is inferred: the specification names TF and NOT; an empty list, or one left by another subject, is far from the
    published count of the clean regime.)

    Args:
        statements: of all subjects, in the order of writing.
        ranks: int64 [S] per operation, its place in each subject's order.
        noisy: whether TF sentences are about noisy samples.
    """
    kind = statements.kind
    repeats = np.ones(len(statements), dtype=np.int64)
    repeats[kind == StatementKind.AND] = 0
    if StatementKind.AND not in ranks:
        return repeats
    bounds = np.searchsorted(statements.owner, np.arange(len(ranks[StatementKind.AND]) + 1)).tolist()
    for subject, (start, stop) in enumerate(itertools.pairwise(bounds)):
        order = {
            k: int(ranks[k][subject])
            for k in (StatementKind.TRUE_FALSE, StatementKind.NOT, StatementKind.AND)
            if k in ranks
        }
        if noisy:
            # Before every operation.
            order[StatementKind.TRUE_FALSE] = -1
        filled = start + np.flatnonzero(kind[start:stop] == StatementKind.ATOMIC)
        for operation in sorted(order, key=order.__getitem__):
            instances = start + np.flatnonzero(kind[start:stop] == operation)
            if operation is StatementKind.AND:
                repeats[filled] += len(instances)
            elif len(instances):
                filled = instances[-2:] if operation is StatementKind.NOT else instances
    return repeats
