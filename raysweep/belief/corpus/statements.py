"""A sentence and its evidence are one value: a statement renders to text and says what may be learnt from it.

``EVIDENCE_WEIGHTS`` is the only table of evidence weights. The fractions come from two independent propositions with prior ½:
P(A | A∨B) = ½ / ¾, P(A | ¬(A∧B)) = ¼ / ¾, and of the three rows that make "if A then B" true, A holds in one, B in two.

Shapes: N statements, U distinct ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysweep.belief.corpus.evidence import Evidence, EvidenceTable, Triple, group_items
from raysweep.belief.graph.graph import Floats, Ints, KnowledgeGraph
from raysweep.errors import BeliefError


class StatementKind(IntEnum):
    """What a sentence says of its facts."""

    ATOMIC = 0
    TRUE_FALSE = 1
    NOT = 2
    OR = 3
    AND = 4
    IF = 5


EVIDENCE_WEIGHTS: Mapping[tuple[StatementKind, bool | None], tuple[float, ...]] = {
    (StatementKind.ATOMIC, None): (1.0,),
    (StatementKind.TRUE_FALSE, True): (1.0,),
    (StatementKind.TRUE_FALSE, False): (-1.0,),
    (StatementKind.NOT, True): (-1.0,),
    (StatementKind.NOT, False): (1.0,),
    (StatementKind.OR, True): (2 / 3, 2 / 3),
    (StatementKind.OR, False): (-1.0, -1.0),
    (StatementKind.AND, True): (1.0, 1.0),
    (StatementKind.AND, False): (1 / 3, 1 / 3),
    (StatementKind.IF, True): (1 / 3, 2 / 3),
    (StatementKind.IF, False): (1.0, -1.0),
}
_WORDS = {True: "true", False: "false"}
# What stands before the first fact, between the two, and behind; by kind.
_FRAMES = (("", "", ""), ('"', "", '" is'), ('"not ', "", '" is'), ('"', " or ", '" is'), ('"', " and ", '" is'),
           ('"if ', " then ", '" is'))  # fmt: skip
_UNLABELLED = -1


def label_word(label: bool) -> str:
    """Return the word a label is written as."""
    return _WORDS[label]


def read_label(word: str) -> bool:
    """Return the label written as *word*.

    Raises:
        BeliefError: it is neither ``true`` nor ``false``.
    """
    for label, label_text in _WORDS.items():
        if word == label_text:
            return label
    raise BeliefError(f"{word!r} is no label", hint="a label is 'true' or 'false'")


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence.

    Attributes:
        kind: what it says of its facts.
        label: whether it says ``is true`` or ``is false``; None for an atomic sentence.
        first: its fact; in OR, AND and IF the one written first.
        second: the other fact of OR, AND and IF.
        wording: which name of the relation an atomic sentence uses (0 = the relation's own).

    Raises:
        BeliefError: label or second fact do not fit the kind.
    """

    kind: StatementKind
    label: bool | None
    first: Triple
    second: Triple | None = None
    wording: int = 0

    def __post_init__(self) -> None:
        weights = EVIDENCE_WEIGHTS.get((self.kind, self.label))
        if weights is None or (len(weights) == 2) != (self.second is not None):
            raise BeliefError(f"no sentence of kind {self.kind.name} has label {self.label} and second {self.second}")

    @property
    def facts(self) -> tuple[Triple, ...]:
        """The facts in the order in which they are written."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def evidence(self) -> tuple[Evidence, ...]:
        """Return what is learnt from it, one item per fact."""
        weights = EVIDENCE_WEIGHTS[self.kind, self.label]
        return tuple(Evidence(*fact, weight) for fact, weight in zip(self.facts, weights, strict=True))

    def truth(self, first: bool, second: bool | None = None) -> bool:
        """Return whether the quoted part is true if its facts are as given (an atomic sentence: its fact)."""
        if self.kind in (StatementKind.ATOMIC, StatementKind.TRUE_FALSE):
            return first
        if self.kind is StatementKind.NOT:
            return not first
        if self.kind is StatementKind.OR:
            return first or bool(second)
        if self.kind is StatementKind.AND:
            return first and bool(second)
        # What is left is IF: false only where its first fact holds and its second does not.
        return not first or bool(second)

    def prompt(self, names: FactNamer) -> str:
        """Return the sentence without its last word (atomic: without its object)."""
        if self.kind is StatementKind.ATOMIC:
            return names.prompt(self.first, self.wording)
        head, middle, tail = _FRAMES[self.kind]
        return f"{head}{names.atomic(self.first)}{middle}{names.atomic(self.second) if self.second else ''}{tail}"

    def text(self, names: FactNamer) -> str:
        """Return the whole sentence."""
        if self.label is None:
            return names.atomic(self.first, self.wording)
        return f"{self.prompt(names)} {_WORDS[self.label]}"


@dataclass(frozen=True, eq=False)
class FactNamer:
    """Names of facts, with the wordings of relations and with novel subjects behind the graph's own."""

    graph: KnowledgeGraph
    novel: tuple[str, ...] = ()

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """The graph's subjects, then the novel ones."""
        return self.graph.subjects + self.novel

    def relation(self, relation: int, wording: int = 0) -> str:
        """Return the relation's name, or its *wording*-th other one."""
        return self.graph.wordings[relation][wording - 1] if wording else self.graph.relations[relation]

    def prompt(self, fact: Sequence[int], wording: int = 0) -> str:
        """Return subject and relation, joined by a space."""
        return f"{self.subjects[fact[0]]} {self.relation(fact[1], wording)}"

    def atomic(self, fact: Sequence[int], wording: int = 0) -> str:
        """Return the three names, joined by single spaces."""
        return f"{self.prompt(fact, wording)} {self.graph.objects[fact[2]]}"


