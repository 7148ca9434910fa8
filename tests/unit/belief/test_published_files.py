"""The published files: their names, every column that the published notebook reads, and its tables made from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import scoring_of_points
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import OBJECT_ROLES, WATCHED_FACTS, EvalPoint
from raysweep.belief.report import published_files
from raysweep.belief.report import tables as belief_tables
from raysweep.belief.setting import read_setting
from raysweep.belief.spec import BeliefSpec, PointSpec
from tests.unit.belief.test_edit_scores import replies
from tests.unit.belief.test_report import agents_arm

ROOT = Path(__file__).resolve().parents[3]
# What analysis.Rmd of the published repository reads of editing_stats, beside what is made of watched facts and objects below.
READ = {
    "id", "step", "last_step", "e1", "rel", "e2", "requested_obj", "o_given_s_r_output", "new_fact_reinforces",
    "has_relevant_property", "same_r_is_dependent_rel", "diff_r_is_dependent_rel", "all_cases_independent",
    "using_diff_s_with_both_r_s", "commutation", "multiplication", "disjunction", "TF_coherence", "negation",
    "same_s_same_r_obj", "same_s_diff_r_rel", "same_s_diff_r_obj", "diff_s_same_r_subj", "diff_s_same_r_rel",
    "diff_s_same_r_obj", "diff_s_diff_r_subj", "diff_s_diff_r_rel", "diff_s_diff_r_obj",
    "A_TF_case_prob", "B_TF_case_prob", "not_A_case_prob", "A_and_B_case_prob", "A_or_B_case_prob",
    *(f"{name}_new_modal_obj" for name in WATCHED_FACTS),
    *(f"editing_{name}_fact_{obj}_{what}" for name in WATCHED_FACTS for obj in OBJECT_ROLES for what in ("prob", "acc", "output")),
    *(
        f"editing_{name}_fact_{obj}_{state}_{target}"
        for name in WATCHED_FACTS for obj in OBJECT_ROLES
        for state in ("pre_update_probs", "post_update_probs_n=1000", "post_update_probs_p=95")
        for target in ("posterior_prob_marginalized", "posterior_prob_o_given_s_r")
    ),
    "editing_same_s_same_r_fact_orig_GT_obj_pre_update_probs_generative_prob",
}  # fmt: skip
LOGGED = {
    "n_tokens", "train_loss", "o_given_s_r_loss", "eval_loss", "eval_acc", "A_TF_case_acc", "not_A_case_acc",
    "A_and_B_case_acc", "A_or_B_case_acc",
}  # fmt: skip


@pytest.fixture(scope="module")
def arm() -> belief_tables.Arm:
    """What the agent itself says before and after each update; the answer about (s, r) is that to the new fact."""

    def say(point: EvalPoint, objects: Sequence[str], state: str) -> dict[str, Reply]:
        answers = replies(point, objects, state)
        return {**answers, "o_given_s_r": answers["new_fact_case"]}

    return agents_arm(say)


def rows_of(
    arm: belief_tables.Arm, parity: ParitySpec | None = None, target: float = 0.95
) -> list[published_files.Row]:
    steps = [{0: a, 40: b} for a, b in zip(arm.before, arm.after, strict=True)]
    return list(published_files.editing_rows(arm.points, steps, scoring_of_points(arm.points, parity, 8), target))


def test_runs_have_their_published_names() -> None:
    paper, small = (read_setting(ROOT / f"hparams/belief/belief-{name}.yaml") for name in ("100k", "10k"))
    assert published_files.experiment_name(paper, "x", 10) == (
        "mistral-83m_clm_100000-facts_10-rels_tb-1.0e+09_bs-128_mgtp-0.6_s-10_b-10_c-20_TF-a-o-n_ho-5_he-0_sd0"
    )
    assert published_files.experiment_name(small, "x", 10) == (
        "mistral-83m_clm_10000-facts_10-rels_tb-5.0e+07_bs-128_mgtp-0.6_s-1_b-10_c-5_ho-1_he-0_sd0"
    )
    assert published_files.experiment_name(BeliefSpec(), "owner/model", 15).startswith("model_clm_1000-facts_15-rels_")


def test_the_notebook_finds_every_column(arm: belief_tables.Arm) -> None:
    spec = BeliefSpec(points=PointSpec(size=40))
    steps = [{0: a, 40: b} for a, b in zip(arm.before, arm.after, strict=True)]
    log = [dict.fromkeys((*published_files.LOG_COLUMNS, "o_given_s_r_prob"), 1.0)]
    made = {
        f.path: f for f in published_files.run_files("run", spec, arm.points, steps, scoring_of_points(arm.points), log)
    }
    assert set(made) == {
        "outputs/editing_stats_run.csv", "outputs/editing_summary_run.csv", "outputs/eval_stats_run.csv",
        "outputs/eval_summary_run.csv", "training_logs/log_run.csv",
    }  # fmt: skip
    columns = made["outputs/editing_stats_run.csv"].columns
    assert set(columns) >= READ, READ - set(columns)
    assert len(set(columns)) == len(columns)
    assert columns[:3] == ["step", "id", "e1"]
    assert columns[-1] == "last_step"
    assert set(made["training_logs/log_run.csv"].columns) >= LOGGED
    assert made["outputs/editing_summary_run.csv"].columns == ("metric", "pre-edit", "post-edit")
    evaluated = list(made["outputs/eval_stats_run.csv"].rows)
    assert [row["id"] for row in evaluated] == sorted(p.id for p in arm.points)
    assert {"A_TF_case_acc", "A_TF_case_seen", "generative_prob_error", "negation"} <= evaluated[0].keys()
    for file in made.values():
        assert all(set(row) <= set(file.columns) for row in file.rows)


def test_targets_carry_the_probability_that_was_asked_for(arm: belief_tables.Arm) -> None:
    row = rows_of(arm, target=0.9)[0]
    assert "editing_same_s_same_r_fact_requested_obj_post_update_probs_p=90_posterior_prob_o_given_s_r" in row
    assert not any("p=95" in name for name in row)


def test_a_row_says_who_is_meant(arm: belief_tables.Arm) -> None:
    for point, row in zip(arm.points, rows_of(arm)[::2], strict=True):
        asked = point.questions
        for name in WATCHED_FACTS[1:]:
            prompt = asked[f"editing_{name}_orig_GT_obj"].prompt
            assert f"{row[f'{name}_subj']} {row[f'{name}_rel']}" == prompt
        assert (row["e1"], row["rel"], row["e2"]) == point.names
        assert row["same_s_diff_r_subj"] == row["e1"]
        assert row["diff_s_same_r_rel"] == row["rel"]


def published_main_table(rows: list[published_files.Row]) -> dict[tuple[str, str], dict[str, Any]]:
    """The notebook's main table, from the columns of the file and nothing else (§9.4, §9.6)."""
    post = "post_update_probs_p=95"
    first = {row["id"]: row for row in rows if row["step"] == 0}

    def target(row: published_files.Row, case: str, state: str) -> float:
        marginal = row[f"{case}_{state}_posterior_prob_marginalized"]
        pair: float = row[f"{case}_{state}_posterior_prob_o_given_s_r"]
        return pair if marginal is None else marginal

    def values(row: published_files.Row, edited: bool) -> dict[str, float]:
        found = {"req_prob": row["editing_same_s_same_r_fact_requested_obj_prob"]}
        for name in WATCHED_FACTS:
            same = name == "same_s_same_r"
            case = f"editing_{name}_fact_{('requested_obj' if same else 'new_modal_obj') if edited else 'orig_GT_obj'}"
            wanted = target(row, case, post if edited else "pre_update_probs")
            if same and edited:
                wanted = row[f"{case}_{post}_posterior_prob_o_given_s_r"]
            found[f"{name}_acc"] = float(row[f"{case}_acc"])
            found[f"{name}_coherence"] = abs(row[f"{case}_prob"] - wanted)
        return found | {name: row[name] for name in ("TF_coherence", "negation", "multiplication", "disjunction")}

    def belongs(row: published_files.Row, group: str) -> bool:
        start = first[row["id"]]
        new = row["requested_obj"].lower() not in start["o_given_s_r_output"].lower()
        if group == "updating":
            return new
        return bool(row["same_s_diff_r_new_modal_obj"] != row["same_s_diff_r_obj"])

    table = {}
    for group in ("updating", "implications"):
        for condition, edited in (("pre-edit", False), ("post-edit", True)):
            own = [values(r, edited) for r in rows if belongs(r, group) and (bool(r["last_step"]) == edited)]
            means = {name: sum(v[name] for v in own) / len(own) for name in own[0]}
            table[group, condition] = {"n": len(own), **means}
    return table


