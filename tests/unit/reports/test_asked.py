"""``--protocol``: the numbers of one protocol in the places of the main asking's, and what is said of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.errors import SpecError
from raysweep.reports.asked import chosen
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, open_results
from raysweep.rows import AnswerRow, EvalRound, ProbePlace, ProbeRow

NUMBERS = {"efficacy": (1.0, 0.0), "paraphrase": (0.5, 0.5), "locality": (0.25, 0.25)}  # of record 1 and 2
LABEL, OTHER = "wild-mirage:qa_inst/1", "memit_compat/1"


def value_row(key: str, kind: str, record: int, metric: str, value: float) -> ProbeRow:
    return ProbeRow(
        trial_key=key, step=2, record_id=f"r{record}", edit_step=record, superseded_step=None, probe_kind=kind,
        probe_name="", probe_index=0, metric=metric, value=value, n_tokens=1, prompt_digest="", answer="",
    )  # fmt: skip


def answer_row(key: str, record: int, *, affected: bool, near_tie: bool) -> AnswerRow:
    place = value_row(key, "efficacy", record, "", 0.0)
    return AnswerRow(
        **{name: getattr(place, name) for name in ProbePlace.__dataclass_fields__}, protocol=LABEL, prompt="Q", target="C. N",
        raw=" C.", stop="string", n_tokens=2, answer="C", affected=affected, raw_whole=" C. N.", normalised_match=0.0,
        whole_match=1.0, same_answer=None, margin=1.0, near_tie=near_tie,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A trial of two records, with three protocols of which each has other numbers."""
    also = ({"id": "wild-mirage", "prompt": "qa_inst"}, "memit_compat")
    trial = TrialSpec(
        study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name="ft", config=UnreadConfig()),
        protocol=ProtocolSpec(rounds=(2,), also=also), seed=0,
    )  # fmt: skip
    store, key = ResultStore(tmp_path / "results" / "toy"), trial.key
    run = {"raysweep": "0", "python": "3", "device": "cpu", "cpu": "toy"}
    store.begin(trial, arm="ft", point={}, provenance={"run": run})
    rows = []
    for kind, values in NUMBERS.items():
        local = kind == "locality"
        for record, value in enumerate(values, 1):
            rows += [
                value_row(key, kind, record, "agreement" if local else "token_match", 1.0),
                value_row(key, kind, record, f"{'same_answer' if local else 'normalised_match'}@{LABEL}", value),
                value_row(key, kind, record, f"prob_success@{OTHER}", value / 2),
            ]
            if not local:
                rows.append(value_row(key, kind, record, f"whole_match@{LABEL}", 1.0))
    answers = [answer_row(key, 1, affected=True, near_tie=False), answer_row(key, 2, affected=False, near_tie=True)]
    store.write_round(key, EvalRound(step=2, rows=rows, answers=answers))
    store.finish(key, step=2)
    return tmp_path


def shown(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, float]:
    assert main(["--root", str(root), "show", "toy", "--format", "json", *flags]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return {name: row[name] for name in ("rel", "gen", "loc", "harmonic") if row.get(name) is not None}


def test_each_protocol_has_its_own_numbers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ones = {"rel": 1.0, "gen": 1.0, "loc": 1.0}
    assert shown(root, capsys) == ones
    assert shown(root, capsys, "--protocol", "teacher_forced") == ones
    of_it = {"rel": 0.5, "gen": 0.5, "loc": 0.25}
    assert shown(root, capsys, "--protocol", "wild-mirage:qa_inst") == of_it
    assert shown(root, capsys, "--protocol", "wild-mirage") == of_it, "the one prompt that was asked"
    assert shown(root, capsys, "--protocol", "wild-mirage+whole_match") == ones | {"loc": 0.25}
    compat = shown(root, capsys, "--protocol", "memit_compat")
    assert compat == {"rel": 0.25, "gen": 0.25, "loc": 0.125, "harmonic": pytest.approx(3 / (4 + 4 + 8))}


def test_the_title_names_it_and_notes_say_what_is_behind(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "show", "toy", "--protocol", "wild-mirage"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "retained, wild-mirage:qa_inst/1 normalised_match, mean" in out
    assert "records with a full stop inside a target: 1 of 2;" in out
    assert "which another batch may flip: 1 of 2" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wild", "unknown protocol 'wild'"),
        ("wild-mirage:chatty", "has no prompt 'chatty'"),
        ("wild-mirage:chat", "nothing was measured under wild-mirage:chat/1"),
        ("localft", "nothing was measured under localft/1"),
        ("memit_compat+prob_margin", "shows no 'prob_margin'"),
    ],
)
def test_what_was_not_measured_is_refused(root: Path, text: str, message: str) -> None:
    sweep: Sweep = open_results(str(root / "results" / "toy"))
    with pytest.raises(SpecError, match=message):
        chosen(text, [sweep])


def test_nothing_is_asked_right_after_an_edit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "show", "toy", "--protocol", "wild-mirage", "--phase", "immediate"]) == 2
    assert "asked at rounds only" in capsys.readouterr().err


def test_answers_are_read_as_they_were_written(root: Path) -> None:
    answers = open_results(str(root / "results" / "toy")).answers()
    assert answers["raw"].to_pylist() == [" C.", " C."]
    assert answers["affected"].to_pylist() == [True, False]
