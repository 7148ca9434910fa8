"""Wikidata5m (KEPLER, Wang et al. 2021) → knowledge graph: filter, choose relations, make functional, name.

The train file is read once and held as three integers per line; the entity file is streamed twice (which ids exist, then the
names of those that are kept). Memory: about 60 bytes per fact line read at the peak, 8 bytes per entity of the entity file,
and the names of the entities that survive; nothing grows with the number of aliases.

Shapes: N lines or facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysweep.belief.graph.graph import Bools, Ints, KnowledgeGraph, choose_relations, cooccurrence
from raysweep.belief.graph.name_length import NameTokens
from raysweep.belief.graph.wikidata_files import (
    find_files,
    read_entity_ids,
    read_first_names,
    read_relation_names,
    read_triples,
)
from raysweep.belief.spec import GraphSpec
from raysweep.errors import GraphError

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class _Facts:
    """Fact lines that survived the first filter, in file order; ids without their letter."""

    subject: Ints
    relation: Ints  # index into the relation file
    object: Ints


def read_wikidata(
    folder: Path, spec: GraphSpec, tokens: NameTokens, report: OnProgress = lambda _: None
) -> KnowledgeGraph:
    """Return the knowledge graph of the Wikidata5m files in *folder*.

    Args:
        folder: with the three files.
        spec: how much to read, and the filters.
        tokens: measures object names.
        report: told what is being done.

    Raises:
        DataError: a file is missing, or a line of it is broken.
        GraphError: too few relations occur together, or one is lost in the filters.
    """
    train, entity, relation = find_files(folder)
    filter_counts: dict[str, int] = {}
    relations = read_relation_names(relation)
    report(f"{len(relations)} relations; reading ids of {entity.name}")
    entity_ids = read_entity_ids(entity)
    report(f"{len(entity_ids)} entities; reading {train.name}")
    facts = _first_filter(read_triples(train, spec.read_n_facts), spec, relations, entity_ids, filter_counts)
    if not len(facts.subject):
        raise GraphError("no fact survives the first filter", hint="do the three files belong together?")
    report(f"{len(facts.subject)} facts survive the first filter; choosing relations")
    facts = _make_functional(facts, len(relations), spec, filter_counts)
    if spec.long_objects == "drop":
        object_names = read_first_names(entity, facts.object)
        facts = _drop_long(facts, object_names, spec, tokens, filter_counts)
    report(f"{len(facts.subject)} facts kept; reading names")
    names = read_first_names(entity, np.concatenate([facts.subject, facts.object]))
    graph = _graph_with_names(facts, names, relations, spec, tokens, filter_counts)
    if len(graph.relations) != spec.relations:
        raise GraphError(
            f"{len(graph.relations)} of {spec.relations} relations survive the filters",
            hint="read more facts, or ask for fewer relations",
        )
    return graph


# ------------------------------------------------------------------------------------------------------ filtering


def _isin(values: Ints, table: Ints) -> Bools:
    """Say which *values* occur in the sorted *table*."""
    at = np.searchsorted(table, values)
    return np.asarray(table[np.minimum(at, len(table) - 1)] == values)


def _first_filter(
    lines: Ints,
    spec: GraphSpec,
    relations: Mapping[int, tuple[str, ...]],
    entity_ids: Ints,
    filter_counts: dict[str, int],
) -> _Facts:
    """Drop lines about unknown or excluded things and count them."""
    subject, relation, obj = lines.T
    filter_counts["lines_read"] = len(lines)
    # The relation file's order is by line; look-ups need rising ids.
    ids = np.array(list(relations), dtype=np.int64)
    by_id = np.argsort(ids)
    outside = np.array(sorted(int(e[1:]) for e in spec.excluded_entities), dtype=np.int64)
    barred = np.array(sorted(int(r[1:]) for r in spec.excluded_relations), dtype=np.int64)
    reasons: dict[str, Bools] = {
        "unknown_relation": ~_isin(relation, ids[by_id]),
        "unknown_entity": ~(_isin(subject, entity_ids) & _isin(obj, entity_ids)),
        "excluded_relation": np.isin(relation, barred),
        "excluded_entity": np.isin(subject, outside) | np.isin(obj, outside),
    }
    keep = np.ones(len(lines), dtype=np.bool_)
    for reason, hit in reasons.items():
        # Each line is counted once, under the first reason that applies.
        filter_counts[reason] = int((keep & hit).sum())
        keep &= ~hit
    index = by_id[np.searchsorted(ids[by_id], relation[keep])]
    return _Facts(subject[keep], index, obj[keep])


def _make_functional(facts: _Facts, relations: int, spec: GraphSpec, filter_counts: dict[str, int]) -> _Facts:
    """Keep the top-k relations, subjects with enough of them, and the first object of each pair.

    The result is grouped by subject, subjects in order of first appearance, relations within one as they appeared.
    """
    # the first line of each (subject, relation), subjects renumbered by first appearance
    _, first, inverse = np.unique(facts.subject, return_index=True, return_inverse=True)
    # `unique` sorts by id; the rank of its first line gives back the order of the file.
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    order_of = rank[inverse]
    _, lines = np.unique(order_of * relations + facts.relation, return_index=True)
    # Grouped by subject, within one in the order of the file.
    rows = lines[np.lexsort((lines, order_of[lines]))]
    counts = cooccurrence(order_of[rows], facts.relation[rows], relations, spec.min_relations)
    chosen = choose_relations(counts, spec.relations, spec.min_cooccurrences)
    top = np.zeros(relations, dtype=np.bool_)
    top[chosen] = True
    filter_counts["other_relation"] = int((~top[facts.relation]).sum())
    filter_counts["several_objects"] = int(top[facts.relation].sum()) - int(top[facts.relation[rows]].sum())
    rows = rows[top[facts.relation[rows]]]
    return _keep_connected(_Facts(facts.subject[rows], facts.relation[rows], facts.object[rows]), spec, filter_counts)


def _keep_connected(facts: _Facts, spec: GraphSpec, filter_counts: dict[str, int]) -> _Facts:
    """Keep subjects with ``min_relations`` relations; facts are functional."""
    _, inverse, degree = np.unique(facts.subject, return_inverse=True, return_counts=True)
    filter_counts["single_relation_subjects"] = filter_counts.get("single_relation_subjects", 0) + int(
        (degree < spec.min_relations).sum()
    )
    keep = degree[inverse] >= spec.min_relations
    if not keep.any():
        raise GraphError(
            f"no subject has {spec.min_relations} relations", hint="lower min_relations or read more facts"
        )
    return _Facts(facts.subject[keep], facts.relation[keep], facts.object[keep])


def _drop_long(
    facts: _Facts, names: Mapping[int, str], spec: GraphSpec, tokens: NameTokens, filter_counts: dict[str, int]
) -> _Facts:
    """Drop facts whose object's name is beyond the cap."""
    ids = np.unique(facts.object)
    long = ids[tokens.lengths([names[i] for i in ids.tolist()]) > spec.max_object_tokens]
    keep = ~np.isin(facts.object, long)
    filter_counts["long_object_facts"] = int((~keep).sum())
    if not keep.any():
        raise GraphError(f"every object has more than {spec.max_object_tokens} tokens", hint="raise max_object_tokens")
    return _keep_connected(_Facts(facts.subject[keep], facts.relation[keep], facts.object[keep]), spec, filter_counts)


