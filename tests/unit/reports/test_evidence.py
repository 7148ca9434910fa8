"""Differences of Geo: means over seeds of a function of means, with records drawn anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysweep.reports.evidence import geo_difference
from raysweep.reports.grouping import measure_trials
from raysweep.reports.measured import TrialView
from raysweep.reports.pairs import Pair
from raysweep.reports.values import Records
from raysweep.reports.views import SummaryRow
from raysweep.summarize import geo

KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))
RECORDS = 30


def line(values: np.ndarray, records: Records, label: str, digest: str = "d") -> SummaryRow:
    """Return a line of trials, one for each seed, with *values* [seeds, records, 3] of Rel, Gen and Loc."""
    tables = [
        pa.table({
            "step": [RECORDS] * of_seed.size, "edit_step": list(np.repeat(np.arange(1, RECORDS + 1), 3)),
            "superseded_step": pa.nulls(of_seed.size, pa.int64()),
            "record_id": [f"r{i:02d}" for i in range(RECORDS) for _ in KINDS],
            "probe_kind": [k for k, _ in KINDS] * RECORDS, "metric": [m for _, m in KINDS] * RECORDS, "value": of_seed.reshape(-1),
        })
        for of_seed in values
    ]  # fmt: skip
    found = measure_trials(tables, [[RECORDS]] * len(tables), [1] * len(tables), records)
    trials = [
        TrialView({"seed": seed, "data_digest": digest, "non_finite_step": None}, (RECORDS,), measured, {})
        for seed, measured in enumerate(found)
    ]
    return SummaryRow(
        label=label, arm=label, step=RECORDS, phase="retained", seeds=tuple(range(len(trials))), cells={}, status="done",
        seconds=0.0, per_edit=0.0, trials=trials,
    )  # fmt: skip


def test_the_difference_of_geo_is_that_of_the_seeds_means() -> None:
    rng, records = np.random.default_rng(0), Records()
    first, other = rng.uniform(0.2, 0.6, (2, RECORDS, 3)), rng.uniform(0.5, 0.9, (2, RECORDS, 3))
    found = geo_difference(Pair(line(other, records, "b"), line(first, records, "a")))
    assert found is not None
    wanted = np.mean([geo(*b.mean(0)) - geo(*a.mean(0)) for a, b in zip(first, other, strict=True)])
    assert found.mean == pytest.approx(wanted)
    assert found.low < found.mean < found.high
    assert found.shown
    assert found.n == RECORDS


def test_equal_arms_and_other_data_show_nothing() -> None:
    rng, records = np.random.default_rng(1), Records()
    values = rng.uniform(0.2, 0.6, (1, RECORDS, 3))
    reference = line(values, records, "a")
    same = geo_difference(Pair(line(values, records, "b"), reference))
    assert same is not None
    assert (same.mean, same.shown, same.has_interval) == (0.0, False, False)
    assert geo_difference(Pair(line(values, records, "b", "other"), reference)) is None
    assert geo_difference(Pair(reference, None)) is None


def test_a_program_gets_it_with_its_interval(tmp_path: Path) -> None:
    from raysweep.reports.compare import rows

    rng, records = np.random.default_rng(2), Records()
    lines = [
        line(rng.uniform(low, low + 0.4, (2, RECORDS, 3)), records, name) for low, name in ((0.1, "a"), (0.5, "b"))
    ]
    plain = rows(lines, plain=True)
    assert [row["delta_geo"] is None for row in plain] == [True, False]
    assert "delta_geo" not in rows(lines)[1]
