"""The embedded world: deterministic, functional, clean, and its edit records obey every rule."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from raysweep.errors import SpecError
from raysweep.records import ProbeKind, check_record
from raysweep.world import Fact, World, WorldSpec, build_world, edit_records, training_sentences

PRINT_DIGEST = """
import hashlib
from raysweep.world import WorldSpec, build_world, edit_records, training_sentences
w = build_world(WorldSpec(seed=3, people=30, cities=12, companies=8, countries=4))
text = repr((w, edit_records(w), training_sentences(w, 1)))
print(hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


def test_world_is_hashseed_independent() -> None:
    digests = []
    for hashseed in ("0", "12345"):
        env = {**os.environ, "PYTHONHASHSEED": hashseed}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_DIGEST], env=env, capture_output=True, text=True, check=True, timeout=60
        )
        digests.append(done.stdout.strip())
    assert digests[0] == digests[1]
    assert len(digests[0]) == len(hashlib.sha256().hexdigest())


def test_seed_changes_the_world() -> None:
    small = {"people": 12, "cities": 8, "companies": 6, "countries": 3}
    a, b = (build_world(WorldSpec(seed=s, **small)) for s in (0, 1))
    assert build_world(WorldSpec(seed=0, **small)) == a
    assert a.facts != b.facts
    assert a.entities["person"] != b.entities["person"]


def test_relations_are_functional_and_typed(world: World) -> None:
    pairs = Counter((f.subject, f.relation) for f in world.facts)
    assert set(pairs.values()) == {1}
    for fact in world.facts:
        relation = world.relation(fact.relation)
        assert fact.subject in world.entities[relation.domain]
        assert fact.object in world.entities[relation.range]
        assert world.object(fact.subject, fact.relation) == fact.object
    expected = sum(len(world.entities[r.domain]) for r in world.relations)
    assert len(world.facts) == expected


def test_a_capital_lies_in_its_country(world: World) -> None:
    for country in world.entities["country"]:
        assert world.object(world.object(country, "capital"), "country") == country


def test_names_do_not_collide(world: World) -> None:
    names = [n for kind in sorted(world.entities) for n in world.entities[kind]]
    assert len(names) == len(set(names))
    subjects = [n for kind in ("person", "city", "company", "country") for n in world.entities[kind]]
    assert not [(a, b) for a, b in combinations(subjects, 2) if a in b or b in a]
    assert all(tuple(sorted(v)) == v for v in world.entities.values())


def test_wordings(world: World) -> None:
    for relation in world.relations:
        assert all(w.count("{}") == 1 and "{n}" not in w and w == w.strip() for w in relation.wordings)
        assert len(set(relation.wordings)) == len(relation.wordings)
        assert len(relation.trained) >= 10
        assert len(relation.novel) >= 3


def test_novel_wordings_are_never_trained(world: World) -> None:
    prompts = {w.replace("{}", f.subject) for f in world.facts for w in world.relation(f.relation).novel}
    for epoch in (0, 1):
        for sentence in training_sentences(world, epoch):
            for start, _ in sentence.spans:
                head = sentence.text[: start - 1]
                assert head.rsplit(". ", 1)[-1] not in prompts


def test_novel_wordings_use_known_words(world: World) -> None:
    words = {w for s in training_sentences(world) for w in s.text.replace("?", "").replace(",", "").split()}
    for relation in world.relations:
        subject = world.entities[relation.domain][0]
        for wording in relation.novel:
            text = wording.replace("{}'s", "{}").replace("{}", subject).replace("?", "").replace(",", "")
            assert set(text.split()) <= words, wording


def test_training_sentences_mark_objects(world: World) -> None:
    objects = set(world.objects) | {"person", "city", "company", "country"}
    sentences = training_sentences(world)
    stated = {s.text[a:b] for s in sentences for a, b in s.spans}
    assert stated <= objects
    assert all(s.text.endswith(".") and s.spans for s in sentences)
    assert sentences == training_sentences(world, 0)
    assert sentences != training_sentences(world, 1)


def test_records(world: World) -> None:
    records = edit_records(world)
    assert records == edit_records(world)
    assert len(records) >= 400
    assert [r.id for r in records] == [f"world/{i:06d}" for i in range(len(records))]
    edited = set()
    for record in records:
        assert check_record(record) == ()
        relation = next(
            r for r in world.relations if record.template in r.trained and record.target in world.entities[r.range]
        )
        assert world.object(record.subject, relation.name) != record.target
        assert (record.subject, relation.name) not in edited
        edited.add((record.subject, relation.name))
        names = Counter((p.kind, p.name) for p in record.probes)
        assert names[ProbeKind.EFFICACY, ""] == 1
        assert names[ProbeKind.PARAPHRASE, "trained"] == names[ProbeKind.PARAPHRASE, "novel"] == 1
        assert names[ProbeKind.LOCALITY, "same_subject"] == names[ProbeKind.LOCALITY, "other"] == 1
        for probe in record.probes:
            if probe.name == "novel":
                assert probe.prompt.replace(record.subject, "{}") in relation.novel
            if probe.kind == ProbeKind.LOCALITY:
                assert probe.against == "base"
                assert (record.subject in probe.prompt) == (probe.name == "same_subject")
    assert sum(p.name == "hop2" for r in records for p in r.probes) >= 50


def test_locality_probes_ask_facts_no_record_edits(world: World) -> None:
    records = edit_records(world)
    facts = {w.replace("{}", f.subject): f for f in world.facts for w in world.relation(f.relation).trained}
    edited = {(facts[r.prompt].subject, facts[r.prompt].relation) for r in records}
    for record in records:
        for probe in record.probes:
            if probe.kind == ProbeKind.LOCALITY:
                fact: Fact = facts[probe.prompt]
                assert (fact.subject, fact.relation) not in edited
                assert fact.object == probe.target


def test_first_edits_have_different_subjects(world: World) -> None:
    first = [r.subject for r in edit_records(world)[:200]]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("bad", [{"version": 99}, {"cities": 3, "countries": 5}, {"companies": 1}])
def test_bad_specs_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        build_world(WorldSpec(**bad))
