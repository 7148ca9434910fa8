from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_helpers import begin, make_round, make_trial, write_trial

from raysweep.errors import SpecError, StoreError
from raysweep.reports.compare import compared_rows
from raysweep.reports.compare import rows as compare_rows
from raysweep.reports.render import Format, cell_text, render
from raysweep.reports.sweep_table import text
from raysweep.reports.views import groups, paired, summary_rows, trial_views
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, flatten, open_results, trial_columns
from raysweep.rows import TimingRow
from raysweep.summarize import Estimate, geo, matrix, pooled_geo, record_values, summary
from raysweep.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    store = ResultStore(tmp_path / "results" / "s")
    listed: list[dict[str, Any]] = []
    for lam in (None, 1.0, 10.0):
        for seed in (0, 1):
            trial, arm = make_trial(seed, lam), "memit" if lam is None else "memit+simie"
            write_trial(store, trial, arm, shift=0.0 if lam is None else 0.25)
            point = {"seed": seed, **({} if lam is None else {"wrap.simie.lam": lam})}
            listed.append({"key": trial.key, "arm": arm, "point": point, "rounds": [0, 2, 4]})
    store.write_plan({"sweep": "s", "trials": listed}, "")  # without one, the order is that of the keys
    return Workspace(root=tmp_path)


def test_measure_is_what_summarize_says(workspace: Workspace) -> None:
    sweep = open_results("s", workspace)
    for trial in trial_views(sweep):
        columns = trial_columns(sweep.store, trial.row["trial_key"])
        for step in (0, 2, 4):
            expected = record_values(columns, step, 1)
            found = {f"{p}/{v}": r for (p, s), vs in trial.measured.items() if s == step for v, r in vs.items()}
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                assert found[name] == pytest.approx(values, rel=1e-12)


def test_superseded_and_missing_values_are_left_out(workspace: Workspace) -> None:
    trial = trial_views(open_results("s", workspace))[0]
    assert set(trial.measured["retained", 4]["rel"]) == {"r2", "r3", "r4"}  # r1 was superseded at 3
    assert set(trial.measured["retained", 4]["gen"]) == {"r3", "r4"}  # r2's paraphrase had no position
    assert set(trial.measured["immediate", 4]["rel"]) == {"r1", "r2", "r3", "r4"}


def test_lines_pool_seeds_and_keep_configurations_apart(workspace: Workspace) -> None:
    trials = trial_views(open_results("s", workspace))
    assert [label for label, _ in groups(trials)] == ["memit", "memit+simie lam=1", "memit+simie lam=10"]
    found = summary_rows(trials, at=4)
    assert [(line.seeds, line.status, line.per_edit) for line in found] == [((0, 1), "done", 0.75)] * 3
    means = [summary(trial_columns(open_results("s", workspace).store, make_trial(s).key), 4, 1) for s in (0, 1)]
    for view in ("rel", "gen", "loc", "avg", "geo"):
        assert found[0].cells[view].mean == pytest.approx(np.mean([m[f"retained/{view}"] for m in means]))
        assert found[0].cells[view].se > 0
    assert {line.phase for line in summary_rows(trials) if line.step == 0} == {"pristine"}
    assert len(summary_rows(trials, by="trial", at=-1)) == 6


def test_shared_seconds_are_kept_apart(tmp_path: Path) -> None:
    """What a pass did once is told beside what each of its trials did itself."""
    store = ResultStore(tmp_path)
    trial = make_trial(lam=1.0)
    begin(store, trial)
    key: dict[str, Any] = {"trial_key": trial.key, "step": 2}
    timing = [
        TimingRow(phase="edit_shared", seconds=8.0, count=4, **key),
        TimingRow(phase="load_shared", seconds=1.0, count=1, **key),
        TimingRow(phase="round", seconds=0.5, count=2, **key),
    ]
    store.write_round(trial.key, replace(make_round(trial, 2), timing=timing))
    sweep = Sweep(store)
    (line,) = summary_rows(trial_views(sweep))
    assert (line.seconds, line.shared, line.per_edit) == (0.5, 9.0, 2.0)
    assert "0.5 s + 9.0 s shared" in text(sweep, how=Format.TABLE)
    assert '"seconds_shared": 9.0' in text(sweep, how=Format.JSON)


def test_geo_s_error_is_exact_for_a_mean() -> None:
    values = np.array([0.1, 0.5, 0.9, 0.7])
    ones = {f"r{i}": 1.0 for i in range(4)}
    found = pooled_geo([matrix([part]) for part in ({f"r{i}": v for i, v in enumerate(values)}, ones, ones)])
    assert found.mean == pytest.approx(geo(float(values.mean()), 1.0, 1.0))
    assert found.se == pytest.approx(values.std(ddof=1) / 2)
    assert found.low < found.mean < found.high
    assert math.isnan(pooled_geo([matrix([{"a": 0.5}])] * 3).se)


