"""The table of what arms keep, from rows in a store to text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.errors import SpecError
from raysweep.reports.grouping import measure_trials
from raysweep.reports.measured import trial_views
from raysweep.reports.render import Format, render
from raysweep.reports.retention_table import about, history, retentions, rows
from raysweep.reports.values import Records
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.rows import EvalRound, ProbeRow, StatRow

ROUNDS = (10, 20, 40)


def write(store: ResultStore, arm: str, seed: int, kept_for: int, *, stats: Sequence[StatRow] = ()) -> None:
    """Write a trial of 40 edits whose facts are right for *kept_for* edits, measured right after each edit and at the rounds."""
    trial = TrialSpec(
        study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name=arm, config=UnreadConfig()),
        protocol=ProtocolSpec(rounds=ROUNDS), seed=seed,
    )  # fmt: skip
    run = {"raysweep": "0", "python": "3", "device": "cpu", "cpu": "toy"}
    store.begin(trial, arm=arm, point={"seed": seed}, provenance={"run": run})
    done = 0
    for end in ROUNDS:
        asked = [(step, step) for step in range(done + 1, end + 1)] + [(end, fact) for fact in range(1, end)]
        measured = [
            ProbeRow(
                trial_key=trial.key, step=step, record_id=f"r{fact}", edit_step=fact, superseded_step=None,
                probe_kind="efficacy", probe_name="", probe_index=0, metric=metric, value=float(step - fact < kept_for),
                n_tokens=1, prompt_digest="", answer="",
            )
            for step, fact in asked
            for metric in ("token_match", "exact_match")
        ]  # fmt: skip
        store.write_round(
            trial.key, EvalRound(step=end, rows=measured, stats=[row for row in stats if done < row.step <= end])
        )
        done = end
    store.finish(trial.key, step=done)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    store = ResultStore(tmp_path / "toy")
    for seed in (0, 1):
        write(store, "short", seed, 15 + 10 * seed)
        write(store, "long", seed, 100)
    return Sweep(store)


def test_rows_become_a_history_in_the_order_of_edits() -> None:
    """The pristine row, a row before its record's edit and one after it was superseded do not count; probes are averaged."""
    rows = [
        ("b", 0, 1, None, 0.0), ("b", 1, 1, None, 1.0), ("b", 2, 1, None, 1.0), ("a", 2, 2, 3, 1.0), ("b", 4, 1, None, 0.0),
        ("b", 4, 1, None, 1.0), ("a", 4, 2, 3, 1.0), ("c", 4, 3, None, 1.0), ("c", 2, 3, None, 0.0),
    ]  # fmt: skip
    names = ("record_id", "step", "edit_step", "superseded_step", "value")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    probes = pa.table({**columns, "probe_kind": ["efficacy"] * len(rows), "metric": ["token_match"] * len(rows)})
    (measured,) = measure_trials([probes], [[0, 2, 4]], [1], Records())
    found = history(measured, "rel", 4)
    assert (found.record.tolist(), found.edit_step.tolist()) == (["b", "a", "c"], [1, 2, 3])
    nan = math.nan
    np.testing.assert_array_equal(found.value, [[1.0, 0.5], [1.0, nan], [nan, 1.0]])
    np.testing.assert_array_equal(found.immediate, [1.0, 1.0, nan])
    np.testing.assert_array_equal(found.first, [1.0, 1.0, 1.0])


def area(kept_for: int) -> float:
    """Return the mean over 40 facts of the area under the line through what is measured of each, over its age at the end."""
    areas = []
    for fact in range(1, 41):
        ages = [0, *(end - fact for end in ROUNDS if end > fact)]
        values = [float(age < kept_for) for age in ages]
        pieces = [(b - a) * (x + y) / 2 for a, b, x, y in zip(ages, ages[1:], values, values[1:], strict=False)]
        areas.append(sum(pieces) / ages[-1] if ages[-1] else 1.0)
    return sum(areas) / len(areas)


def half_life(*kept_for: int) -> int:
    """Return the age at which the product-limit estimate falls to a half, fact by fact."""
    facts = []
    for kept in kept_for:
        for fact in range(1, 41):
            wrong = [end - fact for end in ROUNDS if end - fact >= kept]
            facts.append((wrong[0] if wrong else 40 - fact, bool(wrong)))
    share = 1.0
    for age in sorted({age for age, lost in facts if lost}):
        share *= 1 - sum(lost and a == age for a, lost in facts) / sum(a >= age for a, _ in facts)
        if share <= 0.5:
            return age
    raise AssertionError("more than half are kept")


def test_each_arm_has_what_it_keeps(sweep: Sweep) -> None:
    found = {one.label: one for one in retentions(trial_views(sweep))}
    short, long = found["short"], found["long"]
    assert {name: e.mean for name, e in short.pooled.items() if name != "held"} == {
        "immediate": 1.0,
        "final": 0.5,  # of 40 facts the last 15, and under the other seed the last 25
        "first": 0.0,
        "latest": 1.0,
    }
    assert short.pooled["held"].mean == pytest.approx(sum(area(kept) for kept in (15, 25)) / 2)
    assert {name: e.mean for name, e in long.pooled.items()} == dict.fromkeys(short.pooled, 1.0)
    assert (short.count, short.end, long.kept.lost, short.kept.lost) == (4, 40, 0, 25 + 15)
    # Written at 5 or before, a fact of seed 0 is first seen wrong at 20; all others, and all of seed 1, at 40.
    assert short.kept.age.min() == 0
    assert short.kept.half_life()[0] == half_life(15, 25)
    assert (short.collapse, long.collapse) == ([40, None], [None, None])


def test_the_table_is_for_readers_and_for_programs(sweep: Sweep) -> None:
    found = retentions(trial_views(sweep))
    text = render(rows(found), Format.MARKDOWN)
    assert "| 40 of 80 | 28 [" in text
    assert "| 40 (1 of 2) |" in text
    assert "| 0 of 80 | > 40 | none |" in text
    assert "0 of 40 facts that were lost" in " ".join(about(found))
    long, short = json.loads(render(rows(found, plain=True), Format.JSON))
    assert (long["arm"], long["half_life"], long["collapse"]) == ("long", None, "; ")
    assert (short["lost"], short["came_back"], short["cohort"], short["collapse"]) == (40, 0, 4, "40; ")


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no trial was measured after an edit"):
        retentions([])
