"""The knowledge graph: co-occurrence, choice of relations, order, statistics, arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from raysweep.belief.graph import graph as graphs
from raysweep.belief.graph.graph import KnowledgeGraph, graph_from_names, world_graph
from raysweep.belief.graph.name_length import FileNameTokens, WordNameTokens, open_tokens
from raysweep.errors import DataError, GraphError
from raysweep.models.sources.catalogue import embedded_folder
from raysweep.world import build_world
from tests.unit.belief.wiki import graph, names


@pytest.mark.parametrize("least", [1, 2, 3])
def test_cooccurrence_counts_subjects_with_both(least: int) -> None:
    rng = np.random.default_rng(least)
    has = rng.random((40, 7)) < 0.35
    subject, relation = np.nonzero(has)
    found = graphs.cooccurrence(subject, relation, 7, least)
    eligible = has[has.sum(1) >= least]
    for i, j in itertools.product(range(7), repeat=2):
        assert found[i, j] == (eligible[:, i] & eligible[:, j]).sum()


def test_normalised_rows_leave_the_diagonal_out() -> None:
    shares = graphs.normalise_rows(np.array([[9, 1, 3], [1, 9, 0], [3, 0, 9]]))
    assert shares.tolist() == [[0, 0.25, 0.75], [1, 0, 0], [1, 0, 0]]
    assert graphs.normalise_rows(np.array([[5, 0], [0, 5]])).tolist() == [[0, 0], [0, 0]]


def test_relations_are_chosen_pair_by_pair() -> None:
    counts = np.zeros((6, 6), dtype=np.int64)
    for i, j, many in [(0, 1, 9), (2, 3, 8), (1, 4, 7), (4, 5, 6)]:
        counts[i, j] = counts[j, i] = many
    assert graphs.choose_relations(counts, 4, 6) == [0, 1, 2, 3]
    assert graphs.choose_relations(counts, 3, 6) == [0, 1, 4]  # (2, 3) needs two places, one is free
    assert graphs.choose_relations(counts, 5, 6) == [0, 1, 2, 3, 4]


def test_too_few_cooccurrences_are_refused() -> None:
    counts = np.array([[5, 4, 0], [4, 5, 1], [0, 1, 5]])
    with pytest.raises(GraphError, match="only 2 relations co-occur 2 times or more; 3 are wanted"):
        graphs.choose_relations(counts, 3, 2)
    assert graphs.choose_relations(counts, 3, 1) == [0, 1, 2]
    apart = np.kron(np.eye(2, dtype=np.int64), np.full((2, 2), 3))
    with pytest.raises(GraphError, match="cover only 2 of 3 relations"):
        graphs.choose_relations(apart, 3, 3)


def test_facts_are_grouped_and_the_first_object_is_kept() -> None:
    made = graph("s up a", "t up b", "s down x", "s up c")
    assert names(made) == [("s", "up", "a"), ("s", "down", "x"), ("t", "up", "b")]
    assert made.objects == ("a", "x", "b")
    assert made.filter_counts == {"several_objects": 1}
    assert made.row_of.tolist() == [[0, 1], [2, -1]]
    assert made.starts.tolist() == [0, 2, 3]
    assert made.atomic(0, 1, 1) == "s down x"


def test_a_graph_is_immutable() -> None:
    made = graph("s up a", "s down x")
    with pytest.raises(ValueError, match="read-only"):
        made.facts[0, 0] = 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "no facts"),
        ([(0, 0, 5)], "points outside of 2 subjects, 1 relations, 2 objects"),
        ([(1, 0, 0), (0, 0, 0)], "not in the order of their subjects"),
        ([(0, 0, 0), (0, 0, 1)], "two objects under one relation"),
    ],
)
def test_broken_graphs_are_refused(facts: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        KnowledgeGraph(subjects=("s", "t"), relations=("r",), objects=("a", "b"), facts=np.array(facts))


def test_names_must_differ() -> None:
    with pytest.raises(GraphError, match="two objects are called 'a'"):
        KnowledgeGraph(subjects=("s",), relations=("r",), objects=("a", "a"), facts=np.array([(0, 0, 0)]))


def test_the_embedded_world_is_such_a_graph() -> None:
    world = build_world()
    made = world_graph(world)
    assert len(made.facts) == len(world.facts) == 1310
    assert len(made.relations) == len(world.relations)
    for s, r, o in itertools.islice(names(made), 0, None, 37):
        relation = next(x for x in world.relations if "{} " + r in x.trained)
        assert world.object(s, relation.name) == o
    assert made.relations[0] == "was born in"
    assert "is a native of" in made.wordings[0]


def test_arrays_there_and_back() -> None:
    made = world_graph(build_world())
    arrays, meta = graphs.to_arrays(made)
    back = graphs.from_arrays(arrays, meta)
    assert back.digest == made.digest
    assert back.wordings == made.wordings
    arrays["facts"] = made.facts[:-1]
    with pytest.raises(GraphError, match="expected"):
        graphs.from_arrays(arrays, meta)


def test_the_digest_covers_names_order_and_facts() -> None:
    base = graph("s up a", "s down x", "t up b", "t down x")
    others = [
        graph("s up a", "s down x", "t up b", "t down y"),
        graph("t up b", "t down x", "s up a", "s down x"),
        graph_from_names(
            [("s", "up", "a"), ("s", "down", "x"), ("t", "up", "b"), ("t", "down", "x")], wordings={"up": ["u"]}
        ),
    ]
    assert len({base.digest, *(g.digest for g in others)}) == 4


def test_statistics_by_hand() -> None:
    made = graph("s up a", "s down x", "t up a", "t down y", "a up t")
    told = graphs.graph_statistics(made, WordNameTokens().lengths)
    assert (told["facts"], told["subjects"], told["relations"], told["objects"]) == (5, 3, 2, 4)
    assert told["properties"] == 4
    assert told["subjects_that_are_objects"] == 2
    assert told["words"] == told["tokens"] == 15
    assert told["relations_per_subject"] == {"min": 1, "mean": 5 / 3, "max": 2}
    assert told["most_frequent"]["objects"] == {"a": 2, "x": 1, "y": 1}
    assert told["least_frequent"]["subjects"] == {"a": 1, "s": 2, "t": 2}
    assert made.cooccurrence.tolist() == [[3, 2], [2, 2]]


def test_words_are_cut_and_short_names_left_alone() -> None:
    tokens = open_tokens("words", embedded_folder())
    assert tokens.lengths(["a b", "a  b c"]).tolist() == [2, 3]
    assert tokens.shorten(["a  b", "a  b c"], 2) == ["a  b", "a b"]


def test_tokens_of_a_tokenizer_file() -> None:
    tokens = FileNameTokens(embedded_folder())
    text = "the baker lives in the city"
    (length,) = tokens.lengths([text])
    assert length > 2
    (cut,) = tokens.shorten([text], 2)
    assert text.startswith(cut)
    assert len(cut) < len(text)
    assert tokens.shorten([text], int(length)) == [text]


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"tokenizer.json' does not exist"):
        open_tokens(".", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="is not a tokenizer"):
        open_tokens("tokenizer.json", tmp_path)
