"""A functional knowledge graph: at most one object per subject and relation, in a total order of its own.

Shapes: F facts, S subjects, R relations, K objects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.errors import GraphError
from raysweep.hashing import canonical_json
from raysweep.world import World

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
StoredArray = Ints | NDArray[np.uint8]  # numbers, or the bytes of names

_SHOWN = 3  # names at each end of the statistics


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts as indices into three tables of names.

    Attributes:
        subjects: S names.
        relations: R names, in order of first appearance (pairing depends on it).
        objects: K names; index order breaks ties.
        facts: int64 [F, 3] (subject, relation, object); subjects never fall, (subject, relation) occurs once.
        wordings: per relation, its other names.
        filter_counts: how many lines, facts and names each filter dropped; not part of the digest.

    Raises:
        GraphError: a rule above is broken.
    """

    subjects: tuple[str, ...]
    relations: tuple[str, ...]
    objects: tuple[str, ...]
    facts: Ints
    wordings: tuple[tuple[str, ...], ...] = ()
    filter_counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        facts = np.array(self.facts, dtype=np.int64).reshape(-1, 3)
        # The digest and the cached tables rest on facts that nobody changes.
        facts.setflags(write=False)
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "wordings", self.wordings or tuple(() for _ in self.relations))
        if not len(facts):
            raise GraphError("the graph has no facts", hint="read more facts, or lower the filters")
        sizes = (len(self.subjects), len(self.relations), len(self.objects))
        if facts.min() < 0 or (facts >= sizes).any():
            raise GraphError(f"a fact points outside of {sizes[0]} subjects, {sizes[1]} relations, {sizes[2]} objects")
        if (np.diff(facts[:, 0]) < 0).any():
            raise GraphError("the facts are not in the order of their subjects")
        for what, names in (("subjects", self.subjects), ("relations", self.relations), ("objects", self.objects)):
            if len(set(names)) != len(names):
                twice = next(n for n, c in Counter(names).items() if c > 1)
                raise GraphError(f"two {what} are called {twice!r}", hint="names must differ")
        if len(self.wordings) != len(self.relations):
            raise GraphError(f"{len(self.wordings)} lists of wordings for {len(self.relations)} relations")
        # Subject and relation as one number.
        pairs = facts[:, 0] * len(self.relations) + facts[:, 1]
        if len(np.unique(pairs)) != len(pairs):
            raise GraphError("a subject has two objects under one relation", hint="a graph is functional")

    @cached_property
    def row_of(self) -> NDArray[np.int32]:
        """int32 [S, R]: the row of the fact (subject, relation), or −1."""
        table = np.full((len(self.subjects), len(self.relations)), -1, dtype=np.int32)
        table[self.facts[:, 0], self.facts[:, 1]] = np.arange(len(self.facts), dtype=np.int32)
        table.setflags(write=False)
        return table

    @cached_property
    def starts(self) -> Ints:
        """int64 [S + 1]: the facts of subject s are the rows ``starts[s]:starts[s + 1]``."""
        return np.searchsorted(self.facts[:, 0], np.arange(len(self.subjects) + 1))

    @cached_property
    def cooccurrence(self) -> Ints:
        """int64 [R, R]: subjects that have both relations, every subject eligible."""
        return cooccurrence(self.facts[:, 0], self.facts[:, 1], len(self.relations))

    @cached_property
    def digest(self) -> str:
        """16 hex digits over names, wordings and facts."""
        # Not the filter counts: two ways to one graph are one graph.
        hasher = hashlib.blake2b()
        for names in (self.subjects, self.relations, self.objects, self.wordings):
            hasher.update(canonical_json(names).encode())
        hasher.update(self.facts.astype("<i8").tobytes())
        return hasher.hexdigest()[:16]

    def atomic(self, subject: int, relation: int, obj: int) -> str:
        """Return the three names joined by single spaces."""
        return f"{self.subjects[subject]} {self.relations[relation]} {self.objects[obj]}"