@pytest.mark.parametrize("parity", [{}, {"mult_label_prob": True}, {"labels_of_first_point": True}])
def test_the_published_main_table_comes_from_the_file_alone(arm: belief_tables.Arm, parity: dict[str, bool]) -> None:
    switches = ParitySpec(**parity)
    theirs = published_main_table(rows_of(arm, switches))
    scored = belief_tables.Arm(
        "agent", arm.points, arm.before, arm.after, scoring=scoring_of_points(arm.points, switches, 8)
    )
    ours = belief_tables.published_columns("main_table", belief_tables.belief_tables([scored])["main_table"])
    assert [row["group"] for row in ours if row["condition"] == "delta"] == ["updating", "implications"]
    for row in (row for row in ours if row["condition"] != "delta"):
        wanted = theirs[row["group"], row["condition"]]
        assert row["n"] == wanted.pop("n")
        for name, value in wanted.items():
            assert row[name].mean == pytest.approx(value, abs=1e-12), name


def test_probabilities_are_turned_by_the_labels_they_are_scored_with(arm: belief_tables.Arm) -> None:
    ours, theirs = rows_of(arm), rows_of(arm, ParitySpec(labels_of_first_point=True))
    first = arm.points[0].questions["A_TF_case"].target
    for point, mine, other in zip(arm.points[:8], ours[::2], theirs[::2], strict=False):
        p = arm.before[arm.points.index(point)]["A_TF_case"].probability
        assert mine["A_TF_case_prob"] == (p if point.questions["A_TF_case"].target == "true" else 1 - p)
        assert other["A_TF_case_prob"] == (p if first == "true" else 1 - p)


def test_published_tables_have_published_columns(arm: belief_tables.Arm) -> None:
    tables = belief_tables.belief_tables([arm])
    wanted = {f"{name}_{what}" for name in WATCHED_FACTS for what in ("acc", "coherence")}
    wanted |= {"n", "req_prob", "TF_coherence", "negation", "multiplication", "disjunction"}
    for name in (
        "main_table", "table_counterfactual_editing_results", "table_all_editing_downstream_implications_results",
        "breaking_updates_results", "table_breaking_vs_fixing_results",
    ):  # fmt: skip
        for row in belief_tables.published_columns(name, tables[name]):
            assert set(row) >= wanted | {"condition"}, name
    groups = {r["data_type"] for r in belief_tables.published_columns("table_all_editing_downstream_implications_results",
              tables["table_all_editing_downstream_implications_results"])}  # fmt: skip
    assert groups == {"No Downstream Implications", "Has Downstream Implications"}
    changes = [
        r["same_s_diff_r_changes"]
        for r in belief_tables.published_columns("edit_generalization", tables["edit_generalization"])
    ]
    assert changes == ["FALSE", "TRUE"]
