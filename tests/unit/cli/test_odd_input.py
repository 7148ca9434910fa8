"""What the command line makes of odd flags, names and failures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from raysweep.cli.display import Display
from raysweep.cli.edit_space import rounds_of
from raysweep.reports.left_out import left_out
from raysweep.reports.prose import brief


@pytest.mark.parametrize(
    ("edits", "batch", "near"), [("7", "2", "--edits 6 or --edits 8"), ("3", "5", "--edits 5"), ("100", "64", "64")]
)
def test_edits_that_are_no_whole_batches_are_refused(edits: str, batch: str, near: str, run, tmp_path: Path) -> None:
    """Seven edits by two made six, silently."""
    code, _, err = run("edit", "--editor", "ft-l", "--edits", edits, "--batch-size", batch)
    assert code == 2
    assert f"--edits {edits} is no multiple of --batch-size {batch}" in err
    assert near in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("flags", [("--edits", "9" * 30), ("--batch-size", "9" * 30), ("--model", "a" * 5000)])
def test_flags_beyond_all_bounds(flags: tuple[str, str], run) -> None:
    code, _, err = run("edit", "--editor", "ft-l", *flags)
    assert (code, "Traceback" in err, "unexpected" in err) == (2, False, False)


def test_rounds_of_whole_batches_end_at_the_last_edit() -> None:
    for edits, batch in ((100, 1), (64, 64), (12, 4), (2, 1)):
        assert rounds_of("", edits, batch)[-1] == edits


def test_a_sweep_without_rounds_edits_everything(run, fakes, tmp_path: Path) -> None:
    """It planned "0 edits in all"."""
    base = "{model: tiny, data: {name: hundred, size: 21}, protocol: {batch_size: 4}}"
    (tmp_path / "x.yaml").write_text(f"sweep: x\nbase: {base}\narms: {{a: {{editor: plain}}}}\n")
    code, out, _ = run("plan", "x.yaml")
    assert (code, "rounds [0, 20] (batch size 4): a" in out, "20 edits in all" in out) == (0, True, True)
    assert "note: the last round is at 20 edits, so 1 of the 21 records are not written: a" in out
    assert "rounds [0]" in run("plan", "x.yaml", "--set", "protocol.rounds=[0]")[1]


FAILURE = "ModelError: no weights in [red]m[/red]\n    fetch or copy them into the folder\n    and more"


def test_a_failure_is_shown_with_its_hint() -> None:
    said: list[str] = []
    shown = Display({"k": "[red]arm"}, {"k": 2}, printer=said.append)
    shown.round("k", {"step": 0, "failure": FAILURE})
    assert said == [
        "[red]arm: FAILED at 0/2: ModelError: no weights in [red]m[/red]\n    fetch or copy them into the folder"
    ]


def test_a_failure_is_shown_on_a_terminal_too() -> None:
    said: list[str] = []
    screen = Console(file=io.StringIO(), force_terminal=True)
    shown = Display({"k": "a"}, {"k": 2}, printer=said.append, console=screen)
    shown.round("k", {"step": 0, "failure": FAILURE})
    shown.round("k", {"step": 1})
    assert len(said) == 1


def test_a_name_that_looks_like_markup_is_shown_as_it_is() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown = Display({"k": "[red]x[/blue]"}, {"k": 2}, printer=print, console=screen)
    shown.started("k")
    plain = Console(file=io.StringIO(), width=100)
    plain.print(shown.render())
    assert "[red]x[/blue]" in plain.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("failure", "said"),
    [("", ""), ("ValueError: x", "ValueError: x"), ("A: b\nc\nd", "A: b"), (FAILURE, "\n    fetch or copy")],
)
def test_brief(failure: str, said: str) -> None:
    assert said in brief(failure)


def test_markup_in_paths_and_arms(run, fakes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "sweep: x\nbase: {model: tiny, data: hundred}\narms: {'[red]a': {editor: plain}}\n"
    )
    assert "[red]a" in run("plan", "x.yaml")[1]
    (tmp_path / "models" / "[bold]m").mkdir(parents=True)
    assert "[bold]m" in run("models", "ls")[1]


def test_half_a_character_in_an_argument_ends_no_message(run) -> None:
    code, _, err = run("validate", "x\udcff.yaml")
    assert code == 2
    assert "no search space" in err


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-at-all/x.yaml", "x/" * 2000])
def test_a_name_that_no_file_can_have(name: str, run) -> None:
    code, _, err = run("validate", name)
    assert (code, "no search space" in err) == (2, True)


def test_rows_left_out_are_counted_by_arm() -> None:
    column = "spec.data.left_out"
    rows = [{"arm": "a", column: json.dumps([1, 2])}, {"arm": "a", column: "[3]"}, {"arm": "b", column: "[]"}]
    assert left_out([*rows, {"arm": "c"}]) == ["a: 1 or 2 rows of the data were left out (data.invalid: skip)"]
