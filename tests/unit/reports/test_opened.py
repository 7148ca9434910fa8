"""A sweep opened in Python says what the commands print, and what its files hold."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import raysweep
from raysweep.cli.main import main
from raysweep.errors import ProblemsError, SpecError, StoreError
from raysweep.reports import opened
from raysweep.reports.opened import OpenedSweep
from raysweep.workspace import Workspace

SPACE: dict[str, Any] = {
    "sweep": "two",
    "base": {"data": {"name": "world", "size": 2}, "protocol": {"rounds": [0, 2]}},
    "arms": {"nothing": {"editor": "null"}, "all": {"editor": "oracle"}, "again": {"editor": "oracle"}},
    "space": {"seed": {"grid": [0, 1]}},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three arms, two of them the same trials, and two seeds."""
    found = Workspace(tmp_path_factory.mktemp("opened"))
    outcome = raysweep.run_sweep(SPACE, found, backend="inline")
    assert outcome.exit_code == 0
    assert len(outcome.done) == 4
    return found


@pytest.fixture
def sweep(workspace: Workspace) -> OpenedSweep:
    return raysweep.open_sweep("two", workspace)


def printed(workspace: Workspace, capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    assert main(["--root", str(workspace.root), *argv, "--format", "json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *rows* of a data frame with None for what is missing."""
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def filled_in(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *rows* of JSON, in which a reference has no interval of its difference, with None for what is missing."""
    names = {name for row in rows for name in row}
    return [{name: row.get(name) for name in names} for row in rows]


@pytest.mark.parametrize("how", [{}, {"at": -1}, {"by": "trial", "at": 2}, {"phase": "immediate"}], ids=str)
def test_the_table_is_that_of_show(
    how: dict[str, Any], sweep: OpenedSweep, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{key}={value}" for key, value in how.items()]
    shown = printed(workspace, capsys, "show", "two", *flags)
    assert plain(sweep.table(**how).to_dict("records")) == shown
    assert plain(sweep.table(**how, arrow=True).to_pylist()) == shown


@pytest.mark.parametrize("how", [{}, {"to": "all"}], ids=str)
def test_the_comparison_is_that_of_compare(
    how: dict[str, Any], sweep: OpenedSweep, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{key}={value}" for key, value in how.items()]
    shown = printed(workspace, capsys, "compare", "two", *flags)
    found = sweep.compare(**how)
    assert plain(found.to_dict("records")) == filled_in(shown)
    at = list(found.columns).index("delta_rel")
    assert list(found.columns)[at : at + 5] == [f"delta_rel{end}" for end in ("", "_se", "_low", "_high", "_n")]
    beside = printed(workspace, capsys, "compare", "two", "two")
    assert plain(sweep.compare(sweep, arrow=True).to_pylist()) == filled_in(beside)


def test_rows_are_those_of_the_files_under_each_name(sweep: OpenedSweep) -> None:
    reader = sweep.rows()
    assert isinstance(reader, pa.RecordBatchReader)
    rows, probes = reader.read_all(), sweep.probes()
    once = rows.filter(pc.not_equal(rows["arm"], "again"))
    assert once.select(probes.column_names).sort_by("trial_key").equals(probes.sort_by("trial_key"))
    again = rows.filter(pc.equal(rows["arm"], "again"))
    assert again.drop_columns("arm").equals(rows.filter(pc.equal(rows["arm"], "all")).drop_columns("arm"))
    assert sorted(set(zip(rows["seed"].to_pylist(), rows["point"].to_pylist(), strict=True))) == [
        (0, '{"seed": 0}'),
        (1, '{"seed": 1}'),
    ]
    assert sweep.rows("timing").read_all().num_rows == 1.5 * sweep.timing().num_rows


def test_without_pandas_tables_are_arrow(sweep: OpenedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "find_spec", lambda name: None)
    assert isinstance(sweep.table(), pa.Table)
    assert isinstance(sweep.compare(), pa.Table)


def test_reading_needs_neither_ray_nor_torch(sweep: OpenedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    imported, load = [], builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *args: imported.append(name) or load(name, *args))
    raysweep.open_sweep(sweep.store.folder.location).table()
    assert not {"ray", "torch", "transformers"} & {name.partition(".")[0] for name in imported}


def test_what_does_not_fit_is_said(sweep: OpenedSweep, workspace: Workspace) -> None:
    with pytest.raises(StoreError, match="no results of 'tow'"):
        raysweep.open_sweep("tow", workspace)
    with pytest.raises(SpecError, match="no table 'probs' of rows") as caught:
        sweep.rows("probs")
    assert "did you mean: probes" in caught.value.hint
    with pytest.raises(SpecError, match="own references"):
        sweep.compare(pair="wrap", to="all")
    with pytest.raises(SpecError, match="overrides are laid over a search space"):
        raysweep.run_sweep(raysweep.plan(SPACE, workspace), workspace, overrides=["data.size=1"])
    with pytest.raises(SpecError, match="overrides are laid over a file or a mapping"):
        raysweep.plan(raysweep.parse_search_space(SPACE), workspace, overrides=["data.size=1"])
    with pytest.raises(ProblemsError, match="did you mean: oracle"):
        raysweep.plan({**SPACE, "arms": {"a": {"editor": "oracel"}}}, workspace)


def test_a_space_by_name_by_file_and_as_data_is_one_plan(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(json.dumps(SPACE), encoding="utf-8")  # which is YAML
    plans = [
        raysweep.plan(space, workspace, overrides=["data.size=4"])
        for space in (SPACE, tmp_path / "two.yaml", str(tmp_path / "two.yaml"))
    ]
    keys = [[t.key for t in one.trials] for one in plans]
    assert keys[0] == keys[1] == keys[2]
    assert {t.trial.data.size for t in plans[0].trials} == {4}


def test_errors_name_the_trials_without_results(workspace: Workspace, tmp_path: Path) -> None:
    sweep = raysweep.open_sweep("two", workspace)
    assert sweep.errors() == []
    (tmp_path / "results").symlink_to(workspace.results_root)  # the same files, under another root
    key = sweep.keys[0]
    file = next((workspace.root / "results/two" / key).glob("probes-*.parquet"))
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1])
        damaged = raysweep.open_sweep("two", Workspace(tmp_path))
        (error,) = damaged.errors()
        assert (error.key, error.state) == (key, "DAMAGED")
        assert error.label.startswith("nothing")
        assert file.name in error.reason
        assert key not in damaged.rows().read_all()["trial_key"].to_pylist()
    finally:
        file.write_bytes(whole)
