"""What a newcomer meets: references of one's choice, tables and lists that fit the terminal, plots of many arms, signs of life."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from raysweep.cli.display import QUIET, Display
from raysweep.cli.main import main
from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.reports import fit, plot_style
from raysweep.reports.render import Difference, Format, render
from raysweep.results.store import ResultStore
from raysweep.rows import EvalRound, ProbeRow, TimingRow
from raysweep.summarize import Estimate

KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))
Call = Callable[..., tuple[int, str, str]]


def write(
    root: Path, arm: str, value: float, *, editor: str = "rome", layer: int = 1, seed: int = 0,
    wrap: tuple[tuple[str, Any], ...] = (), point: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a finished trial of three records, all with the same value."""
    wrappers = tuple(WrapSpec(name=name, config=UnreadConfig(lam=lam)) for name, lam in wrap)
    trial = TrialSpec(
        study="lifelong", model=ModelSpec(digest="m"), data=DataSpec(digest="d"),
        editor=EditorSpec(name=editor, config=UnreadConfig(layer=layer), wrap=wrappers), protocol=ProtocolSpec(rounds=(2, 4)),
        seed=seed, versions={editor: 1, **{name: 1 for name, _ in wrap}},
    )  # fmt: skip
    store = ResultStore(root / "results" / "toy")
    run = {"raysweep": "0", "python": "3", "device": "cpu", "cpu": "toy"}
    store.begin(trial, arm=arm, point={"seed": seed, **(point or {})}, provenance={"run": run})
    for step in (2, 4):
        rows = [
            ProbeRow(
                trial_key=trial.key, step=step, record_id=f"r{i}", edit_step=i, superseded_step=None, probe_kind=kind,
                probe_name="", probe_index=j, metric=metric, value=value, n_tokens=1, prompt_digest="", answer="",
            )
            for i in range(1, step + 1)
            for j, (kind, metric) in enumerate(KINDS)
        ]  # fmt: skip
        timing = [TimingRow(trial_key=trial.key, step=step, phase="edit", seconds=3.0, count=2)]
        store.write_round(trial.key, EvalRound(step=step, rows=rows, timing=timing))
    store.finish(trial.key, step=4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two editors, plain and in SimIE at three λ; a third one of which there is no plain arm of the same configuration."""
    for editor, base in (("rome", 0.25), ("memit", 0.5)):
        write(tmp_path, editor, base, editor=editor)
        for lam, more in ((0.1, 0.125), (1.0, 0.25), (10.0, 0.0625)):
            arm, point = f"{editor}+simie", {"wrap.simie.lam": lam}
            write(tmp_path, arm, base + more, editor=editor, wrap=(("simie", lam),), point=point)
    write(tmp_path, "other layer+simie", 0.75, editor="rome", layer=2, wrap=(("simie", 1.0),))
    return tmp_path


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--root", str(root), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def deltas(text: str) -> dict[str, tuple[str, float | None]]:
    """Return reference and ΔRel by arm, from CSV."""
    rows = list(csv.DictReader(io.StringIO(text)))
    return {r["arm"]: (r["to"], float(r["delta_rel"]) if r["delta_rel"] else None) for r in rows}


def test_compare_to_an_arm(call: Call) -> None:
    found = deltas(call("compare", "toy", "--to", "rome", "--format", "csv")[1])
    assert found["memit"] == ("rome", 0.25)
    assert found["rome+simie lam=1"] == ("rome", 0.25)
    assert found["rome"] == ("", None)
    found = deltas(call("compare", "toy", "--to", "memit+simie lam=1", "--format", "csv")[1])
    assert found["rome"] == ("memit+simie lam=1", -0.5)
    _, out, _ = call("compare", "toy", "--to", "rome")
    assert "Δ = difference to rome, paired" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--to", "rmoe"), "no arm is called 'rmoe'"),
        (("--to", "memit+simie"), "'memit+simie' has 3 configurations"),
        (("--by", "wrap.simie.lam", "--to", "2"), "no configuration has wrap.simie.lam = 2"),
        (("--pair", "wrap", "--to", "rome"), "--pair wrap has its own references"),
        (("--pair", "wrap", "--by", "wrap.simie.lam"), "--pair wrap has its own references"),
        (("--against", "simie-table1", "--to", "rome"), "leave out --by and --phase, --to and --pair"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(call: Call, flags: tuple[str, ...], message: str) -> None:
    code, out, err = call("compare", "toy", *flags)
    assert (code, out, message in err) == (2, "", True), err


def test_compare_by_a_key_stays_within_an_arm(call: Call) -> None:
    """Each value is compared with the reference value of the same arm, not with another arm's."""
    found = deltas(call("compare", "toy", "--by", "wrap.simie.lam", "--format", "csv")[1])
    assert found["rome+simie lam=1"] == ("rome+simie lam=0.1", 0.125)
    assert found["memit+simie lam=1"] == ("memit+simie lam=0.1", 0.125)
    assert found["memit+simie lam=0.1"] == ("", None)
    found = deltas(call("compare", "toy", "--by", "wrap.simie.lam", "--to", "1", "--format", "csv")[1])
    assert found["memit+simie lam=10"] == ("memit+simie lam=1", -0.1875)
    assert found["rome+simie lam=1"] == ("", None)


def test_by_holds_the_other_swept_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer, base in ((1, 0.25), (2, 0.5)):
        for lam, more in ((0.1, 0.0), (1.0, 0.125)):
            point = {"wrap.simie.lam": lam, "editor.layer": layer}
            write(tmp_path, "a", base + more, layer=layer, wrap=(("simie", lam),), point=point)
    write(tmp_path, "b", 0.5, editor="memit", wrap=(("simie", 1.0),), point={"wrap.simie.lam": 1.0})
    arguments = ["--root", str(tmp_path), "compare", "toy", "--by", "wrap.simie.lam", "--to", "0.1"]
    main([*arguments, "--format", "csv"])
    out, err = capsys.readouterr()
    found = deltas(out)
    assert found["a layer=1 lam=1"] == ("a layer=1 lam=0.1", 0.125)
    assert found["a layer=2 lam=1"] == ("a layer=2 lam=0.1", 0.125)
    assert found["b"] == ("", None)
    assert "nothing to compare with (the reference value of wrap.simie.lam in the same arm was not measured): b" in err


def test_pair_wrap_sets_each_wrapped_editor_beside_the_plain_one(call: Call) -> None:
    _, out, err = call("compare", "toy", "--pair", "wrap", "--format", "csv")
    found = deltas(out)
    assert found["rome+simie lam=1"] == ("rome", 0.25)
    assert found["memit+simie lam=10"] == ("memit", 0.0625)
    assert found["other layer+simie"] == ("", None), "another configuration of the editor is no partner"
    assert set(found) == {f"{e}+simie lam={lam}" for e in ("rome", "memit") for lam in ("0.1", "1", "10")} | {
        "other layer+simie"
    }
    assert "(the same editor without the wrapper was not measured): other layer+simie" in err


def test_pair_wrap_without_pairs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "plain", 0.5)
    assert main(["--root", str(tmp_path), "compare", "toy", "--pair", "wrap"]) == 2
    assert "no arm here has a wrapper" in capsys.readouterr().err
    write(tmp_path, "wrapped", 0.5, layer=2, wrap=(("simie", 1.0),))
    assert main(["--root", str(tmp_path), "compare", "toy", "--pair", "wrap"]) == 2
    assert "no wrapped arm has a measured partner" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
