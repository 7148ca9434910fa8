"""The order of records depends on each record alone."""

from __future__ import annotations

from raysweep.data.sampling import order
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
