"""Wikidata5m (KEPLER, Wang et al. 2021) → knowledge graph: stream, filter, choose relations, make functional, name.

The train file is read once and held as three integers per line; the entity file is streamed twice (which ids exist, then the
names of those that are kept). Memory: about 60 bytes per fact line read at the peak, 8 bytes per entity of the entity file,
and the names of the entities that survive; nothing grows with the number of aliases.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysweep.belief.graph.graph import Bools, Ints, KnowledgeGraph, choose_relations, cooccurrence
from raysweep.belief.graph.name_length import NameTokens
from raysweep.belief.spec import GraphSpec
from raysweep.errors import DataError, GraphError

TRAIN = "wikidata5m_transductive_train.txt"
ENTITY = "wikidata5m_entity.txt"
RELATION = "wikidata5m_relation.txt"
FILES = (TRAIN, ENTITY, RELATION)

_ID_BYTES = 10  # a letter and nine digits: tables of ids stay below 1 GB
Report = Callable[[str], None]


def find_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return the train, entity and relation file of *folder*.

    Raises:
        DataError: one is missing; the hint names all three and where to put them.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"Wikidata5m: {folder} lacks {', '.join(missing)}",
            hint=f"get it: raysweep data fetch wikidata5m; or put {', '.join(FILES)} into {folder}",
        )
    return folder / TRAIN, folder / ENTITY, folder / RELATION


@dataclass(frozen=True)
class _Facts:
    """Fact lines that survived the first filter, in file order; ids without their letter."""

    subject: Ints
    relation: Ints  # index into the relation file
    object: Ints


def read_wikidata(folder: Path, spec: GraphSpec, tokens: NameTokens, report: Report = lambda _: None) -> KnowledgeGraph:
    """Return the knowledge graph of the Wikidata5m files in *folder* (§1.2–1.8).

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
    made: dict[str, int] = {}
    relations = _relations(relation)
    report(f"{len(relations)} relations; reading ids of {entity.name}")
    known = _entity_ids(entity)
    report(f"{len(known)} entities; reading {train.name}")
    facts = _first_filter(_read_train(train, spec.read_n_facts), spec, relations, known, made)
    if not len(facts.subject):
        raise GraphError("no fact survives the first filter", hint="do the three files belong together?")
    report(f"{len(facts.subject)} facts survive the first filter; choosing relations")
    facts = _functional(facts, len(relations), spec, made)
    if spec.long_objects == "drop":
        named = _names(entity, facts.object)
        facts = _drop_long(facts, named, spec, tokens, made)
    report(f"{len(facts.subject)} facts kept; reading names")
    names = _names(entity, np.concatenate([facts.subject, facts.object]))
    graph = _named(facts, names, relations, spec, tokens, made)
    if len(graph.relations) != spec.relations:
        raise GraphError(
            f"{len(graph.relations)} of {spec.relations} relations survive the filters",
            hint="read more facts, or ask for fewer relations",
        )
    return graph


# ------------------------------------------------------------------------------------------------------- reading


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            bare = line.rstrip(b"\r\n")
            if bare:
                yield number, bare


def _is_id(field: bytes, letter: bytes) -> bool:
    return field[:1] == letter and field[1:].isdigit() and len(field) <= _ID_BYTES


def _broken(path: Path, number: int, line: bytes, wanted: str) -> DataError:
    shown = line[:60].decode("utf-8", errors="backslashreplace")
    return DataError(f"{path}:{number}: expected {wanted}, found {shown!r}", hint="the file is damaged; fetch it again")


def _relations(path: Path) -> dict[int, tuple[str, ...]]:
    """Return the names of every relation by id, in file order."""
    found: dict[int, tuple[str, ...]] = {}
    for number, line in _lines(path):
        head, *aliases = line.split(b"\t")
        if not _is_id(head, b"P") or not aliases:
            raise _broken(path, number, line, "P<number> and names, tab-separated")
        found.setdefault(int(head[1:]), _decoded(path, number, line, aliases))
    if not found:
        raise DataError(f"{path} is empty", hint="fetch it again: raysweep data fetch wikidata5m")
    return found


def _decoded(path: Path, number: int, line: bytes, aliases: Sequence[bytes]) -> tuple[str, ...]:
    try:
        names = (" ".join(alias.decode().split()) for alias in aliases)
        return tuple(dict.fromkeys(n for n in names if n))
    except UnicodeDecodeError as error:
        raise _broken(path, number, line, "UTF-8 text") from error