@pytest.mark.parametrize(
    "command",
    [
        ("show", "toy"),
        ("show", "toy", "--by", "trial"),
        ("compare", "toy"),
        ("compare", "toy", "--by", "wrap.simie.lam"),
        ("compare", "toy", "--pair", "wrap"),
        ("ls", "editors"),
        ("ls", "spaces"),
        ("models", "ls"),
        ("data", "ls"),
    ],
    ids=" ".join,
)
def test_tables_fit_the_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = call(*command)
    notes = [line for line in out.splitlines() if not line.startswith("note: ")]
    assert code == 0
    assert max(map(cell_len, notes)) <= columns
    assert "…" not in out, "nothing is cut"


def test_what_a_narrow_table_leaves_out_is_told_and_wide_has_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    full = call("show", "toy", "--at", "4")[1]
    assert re.search(r"rome +4 +\.250 \[\.\d+, \.\d+\]", full)
    assert "time" in full
    monkeypatch.setenv("COLUMNS", "80")
    narrow = call("show", "toy", "--at", "4")[1]
    assert re.search(r"^rome +4 +\.250 +\.250", narrow, re.MULTILINE)
    assert "80 columns: " in narrow
    assert "without 95% intervals" in narrow.replace("\n", " ")
    assert call("show", "toy", "--at", "4", "--wide")[1] == full
    for how in ("csv", "json", "markdown", "latex"):
        wide = call("show", "toy", "--format", how)[1]
        monkeypatch.setenv("COLUMNS", "500")
        assert call("show", "toy", "--format", how)[1] == wide
        monkeypatch.setenv("COLUMNS", "80")