def graph_from_names(
    facts: Iterable[tuple[str, str, str]],
    *,
    wordings: Mapping[str, Sequence[str]] | None = None,
    filter_counts: Mapping[str, int] | None = None,
) -> KnowledgeGraph:
    """Return the graph of (subject, relation, object) names: grouped by subject, the first object of a pair kept.

    Subjects and relations are numbered as they appear after grouping, objects likewise; ``filter_counts`` gets the number of
    values that were dropped (``several_objects``).

    Args:
        facts: in the order of reading.
        wordings: other names of relations, by their name.
        filter_counts: how much was dropped before.
    """
    subjects: dict[str, dict[str, str]] = {}
    dropped = 0
    for subject, relation, obj in facts:
        objects_of = subjects.setdefault(subject, {})
        dropped += objects_of.setdefault(relation, obj) != obj
    relations: dict[str, int] = {}
    objects: dict[str, int] = {}
    rows = [
        (s, relations.setdefault(relation, len(relations)), objects.setdefault(obj, len(objects)))
        for s, objects_of in enumerate(subjects.values())
        for relation, obj in objects_of.items()
    ]
    # Counted on top of what the reader dropped.
    counts = dict(filter_counts or {})
    counts["several_objects"] = counts.get("several_objects", 0) + dropped
    return KnowledgeGraph(
        subjects=tuple(subjects),
        relations=tuple(relations),
        objects=tuple(objects),
        facts=np.array(rows, dtype=np.int64).reshape(-1, 3),
        wordings=tuple(tuple((wordings or {}).get(r, ())) for r in relations),
        filter_counts=counts,
    )


def world_graph(world: World) -> KnowledgeGraph:
    """Return the embedded world of the lifelong study as a graph.

    A relation is named by its first wording that starts with the subject (``{} was born in`` → ``was born in``); its
    other such wordings are the graph's wordings, trained ones first.
    """
    names: dict[str, tuple[str, ...]] = {}
    for relation in world.relations:
        names[relation.name] = tuple(w.removeprefix("{} ") for w in relation.wordings if w.startswith("{} "))
    return graph_from_names(
        ((f.subject, names[f.relation][0], f.object) for f in world.facts),
        wordings={wordings[0]: wordings[1:] for wordings in names.values()},
    )


# ------------------------------------------------------------------------------------------------- co-occurrence


def cooccurrence(subject: Ints, relation: Ints, relations: int, least: int = 1) -> Ints:
    """Count subjects by pairs of relations.

    Args:
        subject: int64 [N], never falling; (subject, relation) occurs once.
        relation: int64 [N].
        relations: how many relations there are.
        least: subjects with fewer distinct relations do not count.

    Returns:
        Symmetric int64 [R, R]; the diagonal counts eligible subjects with the relation.
    """
    degree = np.bincount(subject, minlength=1)  # facts of each subject
    keep = degree[subject] >= least
    subject, relation = subject[keep], relation[keep]
    upper = np.zeros(relations * relations, dtype=np.int64)
    at = np.arange(len(subject))
    # Facts of one subject stand together: pairs of them are rows at a distance of 1, 2, … up to the largest degree.
    for gap in range(1, int(degree.max(initial=0))):
        at = at[at + gap < len(subject)]
        at = at[subject[at + gap] == subject[at]]
        pairs = relation[at] * relations + relation[at + gap]
        upper += np.bincount(pairs, minlength=relations * relations)
    square = upper.reshape(relations, relations)  # each pair in the order in which its facts stand
    total = square + square.T
    np.fill_diagonal(total, np.bincount(relation, minlength=relations))
    return total


def normalise_rows(counts: Ints) -> Floats:
    """Return co-occurrence as shares of each row, the diagonal left out; an empty row stays 0."""
    # A copy without the diagonal.
    off = counts.astype(np.float64)
    np.fill_diagonal(off, 0.0)
    sums = off.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(off, sums, out=np.zeros_like(off), where=sums > 0))


def choose_relations(counts: Ints, number: int, least: int) -> list[int]:
    """Choose *number* relations by walking pairs from most to least frequent (all unordered pairs, ruling E6).

    Args:
        counts: co-occurrence over all relations, int64 [R, R].
        number: how many to choose.
        least: co-occurrences that make a pair's members count as frequent.

    Raises:
        GraphError: fewer than *number* relations are frequent.
    """
    first, second = np.triu_indices(len(counts), k=1)
    many = counts[first, second]
    order = np.argsort(-many, kind="stable")
    # Pairs that never occur together choose nobody.
    order = order[many[order] > 0]
    frequent = np.unique(np.concatenate([first[many >= least], second[many >= least]]))
    if len(frequent) < number:
        raise GraphError(
            f"only {len(frequent)} relations co-occur {least} times or more; {number} are wanted",
            hint="lower min_cooccurrences, ask for fewer relations, or read more facts",
        )
    chosen: dict[int, None] = {}
    for pair in zip(first[order].tolist(), second[order].tolist(), strict=True):
        # A pair that would need more places than are left is skipped.
        new = [r for r in pair if r not in chosen]
        if len(chosen) + len(new) <= number:
            chosen.update(dict.fromkeys(new))
        if len(chosen) == number:
            return list(chosen)
    raise GraphError(
        f"pairs of relations that occur together cover only {len(chosen)} of {number} relations",
        hint="ask for fewer relations, or read more facts",
    )


