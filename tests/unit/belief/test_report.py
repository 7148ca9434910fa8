"""The report of a belief sweep: the ideal agent's own is without error, and every table and figure comes from the Arrow tables."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.belief.agent.agent import Agent
from raysweep.belief.corpus.evidence import Evidence, Triple
from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import scoring_of_points
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.jsonl import from_line, to_line
from raysweep.belief.points.types import OBJECT_ROLES, WATCHED_FACTS, EvalPoint
from raysweep.belief.report import tables as belief_tables
from raysweep.cli.belief_report import tables_of
from raysweep.cli.main import main
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.schema import TrialSpec
from raysweep.reports import belief_plots
from raysweep.reports.belief_rows import read_arms, read_stages, read_training
from raysweep.reports.render import Format, render
from raysweep.results.runner import run_trial
from raysweep.results.schema import POINTS, upgrade
from raysweep.results.store import PLAN, ResultStore
from raysweep.results.tables import Sweep
from raysweep.studies.edit_group import ordered_records
from raysweep.summarize import Estimate
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.unit.belief.test_corpus import HEADLINE, corpus, generative, people
from tests.unit.belief.test_edit_scores import replies
from tests.unit.belief.test_points import agent_of, points
from tests.unit.studies.test_belief import SETTING, refuse, tiny_workspace, trial

PUBLISHED = {
    "pretrained_model_performance", "edit_types", "prob_delta", "all_data_results", "table_counterfactual_editing_results",
    "edit_generalization", "table_all_editing_downstream_implications_results", "main_table",
}  # fmt: skip


def agents_arm(say: Callable[[EvalPoint, Sequence[str], str], dict[str, Reply]]) -> belief_tables.Arm:
    """What the agent itself says of forty points before and after each update, as a model would; *say* asks it."""
    written = corpus(generative(people()), **HEADLINE)
    asked: list[EvalPoint] = points(written, size=40)
    objects = written.model.graph.objects
    pre, post = ([say(p, objects, state) for p in asked] for state in ("pre", "target"))
    return belief_tables.Arm("agent", asked, pre, post)


@pytest.fixture(scope="module")
def agent() -> belief_tables.Arm:
    return agents_arm(replies)


def test_the_agent_reports_no_error(agent: belief_tables.Arm) -> None:
    tables = belief_tables.belief_tables([agent])
    post = [row for row in tables["main_table"] if row["time"] == "post-edit"]
    assert [row["group"] for row in post] == ["updating", "implications"]
    for row in post:
        accuracies = [cell for name, cell in row.items() if name.startswith("acc")]
        assert [(a.mean, a.n, a.high) for a in accuracies] == [(1.0, row["n"], 1.0)] * 4
        assert all(a.low < 1.0 for a in accuracies), "all right is not certainly right"
        assert row["coh: edited"].mean == pytest.approx(0)
    (fate,) = tables["downstream_answers"]
    assert (fate["new"].mean, fate["old"].mean, fate["leak"].mean) == (1, 0, 0)
    assert not tables["fixing_updates_results"]
    rows = tables["pretrained_model_by_group"]
    assert all(row.keys() == rows[0].keys() for row in rows)
    chosen = belief_tables.figure_points(agent.points)
    assert 0 < len(chosen) <= 3
    assert all(agent.points[i].flags.downstream_answer_changes for i in chosen)
    assert belief_tables.probability_deltas(agent.points)[chosen[0]] > 0.2
    counts = belief_tables.histogram([0.0, 0.49, 1.0], bins=2)
    assert [row["n"] for row in counts] == [2, 1]


def answer(agent: Agent, point: EvalPoint, name: str, edited: bool) -> float:
    """Work out what *agent* believes of one question, p("true") of a sentence, from its distributions alone."""

    def p(fact: Triple) -> float:
        own = edited and fact[:2] == point.fact[:2]
        belief = agent.pair(*fact[:2]) if own else agent.marginal(*fact[:2])
        return float(belief.dense()[fact.object])

    assert point.watched is not None
    assert point.request is not None
    if name.startswith("editing_"):
        watched, role = next((w, r) for w in WATCHED_FACTS for r in OBJECT_ROLES if name == f"editing_{w}_{r}")
        watch = point.watched[watched]
        return p(watch.fact._replace(object=watch.objects[role]))
    about_request = "requested" in name
    one = point.fact._replace(object=point.request.object) if about_request else point.claims["A"].fact
    two = point.claims["B"].fact
    both = p(one) * p(two) if one[:2] != two[:2] else p(one) * (one == two)
    if "_TF_" in name:
        return p(one)
    if name.startswith("not_"):
        return 1 - p(one)
    return both if "_and_" in name else p(one) + p(two) - both


def test_each_panel_shows_the_agents_own_answers() -> None:
    """The levels are read off the figure and held against the agent given the same update, panel by panel, point by point."""
    written = corpus(generative(people()), **HEADLINE)
    before = agent_of(written)
    some = points(written, size=40)
    objects = written.model.graph.objects
    for point in some[:5] + [some[i] for i in belief_tables.figure_points(some)]:
        assert point.request is not None
        update = point.request.updates["target"]
        learnt = Evidence(point.fact.subject, point.fact.relation, point.request.object, update.amount, kind="mass")
        after = before.given(learnt)
        replies_ = {0: replies(point, objects, "pre"), 10: replies(point, objects, "target")}
        figure = belief_plots.panel_figure(point, replies_)
        drawn = {axis.get_label(): axis for axis in figure.axes}
        assert len(drawn) == 12
        for name, axis in drawn.items():
            lines = {line.get_label(): line.get_ydata() for line in axis.lines}
            label = point.questions[name].target in ("true", "false")
            flip = label and point.questions[name].target == "false"
            asked = [r[name].probability for r in replies_.values()]
            assert list(lines.pop("model")) == [1 - v if flip else v for v in asked]
            assert set(lines) == {"agent before the edit", "agent after the edit"}
            was, now = (list(lines[f"agent {when} the edit"]) for when in ("before", "after"))
            assert was == pytest.approx([answer(before, point, name, False)] * 2, abs=1e-9), name
            assert now == pytest.approx([answer(after, point, name, True)] * 2, abs=1e-9), name
        if not point.request.reinforces:
            (level,) = set(drawn["requested_TF_case"].lines[2].get_ydata())
            assert level >= 0.95, "the agent believes what was requested, whatever the claim A was"
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [
            "model", "agent before the edit", "agent after the edit",
        ]  # fmt: skip
        colors = [line.get_color() for line in drawn["requested_TF_case"].lines]
        assert [line.get_color() for line in legend.get_lines()] == colors
        belief_plots.close_figure(figure)


def test_a_point_of_an_older_file_has_no_levels_it_does_not_know() -> None:
    point = points(corpus(generative(people()), **HEADLINE), size=4)[1]
    older = from_line(to_line(replace(point, claims={})).replace('"claims": {}, ', "").replace("points/2", "points/1"))
    assert not older.claims
    asked = {name: Reply(0.5, "", False, False) for name in older.questions}
    figure = belief_plots.panel_figure(older, {0: asked, 5: asked})
    assert [len(axis.lines) for axis in figure.axes] == [3] * 4 + [1] * 4
    belief_plots.close_figure(figure)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with results of one arm apart and one lifelong, of four points."""
    made = tiny_workspace(tmp_path_factory.mktemp("report"))
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