def test_intervals_of_differences_go_last_and_leave_a_star() -> None:
    mean, sure, unsure = (
        Estimate(0.5, 0.1, 9, 0.31, 0.69),
        Difference(0.25, 0.1, 9, 0.05, 0.45, shown=True),
        Difference(-0.25, 0.2, 9, -0.65, 0.15),
    )
    rows = [{"arm": "a", "Rel": mean, "ΔRel": sure}, {"arm": "b", "Rel": mean, "ΔRel": unsure}]
    assert ".500 [.31, .69]  +.250 [+.05, +.45]*" in render(rows, Format.TABLE, width=42)
    assert "+.250 [+.05, +.45]*" in render(rows, Format.TABLE, width=36)
    assert ".500 [" not in render(rows, Format.TABLE, width=36)
    narrow = render(rows, Format.TABLE, width=24)
    assert re.search(r"^a +\.500 +\+\.250\*$", narrow, re.MULTILINE)
    assert re.search(r"^b +\.500 +-\.250$", narrow, re.MULTILINE)


def test_columns_of_one_value_go_into_the_note() -> None:
    columns = [fit.Column("arm", ["a", "b"]), fit.Column("x", ["1" * 12, "2"]), fit.Column("seeds", ["3", "3"])]
    assert "all rows: seeds 3" in fit.table(columns, width=18).replace("\n", " ")
    columns[2] = fit.Column("seeds", ["3", "2 of 3"])
    assert "2 of 3" in fit.table(columns, width=18), "what differs stays"


@pytest.mark.parametrize("columns", ["", "30", "80"])
def test_lists_never_cut_a_name(call: Call, monkeypatch: pytest.MonkeyPatch, root: Path, columns: str) -> None:
    name = "a_space_whose_name_is_much_longer_than_any_terminal_is_wide_" * 2
    (root / "search_spaces").mkdir()
    (root / "search_spaces" / f"{name}.yaml").write_text("# Question: why?\n")
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = call("ls", "spaces")
    assert "…" not in out
    first = "".join(line[: int(columns or 200)].split("  ")[0].strip() for line in out.splitlines())
    assert name in first
    if not columns:
        assert f"{name}  why?" in out.replace("   ", "  "), "a pipe gets one line per name"


def test_names_of_layouts_and_of_wide_characters_are_whole() -> None:
    found = fit.table([fit.Column("arm", ["編集" * 8, "b"]), fit.Column("x", ["1", "2"], number=True)], width=20)
    assert all(cell_len(line) <= 20 for line in found.splitlines())
    assert "".join(re.findall("[編集]", found)) == "編集" * 8