# --------------------------------------------------------------------------------------------------------- naming


def _graph_with_names(
    facts: _Facts,
    names: Mapping[int, str],
    relations: Mapping[int, tuple[str, ...]],
    spec: GraphSpec,
    tokens: NameTokens,
    filter_counts: dict[str, int],
) -> KnowledgeGraph:
    """Write names for ids; two ids with one name are merged or told apart (ruling E4)."""
    # Subject and object of each fact in turn: names are handed out in the order in which a reader meets the ids.
    interleaved = np.stack([facts.subject, facts.object], axis=1).ravel()
    _, first = np.unique(interleaved, return_index=True)
    name_of = _distinct_names(
        interleaved[np.sort(first)].tolist(), names, spec.equal_names == "append_id", filter_counts
    )
    subjects: dict[str, int] = {}
    subject_of = {i: subjects.setdefault(name_of[i], len(subjects)) for i in _in_order_of_appearance(facts.subject)}
    ids = _in_order_of_appearance(facts.object)
    # Only objects are shortened: subjects must stay apart.
    short = tokens.shorten([name_of[i] for i in ids], spec.max_object_tokens)
    filter_counts["shortened_objects"] = sum(a != name_of[i] for a, i in zip(short, ids, strict=True))
    filter_counts["objects_merged_by_shortening"] = len({name_of[i] for i in ids}) - len(set(short))
    objects: dict[str, int] = {}
    object_of = {i: objects.setdefault(name, len(objects)) for i, name in zip(ids, short, strict=True)}
    rows = np.stack(
        [_map_values(facts.subject, subject_of), facts.relation, _map_values(facts.object, object_of)], axis=1
    )
    rows = _merge_pairs(rows, len(relations), filter_counts)
    order = _in_order_of_appearance(rows[:, 1])
    rows[:, 1] = _map_values(rows[:, 1], {r: i for i, r in enumerate(order)})
    identities = list(relations)
    aliases = {identities[r]: relations[identities[r]] or (f"P{identities[r]}",) for r in order}
    main = _distinct_names(list(aliases), {i: names[0] for i, names in aliases.items()}, True, {}, "P")
    # Objects that still have a fact.
    used = sorted(set(rows[:, 2].tolist()))
    if len(used) < len(objects):  # a merge left a name without facts
        table = list(objects)
        rows[:, 2] = _map_values(rows[:, 2], {o: i for i, o in enumerate(used)})
        objects = {table[o]: i for i, o in enumerate(used)}
    return KnowledgeGraph(
        subjects=tuple(subjects),
        relations=tuple(main.values()),
        objects=tuple(objects),
        facts=rows,
        wordings=tuple(names[1:] for names in aliases.values()),
        filter_counts=filter_counts,
    )


