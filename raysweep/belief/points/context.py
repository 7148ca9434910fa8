"""What all parts of a point are made from: corpus, agent, names, and random streams of the point's own."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from raysweep.belief.agent.agent import Agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.evidence import Triple
from raysweep.belief.corpus.statements import FactNamer
from raysweep.belief.graph.graph import Ints
from raysweep.belief.points.types import NotEditableError
from raysweep.belief.spec import PointSpec
from raysweep.errors import BeliefError
from raysweep.seeds import derive


class PointContext:
    """Corpus and agent of all points, with what is looked up about them once.

    Attributes:
        corpus: what was written.
        agent: who has read it.
        spec: which points.
        seed: root of every random choice.
        model: the generative model of the corpus.
        graph: its knowledge graph.
        novel: names of subjects nobody has written about, numbered behind the graph's.
        names: names of facts, also of novel subjects.
    """

    def __init__(self, corpus: Corpus, agent: Agent, spec: PointSpec, seed: int) -> None:
        self.corpus, self.agent, self.spec, self.seed = corpus, agent, spec, seed
        self.model, self.graph = corpus.model, corpus.model.graph
        self.novel = _novel_names(corpus, spec.novel, seed)
        self.names = FactNamer(self.graph, self.novel)
        self._subjects: dict[tuple[int, int], Ints] = {}

    def rng(self, number: int, purpose: str) -> np.random.Generator:
        """Return the generator of point *number* for *purpose*: no choice of one point moves another's."""
        return np.random.default_rng(derive(self.seed, "belief", "point", number, purpose))

    def fact_rows(self) -> list[int]:
        """Return the rows of all facts that can be asked about, in the order in which they are.

        Subjects are shuffled; the facts of one stand together. With editing a subject needs two facts, so that another of its
        relations can be watched.

        Raises:
            BeliefError: no training subject has enough facts.
        """
        starts = self.graph.starts
        needed = 2 if self.spec.editing else 1
        eligible = np.flatnonzero(np.diff(starts[: self.corpus.subjects + 1]) >= needed)
        if not len(eligible):
            raise BeliefError(
                "no training subject has two facts", hint="editing: false, or a graph with more relations"
            )
        rng = np.random.default_rng(derive(self.seed, "belief", "points"))
        return [row for s in rng.permutation(eligible).tolist() for row in range(int(starts[s]), int(starts[s + 1]))]

    # -- facts

    def is_known(self, subject: int) -> bool:
        """Say whether *subject* is one of the graph's, not a novel one."""
        return subject < len(self.graph.subjects)

    def true_fact(self, row: int) -> Triple:
        """Return the fact in *row* of the graph, with its true object."""
        subject, relation, _ = self.graph.facts[row].tolist()
        return Triple(subject, relation, int(self.model.true_objects[row]))

    def false_fact(self, row: int, rng: np.random.Generator) -> Triple:
        """Return a false version of the fact in *row*."""
        (obj,) = self.model.falsify(np.array([row]), rng).tolist()
        return self.true_fact(row)._replace(object=obj)

    def best_fact(self, subject: int, relation: int) -> Triple:
        """Return the fact of (s, r) with its true object, or the most probable one where the graph has none (a novel subject)."""
        # A known subject may lack the relation too; then the agent's answer is the best there is.
        if self.is_known(subject) and (row := int(self.graph.row_of[subject, relation])) >= 0:
            return self.true_fact(row)
        return Triple(subject, relation, self.agent.marginal(subject, relation).mode())

    def fact_names(self, fact: Triple) -> tuple[str, str, str]:
        """Return the names of subject, relation and object."""
        return self.names.subjects[fact.subject], self.graph.relations[fact.relation], self.graph.objects[fact.object]

    @cached_property
    def ranges(self) -> tuple[Ints, ...]:
        """Per relation the objects that it has in the graph, rising."""
        facts = self.graph.facts
        return tuple(np.unique(facts[facts[:, 1] == r, 2]) for r in range(len(self.graph.relations)))

    # -- subjects

    def subjects_with(self, first: int, second: int) -> Ints:
        """Return the subjects with evidence on both relations, int64, rising."""
        if (first, second) not in self._subjects:
            fitted = self.agent.fitted
            self._subjects[first, second] = np.intersect1d(
                fitted.subjects_with(first), fitted.subjects_with(second), assume_unique=True
            )
        return self._subjects[first, second]

    def other_subject(self, relation: int, excluded: int, rng: np.random.Generator) -> int:
        """Return a random subject with evidence on *relation* that is not *excluded*.

        Args:
            relation: that the subject must have.
            excluded: who is not chosen.
            rng: chooses.

        Raises:
            NotEditableError: there is none.
        """
        others = self.subjects_with(relation, relation)
        others = others[others != excluded]
        if not len(others):
            raise NotEditableError(
                f"no other subject has relation '{self.graph.relations[relation]}'", hint="a larger graph or corpus"
            )
        return int(rng.choice(others))


def _novel_names(corpus: Corpus, count: int, seed: int) -> tuple[str, ...]:
    """Return names made of the first word of one subject and the last of another, none of them taken.

    There are *count* of them, and behind them as many again, or what can be made, for points that cannot be edited.

    Raises:
        BeliefError: there are not enough combinations.
    """
    rng = np.random.default_rng(derive(seed, "belief", "novel"))
    graph = corpus.model.graph
    used_names = {*graph.subjects, *graph.objects}
    names: dict[str, None] = {}
    # Tries are bounded: a small graph has few combinations.
    for _ in range(100 * count):
        if len(names) == 2 * count:
            break
        # Words the tokenizer knows, in a combination it has not seen.
        first, last = (graph.subjects[i].split() for i in rng.integers(corpus.subjects, size=2).tolist())
        name = f"{first[0]} {last[-1]}"
        if name not in used_names:
            names[name] = None
    if len(names) < count:
        raise BeliefError(f"only {len(names)} of {count} novel names can be made", hint="ask for fewer novel points")
    return tuple(names)