def test_an_arm_of_answers_that_are_not_finite_has_undefined_means(agent: belief_tables.Arm) -> None:
    """One of its models answered NaN: what it came to after the edits is undefined, with its state; before them it is known."""
    after = [*agent.after]
    after[0] = {name: replace(reply, probability=math.nan) for name, reply in after[0].items()}
    wild = replace(agent, name="wild", after=after, state="collapsed at 1")
    tables = belief_tables.belief_tables([agent, wild])
    for table in ("main_table", "all_data_results", "downstream_answers"):
        for row in tables[table]:
            means = [cell.mean for cell in row.values() if isinstance(cell, Estimate)]
            known = row["arm"] == "agent" or row.get("time") == "pre-edit"
            assert means
            assert all(math.isnan(mean) != known for mean in means), (table, row)
            assert row["state"] == ("done" if row["arm"] == "agent" else wild.state)
    assert "undefined" in render(tables["main_table"], Format.MARKDOWN)
    assert all("state" not in row for row in belief_tables.belief_tables([agent])["main_table"]), "nothing to say"


def test_arms_are_named_by_the_plan_and_unfinished_ones_say_so(workspace: Workspace, tmp_path: Path) -> None:
    """Configurations of one arm are not pooled, equal arms are both there, and a trial that did not end is marked."""
    store = ResultStore(workspace.results("tiny"))
    before = json.loads(store.folder.read(PLAN))
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


def differ(one: belief_tables.Cell, two: belief_tables.Cell) -> bool:
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
        belief_tables.lifelong_rows([replace(stage, scoring=scoring_of_points(stage.points, p, 4))])[0]
        for p in (ParitySpec(), parity)
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
    planned = [r.id for r in ordered_records(own, make_deps(workspace))]
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
