"""A corpus: the statements that were written, the evidence they are, and the documents they are laid out in.

Shapes: n base facts (the first rows of the graph), S training subjects, N statements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raysweep.belief.corpus.evidence import EvidenceTable
from raysweep.belief.corpus.generative import GenerativeModel
from raysweep.belief.corpus.statements import FactNamer, Statement, StatementKind, Statements, statement_key
from raysweep.belief.graph.graph import Ints
from raysweep.belief.spec import CorpusSpec
from raysweep.seeds import derive


@dataclass(frozen=True, slots=True)
class Document:
    """Sentences joined by ``". "``, without a final stop.

    Attributes:
        text: all of it.
        sentences: how many.
        answers: of each sentence, where in the text its last part stands, the object or the label: start and stop.
    """

    text: str
    sentences: int
    answers: tuple[tuple[int, int], ...]

    @staticmethod
    def from_sentences(texts: Sequence[str], lengths: Sequence[int]) -> Document:
        """Return the document of sentences whose last *lengths* characters are their answers."""
        # Each sentence begins two characters (". ") behind the end of the one before.
        starts = itertools.accumulate((len(text) + 2 for text in texts), initial=0)
        ends = [start + len(text) for start, text in zip(starts, texts, strict=False)]
        spans = tuple((end - length, end) for end, length in zip(ends, lengths, strict=True))
        return Document(". ".join(texts), len(texts), spans)


@dataclass(frozen=True, eq=False)
class Corpus:
    """What is written about the first subjects of a graph.

    Attributes:
        model: the generative model.
        spec: which sentences.
        seed: root of every random choice.
        subjects: S; they are the graph's first.
        samples: int64 [n, samples]: the sampled objects of the base facts.
        statements: every sentence of one pass, grouped by subject.
        repeats: int64 [N]: how often each statement's evidence counts in one pass (all 1 but for parity).
    """

    model: GenerativeModel
    spec: CorpusSpec
    seed: int
    subjects: int
    samples: Ints
    statements: Statements
    repeats: Ints

    @property
    def facts(self) -> int:
        """The number n of base facts."""
        return len(self.samples)

    @cached_property
    def names(self) -> FactNamer:
        """The graph's names."""
        return FactNamer(self.model.graph)

    @cached_property
    def evidence(self) -> EvidenceTable:
        """The evidence of all documents: one pass, as often as sentences are repeated."""
        relations, objects = len(self.model.graph.relations), len(self.model.graph.objects)
        one_pass = self.statements.evidence(relations, objects, self.repeats)
        return one_pass.repeat(self.spec.homogeneous + self.spec.heterogeneous)

    @cached_property
    def _keys(self) -> Ints:
        return self.statements.keys(len(self.model.graph.relations), len(self.model.graph.objects))

    def has_seen(self, statement: Statement) -> bool:
        """Say whether exactly this statement is among the training sentences."""
        row = statement_key(statement, len(self.model.graph.relations), len(self.model.graph.objects))
        # The keys are sorted by their first number: only those that share it are compared.
        a, b = self._firsts.searchsorted((row[0], row[0] + 1))
        return bool((self._keys[a:b] == row).all(axis=1).any())

    @cached_property
    def _firsts(self) -> Ints:
        return np.ascontiguousarray(self._keys[:, 0])

    @cached_property
    def _bounds(self) -> Ints:
        """int64 [S + 1]: the statements of subject s are ``bounds[s]:bounds[s + 1]``."""
        return np.searchsorted(self.statements.owner, np.arange(self.subjects + 1))

    @property
    def sentences_per_subject(self) -> Ints:
        """int64 [S]: how many sentences are about each subject, in one pass."""
        return np.diff(self._bounds)

    def documents(self) -> Iterator[Document]:
        """Yield the documents: subject by subject, then those that mix all subjects."""
        size = self.spec.max_sentences_per_doc
        bounds = self._bounds.tolist()
        # All passes over one subject come before the next subject, so its sentences are rendered once.
        orders = [self._shuffled(pass_) for pass_ in range(self.spec.homogeneous)]
        if orders:
            for a, b in itertools.pairwise(bounds):
                texts = self.statements.texts(self.names, a, b)
                answers = self.statements.answers(self.names, a, b)
                for order in orders:
                    chosen = (order[a:b] - a).tolist()
                    for start in range(0, len(chosen), size):
                        part = chosen[start : start + size]
                        yield Document.from_sentences([texts[i] for i in part], [answers[i] for i in part])
        if self.spec.heterogeneous:
            texts, answers = self.statements.texts(self.names), self.statements.answers(self.names)
            for pass_ in range(self.spec.heterogeneous):
                # All sentences of all subjects in one random order.
                rng = np.random.default_rng(derive(self.seed, "belief", "heterogeneous", pass_))
                chosen = rng.permutation(len(texts)).tolist()
                for start in range(0, len(chosen), size):
                    part = chosen[start : start + size]
                    yield Document.from_sentences([texts[i] for i in part], [answers[i] for i in part])

    def _shuffled(self, pass_: int) -> Ints:
        """Return an order of all statements that mixes those of one subject only."""
        rng = np.random.default_rng(derive(self.seed, "belief", "homogeneous", pass_))
        # By owner, ties in random order.
        return np.lexsort((rng.random(len(self.statements)), self.statements.owner))

    @cached_property
    def statistics(self) -> dict[str, int]:
        """Counts of facts, sentences and documents, under the published names."""
        kinds = np.bincount(self.statements.kind, minlength=len(StatementKind)).tolist()
        lengths = self.sentences_per_subject
        size = self.spec.max_sentences_per_doc
        # ⌈length / size⌉ documents per subject and pass, and of all sentences together.
        documents = int((-(-lengths // size)).sum()) * self.spec.homogeneous
        documents += -(-len(self.statements) // size) * self.spec.heterogeneous
        return {
            "num_true_atomic_facts": self.facts,
            "num_atomic_sentences": kinds[StatementKind.ATOMIC],
            "num_total_sentences": len(self.statements),
            # Statements that are equal in every part.
            "num_unique_sentences": len(self._keys),
            "num_TF_atomic_sentences": kinds[StatementKind.TRUE_FALSE],
            "num_not_sentences": kinds[StatementKind.NOT],
            "num_or_sentences": kinds[StatementKind.OR],
            "num_and_sentences": kinds[StatementKind.AND],
            "num_if_then_sentences": kinds[StatementKind.IF],
            "num_documents": documents,
            "num_subjects": self.subjects,
            "num_rels": len(self.model.graph.relations),
            "num_objects": len(np.unique(self.samples)),
            "num_evidence_items": self.evidence.items,
        }