def _in_order_of_appearance(values: Ints) -> list[int]:
    """Return the distinct values in order of first appearance."""
    _, first = np.unique(values, return_index=True)
    return [int(v) for v in values[np.sort(first)]]


def _map_values(values: Ints, table: Mapping[int, int]) -> Ints:
    distinct, inverse = np.unique(values, return_inverse=True)
    return np.asarray(np.array([table[v] for v in distinct.tolist()], dtype=np.int64)[inverse])


def _distinct_names(
    ids: Sequence[int], names: Mapping[int, str], append_id: bool, filter_counts: dict[str, int], letter: str = "Q"
) -> dict[int, str]:
    """Return the name of each id in order; with *append_id* a name that is taken gets the id behind it."""
    used_names: set[str] = set()
    name_of: dict[int, str] = {}
    equal = 0
    for i in ids:
        name = names[i]
        if name in used_names:
            equal += 1
            name = f"{name} {letter}{i}" if append_id else name
        used_names.add(name)
        name_of[i] = name
    filter_counts["equal_names"] = equal
    return name_of


def _merge_pairs(rows: Ints, relations: int, filter_counts: dict[str, int]) -> Ints:
    """Group merged subjects together and keep the first value of each (subject, relation)."""
    # Subjects that got one name are one subject; stable, so the first value read stays first.
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    _, first = np.unique(rows[:, 0] * relations + rows[:, 1], return_index=True)
    filter_counts["merged_facts"] = len(rows) - len(first)
    return np.asarray(rows[np.sort(first)])