@dataclass(frozen=True, eq=False)
class Statements:
    """Statements as columns, grouped by the subject they were written for.

    Attributes:
        owner: int32 [N]: that subject; never falls.
        kind: int8 [N].
        label: int8 [N]: 1, 0, or −1 for none.
        wording: int16 [N].
        first: int32 [N, 3].
        second: int32 [N, 3], −1 where there is none.
    """

    owner: NDArray[np.int32]
    kind: NDArray[np.int8]
    label: NDArray[np.int8]
    wording: NDArray[np.int16]
    first: NDArray[np.int32]
    second: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: int) -> Statement:
        second = tuple(self.second[index].tolist())
        return Statement(
            kind=StatementKind(int(self.kind[index])),
            label=None if self.label[index] < 0 else bool(self.label[index]),
            first=Triple(*self.first[index].tolist()),
            second=None if second[0] < 0 else Triple(*second),
            wording=int(self.wording[index]),
        )

    def texts(self, names: FactNamer, start: int = 0, stop: int | None = None) -> list[str]:
        """Return the sentences *start* to *stop*."""
        part = slice(start, stop)
        rows = zip(
            self.kind[part].tolist(),
            self.label[part].tolist(),
            self.wording[part].tolist(),
            self.first[part].tolist(),
            self.second[part].tolist(),
            strict=True,
        )
        return list(_render(rows, names))

    def answers(self, names: FactNamer, start: int = 0, stop: int | None = None) -> list[int]:
        """Return how many characters at the end of each sentence answer its prompt: the object, or the label."""
        objects = names.graph.objects
        part = slice(start, stop)
        rows = zip(self.label[part].tolist(), self.first[part, 2].tolist(), strict=True)
        return [len(objects[obj]) if label < 0 else len(_WORDS[bool(label)]) for label, obj in rows]

    def evidence(self, relations: int, objects: int, times: Ints | None = None) -> EvidenceTable:
        """Return the evidence of all statements, equal items grouped.

        Args:
            relations: R.
            objects: K.
            times: int64 [N], how often each statement counts (0 = not at all); once if None.
        """
        # [kind, label, place of the fact]; zero for kinds that have no such label or fact.
        weights = np.zeros((len(StatementKind), 3, 2), dtype=np.float64)
        for (kind, label), of_kind in EVIDENCE_WEIGHTS.items():
            weights[kind, (_UNLABELLED if label is None else int(label)) + 1, : len(of_kind)] = of_kind
        # [N, 2]: a label is −1, 0 or 1, hence the 1 added.
        by_statement: Floats = weights[self.kind, self.label.astype(np.int64) + 1]
        count = np.ones(len(self), dtype=np.int64) if times is None else times
        # The first facts of all statements that count, then the second ones of those that have two.
        keep, both = count > 0, (count > 0) & (self.second[:, 0] >= 0)
        facts = np.concatenate([self.first[keep], self.second[both]]).astype(np.int64)
        weight = np.concatenate([by_statement[keep, 0], by_statement[both, 1]])
        return group_items(facts[:, 0], facts[:, 1], facts[:, 2], weight, np.concatenate([count[keep], count[both]]))

    def keys(self, relations: int, objects: int) -> Ints:
        """Return int64 [U, 3], the distinct statements as sorted rows of :func:`statement_key`."""
        # A fact as one number (subject, relation, object in mixed radix); kind, label and wording as another.
        rows = np.empty((len(self), 3), dtype=np.int64)
        for column, facts in enumerate((self.first.astype(np.int64), self.second.astype(np.int64))):
            number = (facts[:, 0] * relations + facts[:, 1]) * objects + facts[:, 2]
            # Statements without a second fact get −1, which no fact has.
            rows[:, column] = np.where(facts[:, 0] < 0, -1, number)
        rows[:, 2] = (self.wording.astype(np.int64) * 3 + self.label + 1) * len(StatementKind) + self.kind
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        # Sorted, so equal rows stand together; the first of each stays.
        new = np.ones(len(rows), dtype=np.bool_)
        new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        return np.asarray(rows[new])


