"""The report of a belief sweep: the ideal agent's own is without error, and every table and figure comes from the Arrow tables."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.belief import report
from raysweep.belief.asking import scorings
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points import EvalPoint
from raysweep.cli.belief_report import tables_of
from raysweep.cli.main import main
from raysweep.config.plan import PlannedTrial
from raysweep.config.schema import TrialSpec
from raysweep.results.beliefs import read_arms, read_stages, read_training
from raysweep.results.runner import run_trial
from raysweep.results.schema import POINTS, upgrade
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.studies.lifelong import ordered
from raysweep.summarize import Estimate
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people
from tests.unit.belief.test_points import points
from tests.unit.belief.test_scores import replies
from tests.unit.studies.test_belief import SETTING, refuse, trial

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


SWITCHES = {"mult_label_prob": ("and",), "labels_of_first_point": ("TF", "and", "or")}


@pytest.fixture(scope="module")
def switched(workspace: Workspace) -> dict[str, Sweep]:
    """The sweep of one arm, as corrected and with each of the published ways of scoring; all of one model, trained once."""
    found = {}
    for name in ("", *SWITCHES):
        parity = f"parity: {{{name}: true}}\n" if name else ""
        (workspace.root / "hparams/belief/tiny.yaml").write_text(SETTING + parity)
        job = PlannedTrial("lora", {}, trial(workspace, "lora", rounds=(0, 4)))
        job = replace(job, trial=_in_one_batch(job.trial))
        store = ResultStore(workspace.results(name or "plain"))
        assert [r.error for r in run_trial(job, make_deps(workspace), store)][-1] == ""
        store.write_plan({"sweep": name or "plain", "trials": [{"key": job.key}]}, "")
        found[name] = Sweep(store)
    (workspace.root / "hparams/belief/tiny.yaml").write_text(SETTING)
    return found


def differ(one: report.Cell, two: report.Cell) -> bool:
    """Say whether two cells differ by more than rounding."""
    if isinstance(one, Estimate) and isinstance(two, Estimate):
        return one.mean != pytest.approx(two.mean, abs=1e-9)
    return one != two


def _in_one_batch(spec: TrialSpec) -> TrialSpec:
    return spec.model_copy(update={"protocol": spec.protocol.model_copy(update={"eval_batch": 8})})


@pytest.mark.parametrize("name", SWITCHES)
def test_a_way_of_scoring_reaches_every_table_and_trains_no_model(
    name: str, switched: dict[str, Sweep], workspace: Workspace
) -> None:
    """The kind: a switch changes the report as it says, and nothing else; what it does not reach stays as it was."""
    assert len(list((workspace.artifacts / "belief_model").iterdir())) == 1
    plain, published = (tables_of(switched[n]) for n in ("", name))
    columns = SWITCHES[name]
    for table in ("main_table", "all_data_results", "table_all_editing_downstream_implications_results"):
        moved = set[str]()
        for a, b in zip(plain[table], published[table], strict=True):
            moved |= {key for key in a if differ(a[key], b[key])}
        assert moved, table
        assert moved <= set(columns), table
    one, two = (t["pretrained_model_performance"][0] for t in (plain, published))
    assert {k for k in one if differ(one[k], two[k])} <= {"TF_coherence", "multiplication", "disjunction"}
    assert one["multiplication"] != two["multiplication"]
    assert plain["pretrained_model_answers"] == published["pretrained_model_answers"]
    (first,), (second,) = (read_training(switched[n]).values() for n in ("", name))
    moved = {key for a, b in zip(first, second, strict=True) for key in a if a[key] != b[key]}
    assert moved == ({"multiplication_loss"} if name == "mult_label_prob" else set())


def test_lifelong_tables_are_scored_as_the_setting_says(workspace: Workspace) -> None:
    (stage, *_) = [s for s in read_stages(Sweep(ResultStore(workspace.results("tiny")))) if s.step == 4]
    parity = ParitySpec(mult_label_prob=True, labels_of_first_point=True)
    ours, theirs = (
        report.lifelong_rows([replace(stage, scoring=scorings(stage.points, p, 4))])[0] for p in (ParitySpec(), parity)
    )
    assert {key for key in ours if differ(ours[key], theirs[key])} == {"TF", "and", "or"}


def test_the_published_files_lie_in_a_folder_per_run(
    switched: dict[str, Sweep], workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--root", str(workspace.root), "belief", "report", "plain", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "files as published" in capsys.readouterr().out
    files = {str(p.relative_to(tmp_path / "published")) for p in (tmp_path / "published").rglob("*.csv")}
    run = "tiny_clm_60-facts_15-rels_tb-6.0e+03_bs-16_mgtp-0.8_s-1_b-2_c-5_TF-a-o-n_ho-1_he-0_sd0"
    assert files == {
        f"lora/outputs/editing_stats_{run}.csv", f"lora/outputs/editing_summary_{run}.csv",
        f"lora/outputs/eval_stats_{run}.csv", f"lora/outputs/eval_summary_{run}.csv", f"lora/training_logs/log_{run}.csv",
    }  # fmt: skip
    with (tmp_path / "published/lora/outputs" / f"editing_stats_{run}.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(r["step"], r["last_step"]) for r in rows[:3]] == [("0", ""), ("2", "False"), ("4", "True")]
    assert len(rows) == 4 * 3
    with (tmp_path / "main_table.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert {"condition", "same_s_diff_r_acc", "same_s_same_r_coherence", "TF_coherence", "TF_coherence_se"} <= table[
        0
    ].keys()
    with (tmp_path / "training.csv").open() as lines:
        assert {"n_tokens", "LR", "A_TF_case_acc", "TF_coherence_loss"} <= next(csv.DictReader(lines)).keys()
    assert main([*argv[:-1], str(tmp_path / "other"), "--no-published"]) == 0
    assert not (tmp_path / "other/published").exists()


def test_points_that_took_anothers_place_are_counted(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    own = trial(workspace, "ft", rounds=(0, 4))
    job = PlannedTrial("ft", {}, own)
    planned = [r.id for r in ordered(own, make_deps(workspace))]
    refuse(monkeypatch, {planned[1]})
    store = ResultStore(workspace.results("refused"))
    assert [r.error for r in run_trial(job, make_deps(workspace), store)][-1] == ""
    store.write_plan({"sweep": "refused", "trials": [{"key": job.key}]}, "")
    (row,) = tables_of(Sweep(store))["points"]
    assert (row["arm"], row["points"], row["passed over"], row["replaced"]) == ("ft", 4, 0, 1)
    assert f"{planned[1]}: not this one (1)" in str(row["why"])
    (arm,) = read_arms(Sweep(store))
    assert len(arm.points) == 4


def test_points_without_their_setting_are_scored_as_corrected(switched: dict[str, Sweep]) -> None:
    """Results of points/1 are read: they do not say what they come from."""
    table = switched["labels_of_first_point"].points()
    old = table.drop_columns(["replaces", "refusal", "testbed"])
    again = upgrade(old, POINTS, 1)
    assert again.schema == POINTS.arrow
    assert again["testbed"].null_count == len(again)
