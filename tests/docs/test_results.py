"""The examples of docs/results.md and docs/data_frames.md run on a small sweep, and say what `show` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from raysweep.config.plan import plan
from raysweep.config.sweep import parse_search_space
from raysweep.reports.views import summary_rows, trial_views
from raysweep.results.runner import run_trial
from raysweep.results.store import ResultStore
from raysweep.results.tables import open_results
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.docs.pages import ROOT, block, blocks

PAGE, FRAMES = ROOT / "docs/results.md", ROOT / "docs/data_frames.md"
Answer = dict[tuple[str, int], float]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two fake editors, two seeds, four records of the shipped world."""
    found = Workspace(tmp_path_factory.mktemp("work"))
    tree: dict[str, Any] = {
        "sweep": "demo",
        "base": {"data": {"name": "world", "size": 4}, "protocol": {"rounds": [0, 2, 4]}},
        "arms": {"floor": {"editor": "null"}, "ceiling": {"editor": "oracle"}},
        "space": {"seed": {"grid": [0, 1]}},
    }
    planned = plan(parse_search_space(tree, file="test"), found)
    store, deps = ResultStore(found.results("demo")), make_deps(found)
    listed = [{"key": t.key, "arm": t.arm, "point": dict(t.point)} for t in planned.trials]
    store.write_plan({"sweep": "demo", "search": {}, "trials": listed}, "")
    for trial in planned.trials:
        for report in run_trial(trial, deps, store):
            assert not report.error
    open_results("demo", found).write_trials()
    return found


def test_examples_run_and_agree_with_show(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    monkeypatch.delenv("RAYSWEEP_ROOT", raising=False)
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    space: dict[str, Any] = {}
    for one in blocks(PAGE):
        if one.language == "python":
            exec(compile(one.text, str(PAGE), "exec"), space)
    shown = summary_rows(trial_views(open_results("demo", workspace)), at=-1)
    rel = {row["arm"]: row["value_mean_mean_mean"] for row in space["rel"].to_pylist()}
    assert rel == pytest.approx({line.label: line.cells["rel"].mean for line in shown})
    assert rel["ceiling"] == 1.0 > rel["floor"]


def test_the_folder_looks_as_described(workspace: Workspace) -> None:
    """Every file of a finished trial is in the page's picture, by its name without the step."""
    (picture,) = (b.text for b in blocks(PAGE) if b.text.startswith("results/<sweep>/"))
    root = Path(workspace.results("demo"))
    assert not list(root.rglob("*.tmp"))
    for path in (p for p in root.rglob("*") if p.is_file()):
        stem = path.name.partition("-")[0]
        assert stem in picture, f"{path.name} is not in docs/results.md"


@pytest.fixture
def shown(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """What `raysweep show` has, by arm and step; the current folder is that of the results."""
    monkeypatch.chdir(workspace.root)
    lines = summary_rows(trial_views(open_results("demo", workspace)), phase="retained")
    return {(line.label, line.step): line.cells["rel"].mean for line in lines if line.step}


def ran(*titles: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    for title in titles:
        exec(compile(block(FRAMES, title), str(FRAMES), "exec"), space)
    return space


def test_pandas_and_its_plot(shown: Answer) -> None:
    mpl.use("Agg")
    table = ran("pandas", "plot", "hyper-parameters")["by_step"]
    assert {(arm, step): table.loc[step, arm] for step in table.index for arm in table.columns} == pytest.approx(shown)
    assert Path("rel.png").stat().st_size > 1000


def test_polars(shown: Answer) -> None:
    pytest.importorskip("polars", reason="the polars package is not installed")
    found = {(arm, step): rel for arm, step, rel in ran("polars")["by_step"].iter_rows()}
    assert found == pytest.approx(shown)


def test_duckdb(shown: Answer) -> None:
    pytest.importorskip("duckdb", reason="the duckdb package is not installed")
    assert {(arm, step): rel for arm, step, rel in ran("duckdb")["answer"].fetchall()} == pytest.approx(shown)


def test_there_is_something_to_compare(shown: Answer) -> None:
    assert {arm for arm, _ in shown} == {"floor", "ceiling"}
    assert len(set(shown.values())) > 1
    assert len({step for _, step in shown}) == 2