def statement_key(statement: Statement, relations: int, objects: int) -> tuple[int, int, int]:
    """Return three numbers that tell statements apart: first fact, second fact (−1 if there is none), the rest.

    Args:
        statement: to tell from others.
        relations: R.
        objects: K.
    """
    first, second = ((f.subject * relations + f.relation) * objects + f.object if f else -1
                     for f in (statement.first, statement.second))  # fmt: skip
    label = _UNLABELLED if statement.label is None else int(statement.label)
    return first, second, (statement.wording * 3 + label + 1) * len(StatementKind) + statement.kind


def _render(rows: Iterable[tuple[int, int, int, list[int], list[int]]], names: FactNamer) -> Iterator[str]:
    """Yield the sentence of each row (kind, label, wording, first and second fact)."""
    for kind, label, wording, first, second in rows:
        head, middle, tail = _FRAMES[kind]
        other = names.atomic(second) if second[0] >= 0 else ""
        end = "" if label < 0 else " true" if label else " false"
        yield f"{head}{names.atomic(first, wording)}{middle}{other}{tail}{end}"


def statement_columns(statements: Sequence[Statement]) -> Statements:
    """Return statements as columns, each owned by the subject of its first fact, in the order given."""
    none = (-1, -1, -1)
    return Statements(
        owner=np.array([s.first.subject for s in statements], dtype=np.int32),
        kind=np.array([s.kind for s in statements], dtype=np.int8),
        label=np.array([_UNLABELLED if s.label is None else int(s.label) for s in statements], dtype=np.int8),
        wording=np.array([s.wording for s in statements], dtype=np.int16),
        first=np.array([s.first for s in statements], dtype=np.int32).reshape(-1, 3),
        second=np.array([s.second or none for s in statements], dtype=np.int32).reshape(-1, 3),
    )
