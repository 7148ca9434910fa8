"""What is measured where, from rows of probes alone."""

from __future__ import annotations

import pyarrow as pa

from raysweep.reports.grouping import measure_trials
from raysweep.reports.values import Measurements, Records


def probes(*steps: tuple[int, int]) -> pa.Table:
    """Return a row of Rel for each (step, edit step)."""
    return pa.table({
        "step": [step for step, _ in steps],
        "edit_step": [edit for _, edit in steps],
        "superseded_step": pa.array([None] * len(steps), pa.int64()),
        "record_id": [f"r{edit}" for _, edit in steps],
        "probe_kind": ["efficacy"] * len(steps),
        "metric": ["token_match"] * len(steps),
        "value": [1.0] * len(steps),
    })  # fmt: skip


def measure(tables: list[pa.Table], rounds: list[list[int]]) -> list[Measurements]:
    return measure_trials(tables, rounds, [1] * len(tables), Records())


def test_a_round_to_come_is_not_taken_for_a_step_of_the_next_trial() -> None:
    """Trials are told apart by ``trial · steps + step``: 7 of the first, while nobody is past 4, is 2 of the second."""
    first = probes((1, 1), (4, 1))
    second = probes((2, 2), (4, 2))  # step 2 was measured right after its edit, and is no round
    alone = [*measure([first], [[4, 7]]), *measure([second], [[4]])]
    assert measure([first, second], [[4, 7], [4]]) == alone
    assert set(alone[1]) == {("retained", 4), ("immediate", 4)}
