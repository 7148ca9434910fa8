"""What is not a finite number is said to be undefined, with the step at which it began: not 0, and not left out."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from results_helpers import begin, make_round, make_trial, write_trial

from raysweep.cli.analyze import ranked
from raysweep.cli.main import main
from raysweep.config.schema import TrialSpec
from raysweep.reports.compare import compared_rows, reference
from raysweep.reports.compare import rows as compare_rows
from raysweep.reports.notes import non_finite
from raysweep.reports.render import Format
from raysweep.reports.sweep_table import text
from raysweep.reports.views import groups, summary_rows, trial_views
from raysweep.results.finite import first_non_finite, non_finite_step
from raysweep.results.runner import replay
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, trial_columns
from raysweep.rows import NON_FINITE_STAT, EvalRound, ProbeRow, StatRow
from raysweep.summarize import record_values, summary
from raysweep.workspace import Workspace

NAN = math.nan


def collapsed(found: EvalRound, *, since: int, records: set[str] | None = None, value: float = NAN) -> EvalRound:
    """Return *found* with *value* for what was measured from step *since* on (of *records* alone, if given)."""

    def of(row: ProbeRow) -> ProbeRow:
        hit = row.step >= since and (records is None or row.record_id in records) and row.value is not None
        return replace(row, value=value) if hit else row

    return replace(found, rows=[of(row) for row in found.rows])


def write_collapsed(store: ResultStore, trial: TrialSpec, arm: str, since: int, **how: Any) -> None:
    begin(store, trial, arm)
    for step in trial.protocol.rounds:
        store.write_round(trial.key, collapsed(make_round(trial, step), since=since, **how))
    store.finish(trial.key, step=trial.protocol.rounds[-1])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    store = ResultStore(tmp_path / "results" / "s")
    write_collapsed(store, make_trial(0, 1.0), "bad", 3)
    write_trial(store, make_trial(0, 2.0), "good")
    return Workspace(root=tmp_path)


def sweep_of(workspace: Workspace) -> Sweep:
    return Sweep(ResultStore(workspace.results("s")))


def test_show_says_undefined_and_since_when(workspace: Workspace) -> None:
    sweep = sweep_of(workspace)
    bad, good = (t for t in trial_views(sweep))
    assert (bad.row["non_finite_step"], good.row["non_finite_step"]) == (3, None)
    found = {(line.label, line.step): line for line in summary_rows(trial_views(sweep))}
    assert found["bad", 2].undefined == frozenset()
    assert found["bad", 4].undefined >= {"rel", "gen", "loc", "avg", "geo", "ppl", "ppl_median", "ppl_expmean"}
    assert not found["bad", 4].cells
    assert (found["bad", 4].seeds, found["good", 4].undefined) == ((0,), frozenset())
    shown = text(sweep, how=Format.TABLE, at=4)
    (line,) = (row for row in shown.splitlines() if row.strip().startswith("bad"))
    assert line.count("undefined") == 5
    assert "collapsed at 3" in line
    assert non_finite(trial_views(sweep)) == [
        "bad: weights or logits are not finite from step 3 on; values are undefined"
    ]


def test_programs_get_null_and_the_step(workspace: Workspace) -> None:
    rows = json.loads(text(sweep_of(workspace), how=Format.JSON, at=4))
    assert (rows[0]["rel"], rows[0]["ppl"], rows[0]["non_finite_step"]) == (None, None, 3)
    assert rows[1]["non_finite_step"] is None
    (first, _) = csv.DictReader(io.StringIO(text(sweep_of(workspace), how=Format.CSV, at=4)))
    assert (first["rel"], first["non_finite_step"]) == ("", "3")


def test_compare_takes_the_first_defined_arm_and_no_difference_to_the_other(workspace: Workspace) -> None:
    found = compared_rows(["s"], workspace, by="arm", phase=None, at=-1)
    assert reference(found).label == "good"
    rows = compare_rows(found)
    assert (rows[0]["Rel"], rows[0]["ΔRel"], rows[0]["status"]) == ("undefined", "–", "collapsed at 3")
    assert compare_rows(found, plain=True)[0]["non_finite_step"] == 3


def test_the_best_trial_is_one_of_finite_numbers(workspace: Workspace) -> None:
    sweep = sweep_of(workspace)
    logged = {t.row["trial_key"]: {4: {"retained/avg": 0.5}} for t in trial_views(sweep)}
    bad = make_trial(0, 1.0).key
    for value in (NAN, math.inf, 99.0):  # whatever Ray may have logged of it
        logged[bad][4]["retained/avg"] = value
        rows, left = ranked(groups(trial_views(sweep), by="trial"), logged, metric="retained/avg", mode="max", step=4)
        assert [r["arm"] for r in rows] == ["good"]
        assert [(r["arm"], r["retained/avg"]) for r in left] == [("bad", "undefined")]


def test_a_metric_that_is_undefined_is_missing_from_what_ray_gets(workspace: Workspace) -> None:
    store = sweep_of(workspace).store
    trial = make_trial(0, 1.0)
    reports = list(replay(trial, store))
    assert [r.non_finite_step for r in reports] == [None, None, 3]
    assert "retained/rel" in reports[1].summary
    assert not [n for n in reports[2].summary if n.partition("/")[0] in ("retained", "immediate")]
    assert all(math.isfinite(v) for r in reports for v in r.summary.values())
    columns = trial_columns(store, trial.key)
    for step in (0, 2, 4):  # the tables and the live summary agree on what is undefined
        views = {name.partition("/")[2] for name in record_values(columns, step, 1) if name.startswith("retained")}
        (view,) = (t for t in trial_views(sweep_of(workspace)) if t.row["trial_key"] == trial.key)
        assert view.measured.get(("retained", step), {}).keys() == views


def test_one_record_is_enough(tmp_path: Path) -> None:
    """The mean of the records that are left would flatter the editor."""
    store = ResultStore(tmp_path)
    write_collapsed(store, make_trial(), "a", 4, records={"r3"})
    (line,) = summary_rows(trial_views(Sweep(store)), at=4)
    assert "rel" in line.undefined
    assert "retained/rel" not in summary(trial_columns(store, make_trial().key), 4, 1)
    (line,) = summary_rows(trial_views(Sweep(store)), at=4, phase="immediate")
    assert line.cells["rel"].n == 4, "right after they were written, all were finite"


def test_one_seed_is_enough(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    write_collapsed(store, make_trial(0), "a", 4)
    write_trial(store, make_trial(1), "a")
    (line,) = summary_rows(trial_views(Sweep(store)), at=4)
    assert "rel" in line.undefined
    assert sorted(line.status.split(", ")) == ["1 collapsed at 4", "1 done"]
    assert ["rel" in x.undefined for x in summary_rows(trial_views(Sweep(store)), at=4, by="trial")] == [True, False]
    (note,) = non_finite(trial_views(Sweep(store)))
    assert "not finite from step 4 (seed 0) on" in note


def test_what_was_immediate_before_stays_what_it_was(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    write_collapsed(store, make_trial(), "a", 3)
    at = {line.step: line for line in summary_rows(trial_views(Sweep(store)), phase="immediate")}
    assert ("rel" in at[2].cells, "rel" in at[4].undefined) == (True, True)


def test_a_perplexity_that_overflows_is_undefined_but_no_collapse(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    trial = make_trial()
    begin(store, trial)
    found = make_round(trial, 4)
    rows = [replace(r, value=math.inf) if (r.metric, r.record_id) == ("ppl", "r3") else r for r in found.rows]
    store.write_round(trial.key, replace(found, rows=rows))
    (line,) = summary_rows(trial_views(Sweep(store)), at=4)
    assert line.undefined == {"ppl", "ppl_median", "ppl_expmean"}
    assert ("rel" in line.cells, line.status) == (True, "interrupted at 4")
    assert non_finite_step(store, trial.key) is None


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        (f"{NON_FINITE_STAT}w", 3.0, 2),
        ("drift/w", NAN, 2),
        ("drift/w", math.inf, None),  # the squares overflow; the entries need not
        ("loss", NAN, None),
    ],
)
def test_weights_tell_too(tmp_path: Path, name: str, value: float, step: int | None) -> None:
    """Where nobody asks a probe that the damage reaches, the count of entries and the drift still say it."""
    store = ResultStore(tmp_path)
    trial = make_trial()
    stat = StatRow(trial_key=trial.key, step=2, name=name, value=value)
    begin(store, trial)
    found = make_round(trial, 4)
    store.write_round(trial.key, replace(found, stats=[stat]))
    assert non_finite_step(store, trial.key) == first_non_finite(found.rows, [stat]) == step


def test_run_ends_with_a_warning(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    from raysweep.cli.run import summarise

    summarise(sweep_of(workspace), "here")
    out, err = capsys.readouterr()
    assert "undefined" in out
    assert err == "warning: bad: weights or logits are not finite from step 3 on; values are undefined\n"
    assert main(["--root", str(workspace.root), "show", "s", "--plot", str(workspace.root / "p.png")]) == 0
    assert (workspace.root / "p.png").is_file()