def _entity_ids(path: Path) -> Ints:
    """Return the ids of entities with a name, sorted, each once."""
    ids = array("q")
    for number, line in _lines(path):
        head, _, rest = line.partition(b"\t")
        if not _is_id(head, b"Q"):
            raise _broken(path, number, line, "Q<number> and names, tab-separated")
        if rest.strip():
            ids.append(int(head[1:]))
    if not ids:
        raise DataError(f"{path} is empty", hint="fetch it again: raysweep data fetch wikidata5m")
    return np.unique(np.frombuffer(ids, dtype=np.int64))


def _read_train(path: Path, limit: int) -> Ints:
    """Return int64 [N, 3] of at most *limit* lines (all if negative)."""
    numbers = array("q")
    for number, line in _lines(path):
        if 0 <= limit < number:
            break
        fields = line.split(b"\t")
        if len(fields) != 3:
            raise _broken(path, number, line, "subject, relation and object, tab-separated")
        subject, relation, obj = fields
        if not (_is_id(subject, b"Q") and _is_id(relation, b"P") and _is_id(obj, b"Q")):
            raise _broken(path, number, line, "Q<number>, P<number>, Q<number>")
        numbers.extend((int(subject[1:]), int(relation[1:]), int(obj[1:])))
    return np.frombuffer(numbers, dtype=np.int64).reshape(-1, 3)


def _names(path: Path, ids: Ints) -> dict[int, str]:
    """Return the first name of each of *ids*."""
    wanted = np.zeros(int(ids.max()) + 1, dtype=np.bool_)
    wanted[ids] = True
    found: dict[int, str] = {}
    for number, line in _lines(path):
        head, _, rest = line.partition(b"\t")
        identity = int(head[1:])
        if identity < len(wanted) and wanted[identity] and identity not in found:
            names = _decoded(path, number, line, rest.split(b"\t"))
            if names:
                found[identity] = names[0]
    return found


# ------------------------------------------------------------------------------------------------------ filtering


def _isin(values: Ints, table: Ints) -> Bools:
    """Say which *values* occur in the sorted *table*."""
    at = np.searchsorted(table, values)
    return np.asarray(table[np.minimum(at, len(table) - 1)] == values)


def _first_filter(
    lines: Ints, spec: GraphSpec, relations: Mapping[int, tuple[str, ...]], known: Ints, made: dict[str, int]
) -> _Facts:
    """Drop lines about unknown or excluded things (§1.2) and count them."""
    subject, relation, obj = lines.T
    made["lines_read"] = len(lines)
    ids = np.array(list(relations), dtype=np.int64)
    by_id = np.argsort(ids)
    outside = np.array(sorted(int(e[1:]) for e in spec.excluded_entities), dtype=np.int64)
    barred = np.array(sorted(int(r[1:]) for r in spec.excluded_relations), dtype=np.int64)
    reasons: dict[str, Bools] = {
        "unknown_relation": ~_isin(relation, ids[by_id]),
        "unknown_entity": ~(_isin(subject, known) & _isin(obj, known)),
        "excluded_relation": np.isin(relation, barred),
        "excluded_entity": np.isin(subject, outside) | np.isin(obj, outside),
    }
    keep = np.ones(len(lines), dtype=np.bool_)
    for reason, hit in reasons.items():
        made[reason] = int((keep & hit).sum())
        keep &= ~hit
    index = by_id[np.searchsorted(ids[by_id], relation[keep])]
    return _Facts(subject[keep], index, obj[keep])


