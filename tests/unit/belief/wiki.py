"""Small graphs and Wikidata5m folders for the tests."""

from __future__ import annotations

from pathlib import Path

from raysweep.belief.graph.graph import KnowledgeGraph, graph_from_names
from raysweep.belief.graph.name_length import WordNameTokens
from raysweep.belief.graph.wikidata import read_wikidata
from raysweep.belief.graph.wikidata_files import ENTITY, RELATION, TRAIN
from raysweep.belief.spec import GraphSpec

ENTITIES = """\
Q1\tAda Kern\tA. Kern
Q2\tBo Lint
Q3\tCy Moor
Q4\tDee Nash
Q10\tVelm\tthe Velm
Q11\tOrrin
Q12\tgrand old town of Velm
Q13\tgrand old town of Orrin
Q20\tSouthland
Q21\tNorthland
Q5\thuman
Q16521\ttaxon
Q30\t
"""
RELATIONS = """\
P1\tcitizen of\tnational of
P2\tborn in\tnative of
P3\tspeaks
P4\trides
P735\tgiven name
P131\tlocated in
"""
# subject order: Q1, Q2, Q3; Q4 has one kept relation only
FACTS = """\
Q1\tP1\tQ20
Q1\tP2\tQ10
Q1\tP1\tQ21
Q2\tP2\tQ12
Q1\tP735\tQ10
Q2\tP1\tQ21
Q3\tP1\tQ20
Q3\tP2\tQ13
Q3\tP3\tQ11
Q4\tP1\tQ20
Q4\tP4\tQ10
Q1\tP4\tQ5
Q16521\tP1\tQ20
Q99\tP1\tQ20
Q1\tP2\tQ98
Q1\tP77\tQ20
Q30\tP1\tQ20
"""


def write(folder: Path, *, facts: str = FACTS, entities: str = ENTITIES, relations: str = RELATIONS) -> Path:
    for name, text in ((TRAIN, facts), (ENTITY, entities), (RELATION, relations)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def spec(**values: object) -> GraphSpec:
    given = {"source": "wikidata5m", "relations": 2, "min_cooccurrences": 2, "max_object_tokens": 3, **values}
    return GraphSpec.model_validate(given)


def read(folder: Path, **values: object) -> KnowledgeGraph:
    return read_wikidata(folder, spec(**values), WordNameTokens())


def names(graph: KnowledgeGraph) -> list[tuple[str, str, str]]:
    tables = (graph.subjects, graph.relations, graph.objects)
    return [(tables[0][s], tables[1][r], tables[2][o]) for s, r, o in graph.facts.tolist()]


def graph(*facts: str) -> KnowledgeGraph:
    """Return a graph of facts written ``s r o``."""
    return graph_from_names([tuple(f.split()) for f in facts])  # type: ignore[misc]
