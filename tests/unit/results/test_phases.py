"""What is shown by default follows the study: where each edit stands alone, every edit counts, not the last one only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from results_helpers import begin, make_round, make_trial

from raysweep.cli.analyze import _metric
from raysweep.cli.main import main
from raysweep.config.schema import TrialSpec
from raysweep.errors import SpecError
from raysweep.reports.compare import compared_rows
from raysweep.reports.plot import draw
from raysweep.reports.render import Format
from raysweep.reports.sweep_table import text
from raysweep.reports.views import summary_rows, trial_views
from raysweep.results.runner import replay
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.workspace import Workspace


@pytest.fixture
def trial() -> TrialSpec:
    return TrialSpec.read_back({**make_trial().model_dump(), "study": "belief"})


@pytest.fixture
def workspace(tmp_path: Path, trial: TrialSpec) -> Workspace:
    """Two points a round, each measured alone: its step is its own position."""
    store = ResultStore(tmp_path / "results" / "s")
    begin(store, trial)
    for step in (0, 2, 4):
        rows = [
            r for s in ((0,) if step == 0 else (step - 1, step)) for r in make_round(trial, step).rows if r.step == s
        ]
        alone = [replace(r, superseded_step=None) for r in rows if r.step in (0, r.edit_step)]
        store.write_round(trial.key, replace(make_round(trial, step), rows=alone))
    store.finish(trial.key, step=4)
    return Workspace(root=tmp_path)


def test_a_study_of_edits_alone_shows_all_of_them(workspace: Workspace, tmp_path: Path) -> None:
    sweep = Sweep(ResultStore(workspace.results("s")))
    found = {line.step: line for line in summary_rows(trial_views(sweep))}
    assert {step: (line.phase, line.cells["rel"].n) for step, line in found.items()} == {
        0: ("pristine", 2), 2: ("immediate", 2), 4: ("immediate", 4),
    }  # fmt: skip
    assert "s: immediate, mean" in text(sweep, how=Format.TABLE)
    (line,) = compared_rows(["s"], workspace, by="arm", phase=None, at=-1)
    assert (line.phase, line.step, line.n) == ("immediate", 4, 4)
    draw(sweep, tmp_path / "p.png")
    assert _metric(sweep, trial_views(sweep)) == "immediate/rel"


def test_what_it_does_not_have_is_refused_by_name(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show", "s", "--phase", "retained"], ["compare", "s", "--phase", "retained"]):
        assert main(["--root", str(workspace.root), *command]) == 2
        assert "study 'belief' edits each record from the pristine model" in capsys.readouterr().err
    assert main(["--root", str(workspace.root), "compare", "s", "--against", "simie-table1"]) == 2
    assert "study 'belief' of 's' retains nothing" in capsys.readouterr().err


def test_what_ray_gets_is_of_its_phase_alone(workspace: Workspace, trial: TrialSpec) -> None:
    """So that ``analyze``, which compares it with the tables, finds no value that only one side has."""
    reports = list(replay(trial, ResultStore(workspace.results("s"))))
    assert [{name.partition("/")[0] for name in r.summary} for r in reports] == [
        {"pristine"},
        {"immediate"},
        {"immediate"},
    ]


def test_lines_of_different_phases_are_not_compared(workspace: Workspace) -> None:
    store = ResultStore(workspace.results("other"))
    one = make_trial()
    begin(store, one)
    for step in (0, 2, 4):
        store.write_round(one.key, make_round(one, step))
    store.finish(one.key, step=4)
    with pytest.raises(SpecError, match="different phases"):
        compared_rows(["s", "other"], workspace, by="arm", phase=None, at=-1)
    found = compared_rows(["s", "other"], workspace, by="arm", phase="immediate", at=-1)
    assert {line.phase for line in found} == {"immediate"}