# ---------------------------------------------------------------------------------------------------- statistics


def graph_statistics(graph: KnowledgeGraph, lengths: Callable[[Sequence[str]], Ints]) -> dict[str, object]:
    """Return sizes, lengths and most and least frequent names as plain data.

    Args:
        graph: to describe.
        lengths: number of tokens of each of a list of texts.
    """
    subject, relation, obj = graph.facts.T
    degree = np.bincount(subject, minlength=len(graph.subjects))
    texts = [graph.atomic(*fact) for fact in graph.facts.tolist()]
    return {
        "facts": len(graph.facts),
        "subjects": len(graph.subjects),
        "relations": len(graph.relations),
        "objects": len(graph.objects),
        "properties": len(np.unique(relation * len(graph.objects) + obj)),
        "subjects_that_are_objects": len(set(graph.subjects) & set(graph.objects)),
        "words": sum(len(t.split()) for t in texts),
        "tokens": int(lengths(texts).sum()),
        "relations_per_subject": {
            "min": int(degree.min()),
            "mean": float(degree.mean()),
            "max": int(degree.max()),
        },
        "most_frequent": {k: v[0] for k, v in _extremes(graph).items()},
        "least_frequent": {k: v[1] for k, v in _extremes(graph).items()},
        "made": dict(graph.filter_counts),
        "digest": graph.digest,
    }


def _extremes(graph: KnowledgeGraph) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    """Return, per kind of name, the most and the least frequent (ties: first in the table)."""
    extremes = {}
    tables = (graph.subjects, graph.relations, graph.objects)
    for column, (what, names) in enumerate(zip(("subjects", "relations", "objects"), tables, strict=True)):
        counts = np.bincount(graph.facts[:, column], minlength=len(names))
        most = np.argsort(-counts, kind="stable")[:_SHOWN]
        least = np.argsort(counts, kind="stable")[:_SHOWN]
        extremes[what] = tuple({names[i]: int(counts[i]) for i in order.tolist()} for order in (most, least))
    return extremes  # type: ignore[return-value]


# -------------------------------------------------------------------------------------------- arrays and back


def to_arrays(graph: KnowledgeGraph) -> tuple[dict[str, StoredArray], dict[str, object]]:
    """Return the graph as arrays (names as UTF-8 bytes with int64 ends) and JSON data."""
    arrays: dict[str, StoredArray] = {"facts": graph.facts}
    wordings = [w for names in graph.wordings for w in names]
    tables = {"subjects": graph.subjects, "relations": graph.relations, "objects": graph.objects, "wordings": wordings}
    for what, names in tables.items():
        # Names one after the other as bytes, with the end of each: an artifact holds tensors.
        encoded = [name.encode() for name in names]
        arrays[f"{what}_bytes"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        arrays[f"{what}_ends"] = np.cumsum([len(e) for e in encoded], dtype=np.int64)
    arrays["wordings_per_relation"] = np.array([len(names) for names in graph.wordings], dtype=np.int64)
    return arrays, {"made": dict(graph.filter_counts), "digest": graph.digest}


def from_arrays(arrays: Mapping[str, StoredArray], meta: Mapping[str, Any]) -> KnowledgeGraph:
    """Return the graph that :func:`to_arrays` took apart.

    Raises:
        GraphError: it is not the graph it says it is.
    """
    tables: dict[str, list[str]] = {}
    for what in ("subjects", "relations", "objects", "wordings"):
        raw, ends = arrays[f"{what}_bytes"].tobytes(), arrays[f"{what}_ends"].tolist()
        tables[what] = [raw[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
    ends = np.cumsum(arrays["wordings_per_relation"]).tolist()
    wordings = [tuple(tables["wordings"][a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    graph = KnowledgeGraph(
        subjects=tuple(tables["subjects"]),
        relations=tuple(tables["relations"]),
        objects=tuple(tables["objects"]),
        facts=np.asarray(arrays["facts"], dtype=np.int64),
        wordings=tuple(wordings),
        filter_counts=dict(meta["made"]),
    )
    if graph.digest != meta["digest"]:
        raise GraphError(f"the stored graph has digest {graph.digest}, expected {meta['digest']}", hint="rebuild it")
    return graph