def _functional(facts: _Facts, relations: int, spec: GraphSpec, made: dict[str, int]) -> _Facts:
    """Keep the top-k relations, subjects with enough of them, and the first object of each pair (§1.3–1.5).

    The result is grouped by subject, subjects in order of first appearance, relations within one as they appeared.
    """
    # the first line of each (subject, relation), subjects renumbered by first appearance
    _, first, inverse = np.unique(facts.subject, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    order_of = rank[inverse]
    _, lines = np.unique(order_of * relations + facts.relation, return_index=True)
    rows = lines[np.lexsort((lines, order_of[lines]))]
    counts = cooccurrence(order_of[rows], facts.relation[rows], relations, spec.min_relations)
    chosen = choose_relations(counts, spec.relations, spec.min_cooccurrences)
    top = np.zeros(relations, dtype=np.bool_)
    top[chosen] = True
    made["other_relation"] = int((~top[facts.relation]).sum())
    made["several_objects"] = int(top[facts.relation].sum()) - int(top[facts.relation[rows]].sum())
    rows = rows[top[facts.relation[rows]]]
    return _enough(_Facts(facts.subject[rows], facts.relation[rows], facts.object[rows]), spec, made)


def _enough(facts: _Facts, spec: GraphSpec, made: dict[str, int]) -> _Facts:
    """Keep subjects with ``min_relations`` relations; facts are functional."""
    _, inverse, degree = np.unique(facts.subject, return_inverse=True, return_counts=True)
    made["single_relation_subjects"] = made.get("single_relation_subjects", 0) + int(
        (degree < spec.min_relations).sum()
    )
    keep = degree[inverse] >= spec.min_relations
    if not keep.any():
        raise GraphError(
            f"no subject has {spec.min_relations} relations", hint="lower min_relations or read more facts"
        )
    return _Facts(facts.subject[keep], facts.relation[keep], facts.object[keep])


def _drop_long(
    facts: _Facts, names: Mapping[int, str], spec: GraphSpec, tokens: NameTokens, made: dict[str, int]
) -> _Facts:
    """Drop facts whose object's name is beyond the cap."""
    ids = np.unique(facts.object)
    long = ids[tokens.lengths([names[i] for i in ids.tolist()]) > spec.max_object_tokens]
    keep = ~np.isin(facts.object, long)
    made["long_object_facts"] = int((~keep).sum())
    if not keep.any():
        raise GraphError(f"every object has more than {spec.max_object_tokens} tokens", hint="raise max_object_tokens")
    return _enough(_Facts(facts.subject[keep], facts.relation[keep], facts.object[keep]), spec, made)


# --------------------------------------------------------------------------------------------------------- naming


def _named(
    facts: _Facts,
    names: Mapping[int, str],
    relations: Mapping[int, tuple[str, ...]],
    spec: GraphSpec,
    tokens: NameTokens,
    made: dict[str, int],
) -> KnowledgeGraph:
    """Write names for ids (§1.6–1.7); two ids with one name are merged or told apart (ruling E4)."""
    interleaved = np.stack([facts.subject, facts.object], axis=1).ravel()
    _, first = np.unique(interleaved, return_index=True)
    called = _distinct(interleaved[np.sort(first)].tolist(), names, spec.equal_names == "append_id", made)
    subjects: dict[str, int] = {}
    subject_of = {i: subjects.setdefault(called[i], len(subjects)) for i in _once(facts.subject)}
    ids = _once(facts.object)
    short = tokens.shorten([called[i] for i in ids], spec.max_object_tokens)
    made["shortened_objects"] = sum(a != called[i] for a, i in zip(short, ids, strict=True))
    made["objects_merged_by_shortening"] = len({called[i] for i in ids}) - len(set(short))
    objects: dict[str, int] = {}
    object_of = {i: objects.setdefault(name, len(objects)) for i, name in zip(ids, short, strict=True)}
    rows = np.stack([_mapped(facts.subject, subject_of), facts.relation, _mapped(facts.object, object_of)], axis=1)
    rows = _merged(rows, len(relations), made)
    order = _once(rows[:, 1])
    rows[:, 1] = _mapped(rows[:, 1], {r: i for i, r in enumerate(order)})
    identities = list(relations)
    told = {identities[r]: relations[identities[r]] or (f"P{identities[r]}",) for r in order}
    main = _distinct(list(told), {i: own[0] for i, own in told.items()}, True, {}, "P")
    used = sorted(set(rows[:, 2].tolist()))
    if len(used) < len(objects):  # a merge left a name without facts
        table = list(objects)
        rows[:, 2] = _mapped(rows[:, 2], {o: i for i, o in enumerate(used)})
        objects = {table[o]: i for i, o in enumerate(used)}
    return KnowledgeGraph(
        subjects=tuple(subjects),
        relations=tuple(main.values()),
        objects=tuple(objects),
        facts=rows,
        wordings=tuple(own[1:] for own in told.values()),
        made=made,
    )


def _once(values: Ints) -> list[int]:
    """Return the distinct values in order of first appearance."""
    _, first = np.unique(values, return_index=True)
    return [int(v) for v in values[np.sort(first)]]


def _mapped(values: Ints, table: Mapping[int, int]) -> Ints:
    distinct, inverse = np.unique(values, return_inverse=True)
    return np.asarray(np.array([table[v] for v in distinct.tolist()], dtype=np.int64)[inverse])


def _distinct(
    ids: Sequence[int], names: Mapping[int, str], append_id: bool, made: dict[str, int], letter: str = "Q"
) -> dict[int, str]:
    """Return the name of each id in order; with *append_id* a name that is taken gets the id behind it."""
    taken: set[str] = set()
    called: dict[int, str] = {}
    equal = 0
    for i in ids:
        name = names[i]
        if name in taken:
            equal += 1
            name = f"{name} {letter}{i}" if append_id else name
        taken.add(name)
        called[i] = name
    made["equal_names"] = equal
    return called


def _merged(rows: Ints, relations: int, made: dict[str, int]) -> Ints:
    """Group merged subjects together and keep the first value of each (subject, relation)."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    _, first = np.unique(rows[:, 0] * relations + rows[:, 1], return_index=True)
    made["merged_facts"] = len(rows) - len(first)
    return np.asarray(rows[np.sort(first)])