def test_forty_arms_have_forty_looks() -> None:
    """Colour by editor, line by wrapper; no two configurations look the same."""
    wraps = ("", "+simie", "+prune")
    editors = {f"{e}{w} {i}": f"{e}{w}" for e in ("ft", "rome", "memit", "mend") for w in wraps for i in range(4)}
    look = plot_style.styles(editors)
    assert list(look) == list(editors)
    assert len({(s.colour, str(s.line), s.marker) for s in look.values()}) == len(editors) == 48
    lines = {
        wrap: {str(look[label].line) for label, n in editors.items() if n.partition("+")[2] == wrap[1:]}
        for wrap in wraps
    }
    assert [len(own) for own in lines.values()] == [1, 1, 1]
    assert len(set.union(*lines.values())) == 3
    single = plot_style.styles({"a": "rome", "b": "rome+simie", "c": "memit"})
    assert single["a"].colour == single["b"].colour != single["c"].colour


@pytest.mark.parametrize(
    "labels", [["_a", "$x$ y", "b"], [f"memit+simie lam={i} [2 done, 1 failed]" for i in range(40)]]
)
def test_the_legend_is_outside_and_inside_the_picture(labels: list[str]) -> None:
    look = plot_style.styles(dict.fromkeys(labels, "memit"))
    figure, axes = plot_style.panels(len(labels), ["Rel", "Gen", "Loc", "Avg"])
    handles = [axes[0].plot([0, 1], [0, 1], color=s.colour)[0] for s in look.values()]
    plot_style.legend(figure, handles, labels)
    figure.canvas.draw()
    (box,) = figure.legends
    assert [text.get_text() for text in box.get_texts()] == labels
    extent = box.get_window_extent()
    assert extent.y0 >= -1
    assert extent.x0 >= -1
    assert extent.x1 <= figure.bbox.width + 1
    assert all(axis.get_tightbbox().y0 >= extent.y1 - 1 for axis in axes), "the legend covers no panel"
    from matplotlib import pyplot

    pyplot.close(figure)


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets each figure instead of a file."""
    figures: list[Any] = []
    monkeypatch.setattr(plot_style, "save", lambda figure, path: figures.append(figure))
    return figures


def test_a_metric_over_a_swept_key(call: Call, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    write(root, "elsewhere", 0.5, layer=3, point={"editor.layer": 3})
    code, out, _ = call("show", "toy", "--plot", str(root / "p.png"), "--over", "wrap.simie.lam")
    assert (code, f"plot: {root / 'p.png'}" in out) == (0, True)
    axis = figures[0].axes[0]
    assert axis.get_xscale() == "log"
    assert axis.get_xlabel() == "wrap.simie.lam"
    curves = [line for line in axis.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in curves] == [[0.1, 1.0, 10.0]] * 2
    assert sorted(list(line.get_ydata()) for line in curves) == [[0.375, 0.5, 0.3125], [0.625, 0.75, 0.5625]]
    assert len([line for line in axis.lines if len(line.get_xdata()) == 2]) == 3, "arms without the key are level lines"
    bands = [b.get_paths()[0].vertices[:, 1] for b in axis.collections]
    assert any(b.min() < 0.375 < b.max() for b in bands), "the intervals are drawn"
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert sorted(labels) == ["memit", "memit+simie", "other layer+simie", "rome", "rome+simie"]
    assert call("show", "toy", "--over", "wrap.simie.lam")[0] == 2
    code, out, err = call("show", "toy", "--plot", str(root / "p.png"), "--over", "lam")
    assert (code, out, "no trial sweeps 'lam'" in err, "wrap.simie.lam" in err) == (2, "", True, True)


@pytest.mark.parametrize(
    ("values", "scale", "places"),
    [
        ((1, 2, 4), "linear", [1.0, 2.0, 4.0]),
        ((0.1, 1.0), "log", [0.1, 1.0]),
        ((0.0, 0.1, 10.0), "symlog", [0.0, 0.1, 10.0]),
        ((-1.0, 2.0), "linear", [-1.0, 2.0]),
        ((1.0, 10.0, "gcv"), "linear", [0.0, 1.0, 2.0]),
        ((False, True), "linear", [0.0, 1.0]),
    ],
)
def test_the_axis_follows_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[Any, ...], scale: str, places: list[float]
) -> None:
    figures = drawn(monkeypatch)
    for value in reversed(values):
        write(tmp_path, "a", 0.5, wrap=(("simie", value),), point={"wrap.simie.lam": value})
    flags = ["--plot", str(tmp_path / "p.png"), "--over", "wrap.simie.lam"]
    assert main(["--root", str(tmp_path), "show", "toy", *flags]) == 0
    axis = figures[0].axes[0]
    assert axis.get_xscale() == scale
    assert [list(line.get_xdata()) for line in axis.lines] == [places]
    if scale == "linear" and places != list(map(float, [v for v in values if not isinstance(v, str)])):
        assert [t.get_text() for t in axis.get_xticklabels()] == [str(v) for v in values]


def beat(folder: Path, key: str, **given: Any) -> None:
    (folder / key).mkdir(exist_ok=True)
    (folder / key / ".heartbeat").write_text(json.dumps({"done": 0, "total": 0, "doing": "edit", **given}))


def test_plain_output_says_that_ray_starts_and_how_training_goes(tmp_path: Path) -> None:
    printed: list[str] = []
    display = Display({"k": "memit", "l": "rome"}, {"k": 10, "l": 10}, printer=printed.append, folder=tmp_path)
    display.connecting(None)
    display.connecting("10.0.0.1:6379")
    assert printed == ["starting Ray …", "joining Ray at 10.0.0.1:6379 …"]
    now = display.began
    display.started("k")
    display.started("l")
    beat(tmp_path, "k", doing="training the model", steps=[100, 1000])
    assert display.news(now) == ["memit: training the model, step 100 of 1000"]
    assert display.news(now + 1) == []
    beat(tmp_path, "k", doing="training the model", steps=[400, 1000])
    assert display.news(now + QUIET) == ["memit: training the model, step 400 of 1000, ETA 0:01:00"]
    assert display.news(now + QUIET + 1) == []
    beat(tmp_path, "k", done=3)
    (line,) = display.news(now + 3 * QUIET)
    assert line.startswith("trials 0/2   edits 3/20 ")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"done": null}', '{"done": 1, "doing": "x", "steps": [1]}'])
def test_a_heartbeat_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    display = Display({"k": "memit"}, {"k": 10}, printer=lambda line: None, folder=tmp_path)
    beat(tmp_path, "k")
    (tmp_path / "k" / ".heartbeat").write_text(text)
    display.started("k")
    assert display.news(display.began) == []


def test_news_stop_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr("raysweep.cli.display.POLL", 0.01)
    heard = threading.Event()
    display = Display({"k": "memit"}, {"k": 10}, printer=lambda line: heard.set(), folder=tmp_path)
    display.started("k")
    beat(tmp_path, "k", doing="training the model", steps=[1, 9])
    display.begin()
    assert heard.wait(10)
    display.end()
    assert not any(thread.name == "raysweep-display" for thread in threading.enumerate())


def test_the_driver_is_told_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raysweep.config.plan import plan
    from raysweep.config.sweep import parse_search_space
    from raysweep.tune import launch
    from raysweep.workspace import Workspace

    class StartedError(Exception):
        pass

    def no_ray(address: str | None) -> Any:
        raise StartedError

    monkeypatch.setattr(launch, "running_ray", no_ray)
    tree = {"sweep": "t", "base": {"data": {"name": "world", "size": 2}}, "arms": {"n": {"editor": "null"}}}
    workspace, printed = Workspace(tmp_path), []
    planned = plan(parse_search_space(tree, file="test"), workspace)
    display = Display({t.key: "n" for t in planned.trials}, {t.key: 2 for t in planned.trials}, printer=printed.append)
    with pytest.raises(StartedError):
        launch.run_sweep(planned, workspace, watcher=display)
    assert printed == ["starting Ray …"]


def test_the_training_heartbeat_has_its_steps(tmp_path: Path) -> None:
    from raysweep.studies.base import Progress
    from raysweep.tune.deps import Heartbeat

    Heartbeat(tmp_path)(Progress(0, 0, "training the model", (3, 9)))
    assert json.loads((tmp_path / ".heartbeat").read_text())["steps"] == [3, 9]
