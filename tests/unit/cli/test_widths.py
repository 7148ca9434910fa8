"""Whatever the command line prints for a reader fits the terminal; nothing is cut, and keys and names can be told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from raysweep.cli import belief_report
from raysweep.cli.main import COMMANDS, load, main
from raysweep.config.schema import ProtocolSpec
from raysweep.exports.ask import Answers
from raysweep.exports.trials import EditedTrial
from raysweep.reports import fit
from raysweep.reports.prose import wrap
from raysweep.summarize import Estimate
from tests.unit.cli.test_front_door import write

ROOT = Path(__file__).resolve().parents[3]
WIDTHS = [60, 80, 200]
LONG = [f"an_arm_whose_name_differs_from_that_of_its_neighbour_at_the_very_end_only_{end}" for end in "ab"]
SPACE = """\
sweep: toy
base: {model: embedded, data: {name: world, size: 4}, protocol: {rounds: [0, 2, 4]}}
arms:
  rome: {editor: rome}
  rome+simie: {editor: rome, wrap: {name: simie, lam: 2.0}}
  an_arm_whose_name_differs_from_that_of_its_neighbour_at_the_very_end_only_a: {editor: memit}
  an_arm_whose_name_differs_from_that_of_its_neighbour_at_the_very_end_only_b: {editor: "null"}
space:
  seed: {grid: [0, 1]}
  protocol.eval_batch: {grid: [1234567891, 1234567892]}
"""
BAD = """\
sweep: bad
base: {model: embedded, data: {name: wrld, size: many}, protocol: {rounds: [0, 2, 400], batches: 3}}
arms: {a: {editor: rmoe}, b: {editor: {name: rome, layers: x, an_unknown_key_of_this_editor: 1}}}
resources: {cpu: 99999}
"""
TABLES: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "space.yaml"),
    "validate": ("validate", "space.yaml"),
    "validate, many mistakes": ("validate", "bad.yaml"),
    "plan, many mistakes": ("plan", "bad.yaml"),
    "run, many mistakes": ("run", "bad.yaml"),
    "ls": ("ls",),
    "show": ("show", "toy"),
    "show, trials": ("show", "toy", "--by", "trial", "--ppl"),
    "show, nothing there": ("show", "a_sweep_that_does_not_exist"),
    "compare": ("compare", "toy"),
    "compare, by a key": ("compare", "toy", "--by", "wrap.simie.lam"),
    "compare, published": ("compare", "toy", "--against", "simie-table1", "--loosely"),
    "retention": ("retention", "toy"),
    "plot": ("plot", "edits", "toy"),
    "report": ("report", "toy"),
    "analyze": ("analyze", "toy"),
    "ask": ("ask", "toy", "rome"),
    "edit": ("edit", "--editor", "null", "--edits", "2"),
    "models ls": ("models", "ls"),
    "models check": ("models", "check", "embedded"),
    "models info": ("models", "info"),
    "data ls": ("data", "ls"),
    "data ls, files": ("data", "ls", "hallueditbench"),
    "data check": ("data", "check", "zsre", "--path", str(ROOT / "data/ZsRE/sample.json")),
    "data check, many mistakes": ("data", "check", "zsre", "--path", "records.json"),
    "belief graph": ("belief", "graph"),
    "belief report": ("belief", "report", "toy"),
    "doctor": ("doctor",),
    "doctor, a code": ("doctor", "--explain", "E-RECORD"),
}
NO_TABLE = {
    "export": "what it is, where, and what was proven",
    "judge": "how many answers, cases and gaps",
    "submit": "what the job prints there",
    "train-mend": "steps, and JSON",
    "import": "the table of `show`",
    "models fetch": "one path",
    "models build": "steps, and JSON",
    "models probe": "a file, line by line",
    "data fetch": "one path",
    "belief corpus": "JSON",
    "belief points": "JSON",
}
Call = Callable[..., tuple[int, str, str]]


def names_of(command: Any, name: str) -> Iterator[str]:
    """Yield the names of all commands at and below *command*."""
    below = getattr(command, "commands", None)
    if not below:
        yield name
    for key, one in (below or {}).items():
        yield from names_of(one, f"{name} {key}")


def test_every_command_is_listed_here() -> None:
    commands = {name for top in COMMANDS for name in names_of(load(top), top)}
    assert commands == {name.partition(",")[0] for name in TABLES} | set(NO_TABLE)


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "records.json").write_text(
        '[{"subject": "a"}, {"src": 5}, 7, {"prompt": "Who is it, after all, we ask?"}]'
    )
    for editor, value in (("rome", 0.25), ("memit", 0.5)):
        write(tmp_path, editor, value, editor=editor)
        for lam in (0.1, 1.0):
            write(
                tmp_path, f"{editor}+simie", value, editor=editor, wrap=(("simie", lam),), point={"wrap.simie.lam": lam}
            )
    for layer, arm in enumerate(LONG):
        write(tmp_path, arm, 0.75, layer=layer + 5)
    logged = SimpleNamespace(rounds={}, sessions=["one"], best=None, compared=7, disagreements=[])
    named = SimpleNamespace(arm="rome", key="0" * 16)
    edited = SimpleNamespace(name=named, trial=SimpleNamespace(protocol=ProtocolSpec(rounds=(4,))), records=[])
    monkeypatch.setattr(EditedTrial, "open", lambda *_: edited)
    monkeypatch.setattr("raysweep.exports.ask.ask", lambda *_, length: [Answers(*["many words of an answer "] * 4)])
    monkeypatch.setattr("raysweep.tune.analysis.analyse", lambda *_, **__: logged)
    monkeypatch.setattr(
        belief_report, "tables_of", lambda sweep: {"main_table": belief_rows(), "points": belief_rows()}
    )
    monkeypatch.setattr(belief_report, "draw", lambda *_: [])
    monkeypatch.setattr(belief_report, "write_published", lambda *_: 3)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--root", str(tmp_path), *arguments])
        return code, *capsys.readouterr()

    return run


def belief_rows() -> list[dict[str, Any]]:
    """Return rows with more columns of numbers than any terminal has room for."""
    names = ["acc_pre", "acc_post", *(f"a_long_name_of_a_measure_{i}_generative_acc" for i in range(9))]
    return [{"arm": arm, "phase": "after", **{n: Estimate(0.5, 0.1, 9, 0.3, 0.7) for n in names}} for arm in LONG]


def too_wide(text: str, columns: int) -> list[str]:
    """Return the lines of *text* that are too wide, but for those of a single word, which stays whole."""
    lines = [line for line in text.splitlines() if cell_len(line) > columns]
    return [line for line in lines if len(line.split()) > 1]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_everything_fits(call: Call, monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = call(*TABLES[name])
    assert code in ((2,) if "mistakes" in name or "nothing" in name else (0,)), err
    assert out + err
    assert not too_wide(out, columns)
    assert not too_wide(err, columns)


@pytest.mark.parametrize("name", ["plan", "show", "belief report"])
@pytest.mark.parametrize("columns", WIDTHS)
def test_names_and_keys_are_whole(call: Call, monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    """Folded names can be put together again; a key stands on one line, to be copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = call(*TABLES[name])
    assert "…" not in out
    words = re.sub(r"[^a-z_]", "", "".join(line.split("  ")[0].strip() for line in out.splitlines()))
    for arm in LONG:
        assert arm in words
    if name == "plan":
        assert len(set(re.findall(r"\b[0-9a-f]{16}\b", out))) == 16


