"""Wikidata5m files → graph: every filter on a hand-made example, damage, and the synthetic files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from raysweep.belief.graph.graph import normalise_rows
from raysweep.belief.graph.name_length import WordNameTokens
from raysweep.belief.graph.synthetic import ARROWS, SyntheticSpec, write_wikidata
from raysweep.belief.graph.wikidata import read_wikidata
from raysweep.belief.graph.wikidata_files import ENTITY, RELATION, TRAIN, find_files
from raysweep.belief.spec import GraphSpec
from raysweep.errors import DataError, GraphError, SpecError
from tests.unit.belief.wiki import ENTITIES, FACTS, RELATIONS, names, read, spec, write


def test_every_filter_by_hand(tmp_path: Path) -> None:
    made = read(write(tmp_path))
    assert names(made) == [
        ("Ada Kern", "citizen of", "Southland"),
        ("Ada Kern", "born in", "Velm"),
        ("Bo Lint", "born in", "grand old town"),
        ("Bo Lint", "citizen of", "Northland"),
        ("Cy Moor", "citizen of", "Southland"),
        ("Cy Moor", "born in", "grand old town"),
    ]
    assert made.relations == ("citizen of", "born in")
    assert made.wordings == (("national of",), ("native of",))
    assert made.objects == ("Southland", "Velm", "grand old town", "Northland")
    assert made.filter_counts == {
        "lines_read": 17,
        "unknown_relation": 1,  # P77
        "unknown_entity": 3,  # Q99, Q98 and the nameless Q30
        "excluded_relation": 1,  # P735
        "excluded_entity": 2,  # Q5 as object, Q16521 as subject
        "other_relation": 2,  # P3 of Q3, P4 of Q4
        "several_objects": 1,  # second P1 of Q1
        "single_relation_subjects": 1,  # Q4
        "equal_names": 0,
        "shortened_objects": 2,
        "objects_merged_by_shortening": 1,
        "merged_facts": 0,
    }


def test_dropped_lines_count_towards_the_limit(tmp_path: Path) -> None:
    made = read(write(tmp_path), read_n_facts=6, min_cooccurrences=1)
    assert made.filter_counts["lines_read"] == 6
    assert made.subjects == ("Ada Kern", "Bo Lint")
    assert read(tmp_path, read_n_facts=-1).digest == read(tmp_path).digest


def test_excluded_things_can_be_kept(tmp_path: Path) -> None:
    made = read(write(tmp_path), excluded_entities=(), excluded_relations=())
    assert made.filter_counts["excluded_entity"] == made.filter_counts["excluded_relation"] == 0


def test_long_objects_can_be_dropped_with_their_facts(tmp_path: Path) -> None:
    more = "Q4\tP2\tQ10\n"
    made = read(write(tmp_path, facts=FACTS + more), long_objects="drop")
    assert names(made) == [
        ("Ada Kern", "citizen of", "Southland"),
        ("Ada Kern", "born in", "Velm"),
        ("Dee Nash", "citizen of", "Southland"),
        ("Dee Nash", "born in", "Velm"),
    ]
    assert made.filter_counts["long_object_facts"] == 2
    with pytest.raises(GraphError, match="every object has more than 1 tokens"):
        read(write(tmp_path, entities=ENTITIES.replace("Southland", "a b").replace("Northland", "c d").replace("Velm", "e f")),
             long_objects="drop", max_object_tokens=1)  # fmt: skip


def test_equal_names_are_merged_or_told_apart(tmp_path: Path) -> None:
    write(tmp_path, entities=ENTITIES.replace("Bo Lint", "Ada Kern"))
    merged = read(tmp_path)
    assert merged.subjects == ("Ada Kern", "Cy Moor")
    assert names(merged)[:2] == [("Ada Kern", "citizen of", "Southland"), ("Ada Kern", "born in", "Velm")]
    assert (merged.filter_counts["equal_names"], merged.filter_counts["merged_facts"]) == (1, 2)
    assert "Northland" not in merged.objects  # its only fact was merged away
    apart = read(tmp_path, equal_names="append_id")
    assert apart.subjects == ("Ada Kern", "Ada Kern Q2", "Cy Moor")
    assert apart.filter_counts["merged_facts"] == 0


def test_relations_of_one_name_are_told_apart(tmp_path: Path) -> None:
    made = read(write(tmp_path, relations=RELATIONS.replace("born in", "citizen of")))
    assert made.relations == ("citizen of", "citizen of P2")


def test_too_few_cooccurrences_in_the_files_are_refused(tmp_path: Path) -> None:
    facts = "Q1\tP1\tQ20\nQ1\tP2\tQ10\nQ2\tP1\tQ20\nQ2\tP3\tQ10\n"
    with pytest.raises(GraphError, match="only 3 relations co-occur 1 times or more; 4 are wanted"):
        read(write(tmp_path, facts=facts), min_cooccurrences=1, relations=4)


def test_missing_files_are_named_with_their_place(tmp_path: Path) -> None:
    (write(tmp_path) / ENTITY).unlink()
    with pytest.raises(DataError) as caught:
        find_files(tmp_path)
    assert f"{tmp_path} lacks {ENTITY}" in caught.value.message
    for word in ("raysweep data fetch wikidata5m", TRAIN, ENTITY, RELATION, str(tmp_path)):
        assert word in caught.value.hint


@pytest.mark.parametrize(
    ("file", "line", "number", "wanted"),
    [
        (TRAIN, "Q1\tP1", 18, "subject, relation and object"),
        (TRAIN, "Q1\tP1\tQ2\tQ3", 18, "subject, relation and object"),
        (TRAIN, "Q1 P1 Q20", 18, "subject, relation and object"),
        (TRAIN, "P1\tQ1\tQ20", 18, "Q<number>, P<number>, Q<number>"),
        (TRAIN, "Q1\tP1\tQx", 18, "Q<number>, P<number>, Q<number>"),
        (TRAIN, "Q1\tP1\tQ12345678901", 18, "Q<number>, P<number>, Q<number>"),
        (ENTITY, "human\tQ5", 14, "Q<number> and names"),
        (RELATION, "P9", 7, "P<number> and names"),
        (RELATION, "Q9\tname", 7, "P<number> and names"),
    ],
)
def test_a_broken_line_is_quoted(tmp_path: Path, file: str, line: str, number: int, wanted: str) -> None:
    path = write(tmp_path) / file
    with path.open("a", encoding="utf-8") as out:
        out.write(line + "\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert f"{file}:{number}: expected {wanted}" in caught.value.message
    assert repr(line[:60]) in caught.value.message


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / ENTITY
    path.write_bytes(path.read_bytes().replace(b"Ada", b"\xff\xfe"))
    with pytest.raises(DataError, match=r":1: expected UTF-8 text"):
        read(tmp_path)


def test_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for name in (ENTITY, RELATION):
        (write(tmp_path) / name).write_text("")
        with pytest.raises(DataError, match=f"{name} is empty"):
            read(tmp_path)
    with pytest.raises(GraphError, match="no fact survives the first filter"):
        read(write(tmp_path, facts="Q7\tP1\tQ8\n"))
    with pytest.raises(GraphError, match="no fact survives the first filter"):
        read(write(tmp_path, facts=""))


def test_an_odd_number_of_relations_is_refused_before_any_work() -> None:
    with pytest.raises(ValidationError, match=r"relations = 3 is odd.*odd_relations: single"):
        spec(relations=3)
    assert spec(relations=3, odd_relations="single").relations == 3
    assert GraphSpec(relations=3).relations == 3  # the embedded world has its own relations
    with pytest.raises(ValidationError, match="reads nothing"):
        spec(read_n_facts=0)


def test_the_synthetic_files_fire_every_filter(tmp_path: Path) -> None:
    assert write_wikidata(tmp_path, SyntheticSpec()) == 1282
    wanted = spec(relations=8, min_cooccurrences=20, max_object_tokens=2)
    made = read_wikidata(tmp_path, wanted, WordNameTokens())
    assert len(made.facts) == 994
    assert made.relations == tuple(own[1] for up, _, down, _ in ARROWS[:4] for own in (down, up))
    assert all(count > 0 for count in made.filter_counts.values()), made.filter_counts
    shares = normalise_rows(made.cooccurrence)
    for child in range(0, 8, 2):  # the two relations of an arrow are each other's most frequent companions
        assert shares[child].argmax() == child + 1
        assert shares[child + 1].argmax() == child


def test_synthetic_files_depend_on_their_spec_alone(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(3)]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        write_wikidata(folder, SyntheticSpec(seed=seed, subjects=40))
    contents = [tuple((f / n).read_bytes() for n in (TRAIN, ENTITY, RELATION)) for f in folders]
    assert contents[0] == contents[1] != contents[2]
    with pytest.raises(SpecError, match="7 arrows asked for, 6 are known"):
        write_wikidata(tmp_path, SyntheticSpec(arrows=7))


def test_without_dirt_nothing_is_dropped_but_single_subjects(tmp_path: Path) -> None:
    write_wikidata(tmp_path, SyntheticSpec(subjects=120, dirt=False))
    made = read_wikidata(tmp_path, spec(relations=8, min_cooccurrences=5, max_object_tokens=2), WordNameTokens())
    kept = {k for k, v in made.filter_counts.items() if v}
    assert kept == {"lines_read", "single_relation_subjects"}
