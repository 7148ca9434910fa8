"""What a world consists of: entities, relations, facts, two-hop questions and training sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from raysweep.seeds import derive

# Raise it where equal specs give another world: the shipped model was trained on the text of this one.
WORLD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """What a world is made from; equal specs give equal worlds.

    Attributes:
        seed: root of every random choice.
        version: of the generator; a spec of another version is refused.
        people: number of people (two-word names).
        cities: number of cities.
        companies: number of companies (every second one has a two-word name).
        countries: number of countries.
        rivers: number of rivers.
        languages: number of languages.
        currencies: number of currencies.
        trained_wordings: noun wordings trained per relation, besides its verb wordings.
        wordings_per_fact: how many of a relation's trained wordings one fact is trained in.
        hop_share: share of subjects for which two-hop sentences are trained.
        edits_per_person: how many relations of one person the edit records change.
    """

    seed: int = 0
    version: int = WORLD_VERSION
    people: int = 150
    cities: int = 40
    companies: int = 40
    countries: int = 10
    rivers: int = 14
    languages: int = 12
    currencies: int = 10
    trained_wordings: int = 9
    wordings_per_fact: int = 8
    hop_share: float = 0.85
    edits_per_person: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A functional relation: every entity of *domain* has exactly one object of type *range*.

    A wording has one ``{}`` slot for the subject and ends right before the object.

    Attributes:
        name: unique name.
        domain: type of the subjects.
        range: type of the objects.
        nouns: what the relation is called in shared frames.
        trained: wordings that occur in the training text (for some subject).
        novel: wordings that never occur in the training text with this relation; the last one uses a frame
            that never occurs there at all.
        role: a noun phrase for the object ("the city where {} lives"), or ``""``; used by two-hop questions.
    """

    name: str
    domain: str
    range: str
    nouns: tuple[str, ...]
    trained: tuple[str, ...]
    novel: tuple[str, ...]
    role: str = ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """All wordings, trained ones first."""
        return self.trained + self.novel


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fact:
    """*subject* stands in *relation* to *object*."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A two-hop question: relation *second* of the object of relation *first*."""

    first: str
    second: str
    wordings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A training text with the character spans of the objects it states."""

    text: str
    spans: tuple[tuple[int, int], ...]


# Without slots: cached properties need the instance's dict, which they fill though it is frozen.
@dataclass(frozen=True, kw_only=True)
class World:
    """Typed entities, functional relations between them, and all facts in a fixed order."""

    spec: WorldSpec
    entities: Mapping[str, tuple[str, ...]]
    relations: tuple[Relation, ...]
    hops: tuple[Hop, ...]
    facts: tuple[Fact, ...]
    _objects: dict[tuple[str, str], str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The class is frozen; this is its index, made once.
        object.__setattr__(self, "_objects", {(f.subject, f.relation): f.object for f in self.facts})

    def relation(self, name: str) -> Relation:
        """Return the relation called *name* (KeyError if there is none)."""
        return self._by_name[name]

    def object(self, subject: str, relation: str) -> str:
        """Return the object of *subject* under *relation* (KeyError if there is none)."""
        return self._objects[subject, relation]

    def relations_of(self, kind: str) -> tuple[Relation, ...]:
        """Return the relations whose subjects are of type *kind*."""
        return tuple(r for r in self.relations if r.domain == kind)

    def wordings_of(self, fact: Fact) -> tuple[str, ...]:
        """Return the wordings the training text uses for *fact* (a random part of the relation's trained ones)."""
        trained = self.relation(fact.relation).trained
        # A stream per fact: which wordings it is trained in depends on nothing else.
        rng = Random(derive(self.spec.seed, "wordings", fact.subject, fact.relation))
        return tuple(rng.sample(trained, min(self.spec.wordings_per_fact, len(trained))))

    def hop_trained(self, subject: str, hop: Hop) -> bool:
        """Say whether the training text states the two-hop answer of *subject*."""
        # A stream per question, as for wordings: another city or person moves no other draw.
        rng = Random(derive(self.spec.seed, "hop", subject, hop.first, hop.second))
        return rng.random() < self.spec.hop_share

    @cached_property
    def _by_name(self) -> dict[str, Relation]:
        return {r.name: r for r in self.relations}

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Every entity that is the object of some relation, sorted."""
        # Sorted, since the order of a set of texts differs from process to process.
        return tuple(sorted({o for r in self.relations for o in self.entities[r.range]}))
