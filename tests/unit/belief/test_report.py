"""The report of a belief sweep: the ideal agent's own is without error, and every table and figure comes from the Arrow tables."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.belief import report
from raysweep.belief.points import EvalPoint
from raysweep.cli.main import main
from raysweep.cli.render import Format, render
from raysweep.config.plan import PlannedTrial
from raysweep.results.beliefs import read_arms, read_stages, read_training
from raysweep.results.runner import run_trial
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.summarize import Estimate
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people
from tests.unit.belief.test_points import points
from tests.unit.belief.test_scores import replies
from tests.unit.studies.test_belief import SETTING, trial

PUBLISHED = {
    "pretrained_model_performance", "edit_types", "prob_delta", "all_data_results", "table_counterfactual_editing_results",
    "edit_generalization", "table_all_editing_downstream_implications_results", "main_table",
}  # fmt: skip


@pytest.fixture(scope="module")
def agent() -> report.Arm:
    written = corpus(generative(people()), **HEADLINE)
    asked: list[EvalPoint] = points(written, size=40)
    objects = written.model.graph.objects
    pre, post = ([replies(p, objects, state) for p in asked] for state in ("pre", "target"))
    return report.Arm("agent", asked, pre, post)


def test_the_agent_reports_no_error(agent: report.Arm) -> None:
    tables = report.tables([agent])
    post = [row for row in tables["main_table"] if row["time"] == "post-edit"]
    assert [row["group"] for row in post] == ["updating", "implications"]
    for row in post:
        accuracies = [cell for name, cell in row.items() if name.startswith("acc")]
        assert accuracies == [Estimate(1.0, 0.0, row["n"])] * 4
        assert row["coh: edited"].mean == pytest.approx(0)
    (fate,) = tables["downstream_answers"]
    assert (fate["new"].mean, fate["old"].mean, fate["leak"].mean) == (1, 0, 0)
    assert not tables["fixing_updates_results"]
    rows = tables["pretrained_model_by_group"]
    assert all(row.keys() == rows[0].keys() for row in rows)
    chosen = report.examples(agent.points)
    assert 0 < len(chosen) <= 3
    assert all(agent.points[i].flags.downstream_answer_changes for i in chosen)
    assert report.probability_deltas(agent.points)[chosen[0]] > 0.2
    counts = report.histogram([0.0, 0.49, 1.0], bins=2)
    assert [row["n"] for row in counts] == [2, 1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with results of one arm apart and one lifelong, of four points."""
    root = tmp_path_factory.mktemp("report")
    (root / "hparams/belief").mkdir(parents=True)
    (root / "hparams/belief/tiny.yaml").write_text(SETTING)
    made = Workspace(root)
    store = ResultStore(made.results("tiny"))
    jobs = [
        PlannedTrial("lora", {}, trial(made, "lora", rounds=(0, 4))),
        PlannedTrial("ft", {}, trial(made, "ft", rounds=(0, 2, 4), study="belief_lifelong")),
    ]
    for job in jobs:
        assert [r.error for r in run_trial(job, make_deps(made), store)][-1] == ""
    store.write_plan({"sweep": "tiny", "trials": [{"key": job.key} for job in jobs]}, "")
    return made


def test_everything_comes_from_the_tables(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(ResultStore(workspace.results("tiny")))
    (arm,) = read_arms(sweep)
    assert (arm.name, len(arm.points)) == ("lora", 4)
    stages = read_stages(sweep)
    assert [(s.arm, s.step, len(s.points)) for s in stages] == [("ft", 0, 4), ("ft", 2, 2), ("ft", 4, 4)]
    assert all(set(e) >= {"new_fact_case"} for s in stages for e in s.expected)
    (log,) = read_training(sweep).values()
    assert [row["n_tokens"] for row in log] == sorted(row["n_tokens"] for row in log)
    assert main(["--root", str(workspace.root), "belief", "report", "tiny", "--out", str(tmp_path)]) == 0
    assert "main_table" in capsys.readouterr().out
    tables = {p.stem for p in tmp_path.glob("*.csv")}
    assert tables >= PUBLISHED | {"lifelong", "training"}
    assert {p.stem for p in tmp_path.glob("*.tex")} == tables
    figures = {p.stem for p in tmp_path.glob("*.png")}
    assert figures >= {"LM_pretraining_loss", "LM_pretraining_acc", "prob_delta", "lifelong"}
    with (tmp_path / "lifelong.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(r["edits"], r["n"]) for r in rows] == [("0", "4"), ("2", "2"), ("4", "4")]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == len(figures)
    assert "## main_table" in (tmp_path / "report.md").read_text()


def test_a_sweep_without_points_is_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    ResultStore(workspace.results("none")).write_plan({"sweep": "none", "trials": []}, "")
    assert main(["--root", str(workspace.root), "belief", "report", "none"]) != 0
    assert "no answers about evaluation points" in capsys.readouterr().err


def test_an_arm_of_answers_that_are_not_finite_has_undefined_means(agent: report.Arm) -> None:
    """One of its models answered NaN: what it came to after the edits is undefined, with its state; before them it is known."""
    after = [*agent.after]
    after[0] = {name: replace(reply, probability=math.nan) for name, reply in after[0].items()}
    wild = replace(agent, name="wild", after=after, state="done (non-finite from 1)")
    tables = report.tables([agent, wild])
    for table in ("main_table", "all_data_results", "downstream_answers"):
        for row in tables[table]:
            means = [cell.mean for cell in row.values() if isinstance(cell, Estimate)]
            known = row["arm"] == "agent" or row.get("time") == "pre-edit"
            assert means
            assert all(math.isnan(mean) != known for mean in means), (table, row)
            assert row["state"] == ("done" if row["arm"] == "agent" else wild.state)
    assert "undefined" in render(tables["main_table"], Format.MARKDOWN)
    assert all("state" not in row for row in report.tables([agent])["main_table"]), "nothing to say"


def test_arms_are_named_by_the_plan_and_unfinished_ones_say_so(workspace: Workspace, tmp_path: Path) -> None:
    """Configurations of one arm are not pooled, equal arms are both there, and a trial that did not end is marked."""
    store = ResultStore(workspace.results("tiny"))
    before = store.plan()
    assert before is not None
    lora = next(row["trial_key"] for row in Sweep(store).trials().to_pylist() if row["study"] == "belief")
    entries = [{"key": lora, "arm": arm, "point": {"editor.lr": lr}} for arm, lr in (("a", 1), ("a", 2), ("b", 1))]
    try:
        store.write_plan({**before, "trials": entries}, "")
        store.reopen(lora)
        arms = read_arms(Sweep(store))
    finally:
        store.finish(lora, step=4)
        store.write_plan(before, "")
    assert [(arm.name, len(arm.points), arm.state) for arm in arms] == [
        ("a lr=1", 4, "interrupted at 0"), ("a lr=2", 4, "interrupted at 0"), ("b", 4, "interrupted at 0"),
    ]  # fmt: skip
