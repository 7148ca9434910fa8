"""Result files of EasyEdit, SimIE, MEMIT and NAS become trials; the files here are made up in their exact form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli import main
from raysweep.errors import ProblemsError
from raysweep.reports.compare import compared_entries
from raysweep.reports.pairs import of_one_protocol, to_one
from raysweep.reports.sweeps import open_labelled
from raysweep.results.tables import open_results
from raysweep.results.theirs.files import runs_of
from raysweep.workspace import Workspace

ASKED = {"prompt": "The mother of {} is", "subject": "Ann", "target_new": "Eve", "ground_truth": "<|endoftext|>"}
TEACHER = "lm.decoder_only_teacher_forcing.token_accuracy"
SIMIE = "llama-2-7b_MEMIT_N=2_Sequential=True_True_10.0_False.json"


def easyedit(case: int, rewrite: float, group: str = "") -> dict[str, Any]:
    post: dict[str, Any] = {
        "rewrite_acc": [rewrite],
        "rephrase_acc": [0.5],
        "locality": {"neighborhood_acc": [[0.25, 0.75]]},
        "portability": {"one_hop_acc": [0.0]},
        "fluency": {"ngram_entropy": 5.9},
    }
    if group:
        locality = {
            "comparable_group": "locality.lm.pre_post_argmax_token_match",
            "protocol": "pre_post_argmax_token_match",
        }
        post["metric_meta"] = {
            "rewrite": {"result_key": "rewrite_acc", "comparable_group": group},
            "locality.n": locality,
        }
    return {
        "case_id": case,
        "pre": {"rewrite_acc": [0.0], "portability": {}},
        "requested_rewrite": ASKED,
        "post": post,
        "time": 1.5,
    }


def memit(case: int, edits: int) -> dict[str, Any]:
    one = [{"target_new": 0.5, "target_true": 4.0}]
    post = {
        "rewrite_prompts_probs": one, "rewrite_prompts_correct": [True],
        "paraphrase_prompts_probs": one * 2, "paraphrase_prompts_correct": [True, False],
        "neighborhood_prompts_probs": one, "neighborhood_prompts_correct": [False],
    }  # fmt: skip
    asked = {"prompt": "{} is", "subject": "Ann", "target_new": {"str": "Eve"}, "target_true": {"str": "Ida"}}
    return {
        "case_id": case,
        "grouped_case_ids": [case],
        "num_edits": edits,
        "requested_rewrite": asked,
        "time": 9.0,
        "post": post,
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_ROOT", raising=False)
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    return tmp_path


def put(root: Path, name: str, content: object) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
    return file


def imported(*argv: str) -> None:
    assert main.main(["import", *argv]) == 0


def probes(root: Path) -> list[dict[str, Any]]:
    return open_results("imported", Workspace(root)).probes().to_pylist()


def values(root: Path, **where: Any) -> list[float]:
    return [row["value"] for row in probes(root) if all(row[k] == v for k, v in where.items())]


def test_simie_is_told_by_its_name_and_measured_at_the_end(root: Path) -> None:
    put(root, SIMIE, [easyedit(0, 1.0), easyedit(1, 0.5)])
    imported("simie", SIMIE, "--data", "zsre")
    (trial,) = open_results("imported", Workspace(root)).trials().to_pylist()
    assert (trial["editor"], trial["model"], trial["status"]) == ("memit+simie", "llama-2-7b", "DONE")
    assert trial["arm"] == f"memit+simie lam=10.0 init=False (simie: {TEACHER})"
    assert trial["spec.protocol.measured_by"] == f"simie: {TEACHER}+locality.lm.pre_post_argmax_token_match"
    assert values(root, step=2, probe_kind="efficacy") == [1.0, 0.5]
    assert values(root, step=0, probe_kind="efficacy") == [0.0, 0.0]
    assert values(root, step=2, probe_kind="locality", record_id="0", metric="agreement") == [0.25, 0.75]
    assert [row["probe_name"] for row in probes(root) if row["probe_kind"] == "portability"] == ["one_hop"] * 2


def test_easyedit_with_its_meta_is_measured_at_once_and_each_protocol_is_an_arm(root: Path) -> None:
    put(
        root,
        "e.json",
        [easyedit(0, 1.0, TEACHER), easyedit(1, 0.5, "lm.free_generation.llm_judge"), easyedit(2, 0.0, TEACHER)],
    )
    imported("easyedit", "e.json", "--editor", "GRACE")
    arms = [name.arm for name in open_results("imported", Workspace(root)).names]
    assert arms == [f"grace (easyedit: {TEACHER}, at once)", "grace (easyedit: lm.free_generation.llm_judge, at once)"]
    found = [
        (r["step"], r["edit_step"], r["value"]) for r in probes(root) if r["probe_kind"] == "efficacy" and r["step"]
    ]
    assert sorted(found) == [(1, 1, 0.5), (1, 1, 1.0), (2, 2, 0.0)]


@pytest.mark.parametrize(
    ("editor", "change", "wanted"),
    [
        ("ROME", {}, f"{TEACHER}+locality.lm.pre_post_argmax_token_match"),
        ("GRACE", {}, "lm.vanilla_generation.token_match+locality.lm.pre_post_generated_token_match"),
        ("ROME", {"rewrite_ppl": [2.0]}, "lm.teacher_forcing.perplexity+locality.lm.pre_post_argmax_token_match"),
        ("ROME", {"rewrite_gen_content": ["x"]}, "lm.free_generation.unknown_scorer+"),
    ],
)
def test_an_older_file_is_told_by_method_and_values(
    root: Path, editor: str, change: dict[str, Any], wanted: str
) -> None:
    case = easyedit(0, 1.0)
    case["post"] |= change
    (run,) = runs_of("easyedit", [put(root, "old.json", [case])], editor=editor)
    assert run.protocol.startswith(f"easyedit: {wanted}")
    assert not run.immediate


JUDGED = {
    "rewrite_acc": [1.0], "rewrite_gen_content": ["Eve"], "rephrase_acc": [0.0], "rephrase_gen_content": ["Ida, I think"],
    "locality": {"n_acc": [1.0, 0.0], "n_gen_content": ["six", "red"]},
    "portability": {"hop_acc": [1.0], "hop_gen_content": ["Bo"]},
}  # fmt: skip
RAW = {
    "rewrite_gen_content": ["Eve"],
    "locality": {"n_acc": [1.0], "n_gen_content": ["six"]},
    "portability": {"hop_gen_content": ["Bo"]},
}
OLDER = {"rewrite_gen_content": ["Eve"], "locality": {"n_output": ["six", "red"]}, "portability": {"hop_acc": ["Bo"]}}
TEXTS: dict[str, tuple[dict[str, Any], list[tuple[str, str, float | None, str]]]] = {
    "judged": (
        JUDGED,
        [("efficacy", "token_match", 1.0, "Eve"), ("paraphrase", "token_match", 0.0, "Ida, I think"),
         ("locality", "agreement", 1.0, "six"), ("locality", "agreement", 0.0, "red"), ("portability", "token_match", 1.0, "Bo")],
    ),
    "raw": (
        RAW,
        [("efficacy", "generated", None, "Eve"), ("locality", "agreement", 1.0, "six"), ("portability", "generated", None, "Bo")],
    ),
    "older": (
        OLDER,
        [("efficacy", "generated", None, "Eve"), ("portability", "generated", None, "Bo"),
         ("locality", "agreement", 1.0, "six"), ("locality", "agreement", 0.0, "red")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", TEXTS)
def test_what_was_written_stands_beside_its_number_or_alone(form: str, root: Path) -> None:
    post, wanted = TEXTS[form]
    case = easyedit(0, 1.0)
    case["pre"] = {"rewrite_gen_content": ["Ida"], "locality": {"n_output": ["six", "blue"]}, "portability": {}}
    case["post"] = post
    put(root, "texts.json", [case])
    imported("easyedit", "texts.json", "--editor", "ROME")
    found = [(r["probe_kind"], r["metric"], r["value"], r["answer"]) for r in probes(root) if r["step"]]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    before = [(r["metric"], r["value"], r["answer"]) for r in probes(root) if not r["step"]]
    assert before == [("generated", None, "Ida")]
    assert main.main(["show", "imported"]) == 0


def test_a_text_in_place_of_a_number_is_still_refused(root: Path) -> None:
    case = easyedit(0, 1.0)
    case["post"]["portability"] = {"hop_acc": ["much"]}
    with pytest.raises(ProblemsError, match=r"\[0\].post.portability.hop_acc\[0\]  must be a number"):
        runs_of("easyedit", [put(root, "bad.json", [case])], editor="ROME")


def test_tokens_before_and_after_become_the_share_of_equal_ones(root: Path) -> None:
    case = easyedit(0, 1.0)
    case["pre"]["locality"], case["post"]["locality"] = {"n_output": [[1, 2, 3, 4]]}, {"n_output": [[1, 2, 9, 4]]}
    (run,) = runs_of("easyedit", [put(root, "old.json", [case])], editor="FT")
    assert [v.value for v in run.cases[0].after if v.kind == "locality"] == [0.75]


def test_memit_one_file_a_record(root: Path) -> None:
    for case in (10, 2):
        put(root, f"results/MEMIT/run_003/2_edits-case_{case}.json", memit(case, 2))
    put(root, "results/MEMIT/run_003/params.json", {"model_name": "gpt2-xl", "layers": [13]})
    imported("memit", *(str(p) for p in sorted(root.glob("results/MEMIT/run_003/2_*.json"))))
    (trial,) = open_results("imported", Workspace(root)).trials().to_pylist()
    assert (trial["editor"], trial["model"]) == ("memit", "gpt2-xl")
    assert trial["spec.protocol.measured_by"] == "memit: memit.counterfact.all_tokens.batches_of_2"
    assert {row["record_id"]: row["edit_step"] for row in probes(root)} == {"2": 1, "10": 2}
    assert values(root, record_id="2", probe_kind="paraphrase", metric="token_match") == [1.0, 0.0]
    assert (
        values(root, record_id="2", metric="preferred") == [1.0, 0.0, 1.0, 1.0]
        or len(values(root, metric="preferred")) == 8
    )


def test_nas_has_a_round_for_each_checkpoint(root: Path) -> None:
    for step in (1, 2):
        lines = "".join(f"{json.dumps(memit(case, 1))}\n" for case in range(step))
        put(root, f"run/checkpoint_evals/after_{step}/results.jsonl", lines)
    imported(
        "nas", *(str(root / f"run/checkpoint_evals/after_{n}/results.jsonl") for n in (1, 2)), "--editor", "AlphaEdit"
    )
    assert [len(values(root, step=step, probe_kind="efficacy", metric="token_match")) for step in (1, 2)] == [1, 2]


def test_zsre_of_memit_has_a_value_for_each_token(root: Path) -> None:
    case = memit(7, 1)
    case["post"] = {
        "rewrite_prompts_correct": [True, False], "paraphrase_prompts_correct": [True, True, False, False],
        "neighborhood_prompts_correct": [True],
    }  # fmt: skip
    (run,) = runs_of("memit", [put(root, "1_edits-case_7.json", case)], editor="MEMIT")
    assert [(v.kind, v.value) for v in run.cases[0].after] == [
        ("efficacy", 0.5), ("paraphrase", 1.0), ("paraphrase", 0.0), ("locality", 1.0),
    ]  # fmt: skip


def test_every_mistake_of_every_file_is_said_and_nothing_is_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [easyedit(0, 1.0), {"case_id": 1}, 5, easyedit(0, 1.0), easyedit(2, 1.0)]
    bad[4]["post"]["rewrite_acc"] = ["x"]
    put(root, "bad.json", bad)
    put(root, "cut.json", '[{"case_id": 0, ')
    put(root, "empty.json", "[]")
    assert (
        main.main(["import", "easyedit", "bad.json", "cut.json", "empty.json", "missing.json", "--editor", "FT"]) != 0
    )
    said = capsys.readouterr().err
    for words in (
        "bad.json:[1]  lacks 'post'", "bad.json:[2]  must be a mapping", "bad.json:[4].post.rewrite_acc[0]  must be a number",
        "bad.json  case_id 0 comes twice", "cut.json:  is no JSON", "empty.json:  holds no records",
        "missing.json:  cannot be read",
    ):  # fmt: skip
        assert words in said, said
    assert not (root / "results").exists()


def test_a_file_that_does_not_say_its_method_is_refused(root: Path) -> None:
    with pytest.raises(ProblemsError, match="does not say which method"):
        runs_of("easyedit", [put(root, "e.json", [easyedit(0, 1.0)])])


def test_the_same_again_changes_nothing_and_another_run_is_another_arm(root: Path) -> None:
    put(root, "a.json", [easyedit(0, 1.0)])
    put(root, "b.json", [easyedit(0, 0.0)])
    for name in ("a", "a", "b"):
        imported("easyedit", f"{name}.json", "--editor", "ROME")
    names = open_results("imported", Workspace(root)).names
    assert len({name.key for name in names}) == len({name.arm for name in names}) == 2
    assert names[1].arm.startswith(f"{names[0].arm} ")


def test_values_of_two_protocols_are_not_set_against_each_other(root: Path) -> None:
    put(root, "rome.json", [easyedit(0, 1.0)])
    put(root, "grace.json", [easyedit(0, 0.5)])
    put(root, "ft.json", [easyedit(0, 0.0)])
    for method in ("rome", "grace", "ft"):
        imported("easyedit", f"{method}.json", "--editor", method.upper())
    entries = compared_entries(open_labelled(["imported"], Workspace(root)), by="arm", phase=None, at=-1)
    pairs, notes = of_one_protocol(entries, to_one(entries))
    rome, grace, ft = (pair.reference for pair in pairs)
    assert (rome, grace, ft) == (None, None, entries[0].line)
    assert len(notes) == 1
    assert "grace (easyedit: lm.vanilla_generation.token_match)" in notes[0]


def test_it_does_not_go_into_a_sweep_of_ours(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(root, "a.json", [easyedit(0, 1.0)])
    imported("easyedit", "a.json", "--editor", "ROME", "--name", "mine")
    (trial,) = (root / "results/mine").glob("*/trial.json")
    about = json.loads(trial.read_text())
    del about["provenance"]["imported_from"]
    trial.write_text(json.dumps(about))
    assert main.main(["import", "easyedit", "a.json", "--editor", "FT", "--name", "mine"]) != 0
    assert "'mine' is a sweep of trials that were run here" in capsys.readouterr().err


def test_a_search_space_cannot_claim_to_be_imported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["edit", "--editor", "null", "--edits", "1", "--set", "protocol.measured_by=x"]
    assert main.main(argv) == 2
    assert "protocol.measured_by cannot be set" in capsys.readouterr().err