def test_into_a_pipe_lines_are_as_long_as_they_are(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The width of the terminal in which a pipe was typed moves nothing."""
    whole = {name: call(*TABLES[name]) for name in ("plan", "belief report", "validate, many mistakes", "belief graph")}
    assert all(LONG[0] in whole[name][1] for name in ("plan", "belief report"))
    monkeypatch.setattr(fit.shutil, "get_terminal_size", lambda: pytest.fail("nobody asks"))
    for name, (_, out, err) in whole.items():
        _, again, errors = call(*TABLES[name])
        assert (again, errors) == (out, err)


def test_columns_without_room_go_below(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [fit.Column("arm", ["a", "b"]), *(fit.Column(f"number{i}", ["1.25", "2"], number=True) for i in range(9))]
    found = fit.complete(columns, title="t", width=30)
    assert found.startswith("t\n")
    assert found.count("\narm") == 3
    assert all(f"number{i}" in found for i in range(9))
    assert fit.complete(columns, width=None).count("arm") == 1
    alone = fit.complete([columns[0], fit.Column("a" * 50, ["1.25", "2"], number=True)], width=30)
    assert not too_wide(alone, 30), "a heading is folded where nothing else is left"


def test_lines_break_between_words_only() -> None:
    assert wrap("one two three", None) == "one two three"
    assert wrap("one two three\n    four five", 9) == "one two\n    three\n    four\n    five"
    path = "/a/path/without/blanks/that/is/long"
    assert wrap(f"see {path} for it", 20) == f"see\n    {path}\n    for it"
    assert wrap("now run `raysweep run x` again", 23) == "now run\n    `raysweep run x`\n    again"
    assert wrap("編集 編集 編集", 10, hang=0) == "編集 編集\n編集"
    assert wrap("a  b   c", 80) == "a  b   c"


def test_errors_on_standard_error_have_the_width_of_that(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Standard output may go into a file while errors go to the terminal."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(fit.shutil, "get_terminal_size", lambda: __import__("os").terminal_size((40, 20)))
    assert fit.terminal_width(err=True) == 40
    assert fit.terminal_width() is None


def test_help_fits(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for top in COMMANDS:
        for name in names_of(load(top), top):
            code, out, _ = call(*name.split(), "--help")
            assert code == 0
            assert not too_wide(out, 80), name


def test_each_example_of_a_help_stands_on_a_line_of_its_own(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands in one line, run together, cannot be copied."""
    monkeypatch.setenv("COLUMNS", "200")
    for top in COMMANDS:
        for name in names_of(load(top), top):
            _, out, _ = call(*name.split(), "--help")
            lines = [line for line in out.splitlines() if f"raysweep {name} " in line]
            assert all(line.count("raysweep ") == 1 for line in lines if "│" not in line), name
            assert not re.search(r"`", out), name