def test_differences_are_paired_by_record_and_seed(workspace: Workspace) -> None:
    first, other, _ = summary_rows(trial_views(open_results("s", workspace)), at=4)
    found = paired(first, other, "rel")
    assert found is not None
    assert (found.mean, found.se, found.n) == (pytest.approx(0.25), pytest.approx(0.0, abs=1e-12), 3)
    assert found.low < 0.25 < found.high, "records that all differ by the same say nothing certain of other records"
    assert other.cells["rel"].se > 0.01


def test_compare_orders_by_the_key_and_shows_differences(workspace: Workspace) -> None:
    found = compared_rows(["s"], workspace, by="wrap.simie.lam", phase="retained", at=4)
    assert [line.label for line in found] == ["memit+simie lam=1", "memit+simie lam=10"]
    arms = compare_rows(compared_rows(["s"], workspace, by="arm", phase="retained", at=-1))
    assert arms[0]["ΔRel"] == "–"
    assert re.fullmatch(r"\+\.250 \[\+\.\d\d, \+\.\d\d\]", str(arms[1]["ΔRel"]))
    two = compared_rows(["s", "s"], workspace, by="wrap.simie.lam", phase="retained", at=4)
    assert [line.label for line in two][:2] == ["s: memit+simie lam=1"] * 2
    with pytest.raises(SpecError, match="no trial sweeps 'lamb'") as caught:
        compared_rows(["s"], workspace, by="lamb", phase="retained", at=4)
    assert "wrap.simie.lam" in caught.value.hint


@pytest.mark.parametrize("how", list(Format))
def test_show_prints_in_every_format(workspace: Workspace, how: Format) -> None:
    found = text(open_results("s", workspace), how=how, at=4)
    assert "memit" in found
    if how is Format.JSON:
        row = json.loads(found)[0]
        assert (row["arm"], row["edits"], row["seeds"], row["phase"], row["seconds"]) == (
            "memit",
            4,
            2,
            "retained",
            4.5,
        )
        assert row["rel_se"] > 0
        assert row["ppl_median"] is not None
    if how is Format.TABLE:
        assert "s: retained, mean [95% interval]; 6 of 6 trials done" in found


def test_show_of_nothing(tmp_path: Path) -> None:
    ResultStore(tmp_path / "results/e").write_plan({"sweep": "e", "trials": []}, "")
    found = open_results("e", Workspace(root=tmp_path))
    assert text(found, how=Format.TABLE) == "e: nothing was measured yet"
    assert found.probes().num_rows == found.timing().num_rows == found.stats().num_rows == 0


def test_render_escapes_for_its_reader() -> None:
    rows = [{"arm": "a_1|b", "Rel": Estimate(0.5, math.nan, 1), "x": math.inf, "y": None}]
    assert "a\\_1" in render(rows, Format.LATEX)
    assert "a_1\\|b | .500 [–] | inf | – |" in render(rows, Format.MARKDOWN)
    assert json.loads(render(rows, Format.JSON)) == [
        {
            "arm": "a_1|b",
            "rel": 0.5,
            "rel_se": None,
            "rel_low": None,
            "rel_high": None,
            "rel_n": 1,
            "x": None,
            "y": None,
        }
    ]
    assert cell_text(12345.678) == "1.235e+04"


def test_trials_table_has_every_resolved_value(workspace: Workspace) -> None:
    table = open_results("s", workspace).trials()
    assert table.num_rows == 6
    rows = table.to_pylist()
    assert {r["point.wrap.simie.lam"] for r in rows} == {None, 1.0, 10.0}
    assert {r["spec.protocol.rounds"] for r in rows} == {"[0, 2, 4]"}
    assert len({r["group"] for r in rows}) == 3
    assert table.schema.metadata[b"raysweep.schema"] == b"trials/2"
    assert flatten({"a": [{"b": 1}]}, "") == {"a.0.b": 1}


def test_a_plan_limits_what_is_shown(workspace: Workspace) -> None:
    store = ResultStore(workspace.results("s"))
    store.write_plan({"sweep": "s", "trials": [{"key": make_trial(0).key, "arm": "memit", "point": {}}]}, "")
    assert open_results("s", workspace).trials().num_rows == 1
    assert open_results("s", workspace, everything=True).trials().num_rows == 6


def test_unknown_sweep_names_the_nearest(workspace: Workspace) -> None:
    with pytest.raises(StoreError, match="no results of 'ss'") as caught:
        open_results("ss", workspace)
    assert caught.value.hint.startswith("did you mean: s?")


def test_plot_is_written(workspace: Workspace, tmp_path: Path) -> None:
    from raysweep.reports.plot import draw

    draw(open_results("s", workspace), tmp_path / "deep" / "p.png")
    assert (tmp_path / "deep" / "p.png").read_bytes().startswith(b"\x89PNG")
