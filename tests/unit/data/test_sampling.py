"""The order of records depends on each record alone."""

from __future__ import annotations

import itertools
from collections import Counter

from raysweep.data.sampling import arranged, kind_of, order
from raysweep.records import EditRecord


def records(count: int) -> tuple[EditRecord, ...]:
    return tuple(EditRecord(id=f"t/{i:06d}", subject="s", prompt="s is", target="t", probes=()) for i in range(count))


def test_order_is_a_permutation_fixed_by_the_seed() -> None:
    given = records(50)
    first = order(given, 0)
    assert sorted(r.id for r in first) == [r.id for r in given]
    assert order(reversed(given), 0) == first
    assert order(given, 1) != first != given


def test_growth_keeps_the_relative_order() -> None:
    small = order(records(30), 7)
    kept = {r.id for r in small}
    assert tuple(r for r in order(records(60), 7) if r.id in kept) == small


def test_the_order_never_changes_between_versions() -> None:
    assert [r.id[-1] for r in order(records(6), 0)] == ["0", "5", "4", "3", "2", "1"]
    assert [r.id[-1] for r in order(records(6), 1)] == ["2", "5", "3", "0", "4", "1"]


def _facts() -> list[EditRecord]:
    """Three kinds of facts, of 12, 6 and 3."""
    kinds = {"The pet of {} is": 12, "{} works as a": 6, "The home of {} is": 3}
    return [
        EditRecord(id=f"{i}/{j:02d}", subject=f"S{j}", prompt=kind.replace("{}", f"S{j}"), target="x", probes=())
        for i, (kind, count) in enumerate(kinds.items())
        for j in range(count)
    ]


def test_clustered_facts_of_a_kind_stand_together() -> None:
    facts = _facts()
    found = arranged(facts, "clustered", 1)
    assert sorted(r.id for r in found) == sorted(r.id for r in facts)
    kinds = [kind_of(r) for r in found]
    runs = tuple(len(list(group)) for _, group in itertools.groupby(kinds))
    assert runs in set(itertools.permutations((12, 6, 3)))
    assert found == arranged(list(reversed(facts)), "clustered", 1), "whatever order they came in"
    assert len({tuple(r.id for r in arranged(facts, "clustered", seed)) for seed in range(8)}) > 4


def test_dispersed_facts_of_a_kind_are_spread_over_the_run() -> None:
    facts = _facts()
    for seed in range(5):
        found = arranged(facts, "dispersed", seed)
        assert sorted(r.id for r in found) == sorted(r.id for r in facts)
        for kind, count in Counter(map(kind_of, facts)).items():
            at = [i for i, r in enumerate(found) if kind_of(r) == kind]
            gaps = [b - a for a, b in itertools.pairwise(at)]
            assert max(gaps) <= 21 / count + 3, "nowhere much farther apart than on average"
        assert found == arranged(list(reversed(facts)), "dispersed", seed)


def test_the_other_orders_are_what_they_were() -> None:
    facts = _facts()
    assert arranged(facts, "file", 3) == facts
    assert arranged(facts, "seeded", 3) == order(facts, 3)
    assert kind_of(EditRecord(id="a", subject="", prompt="Who?", target="x", probes=())) == "Who?"
