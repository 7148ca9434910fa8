"""A plan as a table, as lines and as plain data, without a command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.models.layout import LAYOUTS, Layout
from raysweep.models.sources import catalogue
from raysweep.reports import plan_table
from raysweep.reports.plan_table import PlannedStatus
from raysweep.workspace import Workspace
from tests.unit.config.fakes import components, sweep

SWEEP = """
sweep: x
base: {data: {name: hundred, size: 20}, protocol: {rounds: [0, 20]}}
arms:
  plain: {editor: plain}
  twin: {editor: plain}
  ridge: {editor: plain, wrap: {name: ridge, lam: {path: [0.1, 1, 10]}}}
"""


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    return plan(sweep(SWEEP), Workspace(tmp_path), components())


def test_extent_counts_the_edits_of_a_group_once(planned: Plan) -> None:
    assert plan_table.extent(planned) == "4 trials in 2 edit groups, 40 edits in all"


def test_text_has_a_line_per_arm_and_point(planned: Plan) -> None:
    statuses = [PlannedStatus("done"), *[PlannedStatus("absent")] * 3]
    title, *lines = plan_table.text(planned, statuses).splitlines()
    assert title == "sweep x"
    rows = [line.split() for line in lines if line.strip().startswith(("plain", "twin", "ridge"))]
    assert [(row[0], row[-1]) for row in rows] == [
        ("plain", "done"), ("twin", "done"), ("ridge", "absent"), ("ridge", "absent"), ("ridge", "absent"),
    ]  # fmt: skip
    assert all(len(line) <= 40 for line in plan_table.text(planned, statuses, width=40).splitlines())


def test_notes_end_with_the_extent_and_name_what_is_damaged(planned: Plan, tmp_path: Path) -> None:
    statuses = [PlannedStatus("damaged", "trial.json is torn"), *[PlannedStatus("absent")] * 3]
    lines = plan_table.notes(planned, statuses, Workspace(tmp_path), components())
    assert lines[0] == "rounds [0, 20] (batch size 1): plain, twin, ridge"
    assert f"note: damaged: plain {planned.trials[0].key}: trial.json is torn" in lines
    assert lines[-1] == "4 trials in 2 edit groups, 40 edits in all; 0 done, 4 to run"


def test_json_names_edit_groups(planned: Plan, tmp_path: Path) -> None:
    statuses = [PlannedStatus("damaged", "torn"), *[PlannedStatus("absent")] * 3]
    fitting = {planned.trials[1].key: 16}
    trials = plan_table.as_json(planned, statuses, Workspace(tmp_path), fitting)["trials"]
    assert isinstance(trials, list)
    assert [trial.get("fit_together") for trial in trials] == [None, 16, None, None]
    assert [trial.get("reason") for trial in trials] == ["torn", None, None, None]
    assert [name["arm"] for name in trials[0]["names"]] == ["plain", "twin"]
    alone, *together = (trial["edit_group"] for trial in trials)
    assert (alone, len(set(together))) == ("", 1)


@pytest.mark.parametrize(
    ("kind", "shares", "said"),
    [
        ("llama", True, "questions that begin alike share their beginning"),
        ("gathered", False, "questions and edits go row by row"),
        ("odd", None, "whether questions share beginnings is not known"),
    ],
)
def test_a_plan_says_whether_questions_share_beginnings(
    kind: str, shares: bool | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = replace(LAYOUTS.get("llama"), model_type="gathered", shares_prefixes=False)
    table: dict[str, Layout] = {"llama": LAYOUTS.get("llama"), "gathered": made_up}
    monkeypatch.setattr(catalogue, "LAYOUTS", table)
    folder = tmp_path / "models" / "asked"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    found = plan(
        sweep(SWEEP.replace("base: {", "base: {model: {path: models/asked}, ")), Workspace(tmp_path), components()
    )
    statuses = [PlannedStatus("absent")] * len(found.trials)
    (line,) = (s for s in plan_table.notes(found, statuses, Workspace(tmp_path), components()) if "questions" in s)
    assert line.startswith(said)
    assert line.endswith("(models/asked)")
    assert plan_table.as_json(found, statuses, Workspace(tmp_path))["models"] == [
        {"model": "models/asked", "shares_prefixes": shares}
    ]


def test_without_a_folder_every_trial_is_absent(planned: Plan, tmp_path: Path) -> None:
    assert plan_table.trial_statuses(planned, Workspace(tmp_path)) == [PlannedStatus("absent")] * 4
