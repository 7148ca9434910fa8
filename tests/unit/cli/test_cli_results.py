"""``show``, ``compare``, ``run`` and ``edit`` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli.edit_space import rounds_of
from raysweep.cli.main import main
from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.results.drivers import DriverLock
from raysweep.results.folder import Folder
from raysweep.results.store import ResultStore, State
from raysweep.rows import EvalRound, ProbeRow, TimingRow

LATEX = shutil.which("pdflatex")  # where there is one, a table is compiled, too
KINDS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))


def write(root: Path, seed: int, arm: str, value: float) -> str:
    trial = TrialSpec(
        study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name=arm, config=UnreadConfig()),
        protocol=ProtocolSpec(rounds=(2,)), seed=seed,
    )  # fmt: skip
    store = ResultStore(root / "results" / "toy")
    run = {"raysweep": "0", "python": "3", "device": "cpu", "cpu": "toy"}
    store.begin(trial, arm=arm, point={"seed": seed}, provenance={"run": run})
    rows = [
        ProbeRow(
            trial_key=trial.key, step=2, record_id=f"r{i}", edit_step=i, superseded_step=None, probe_kind=kind,
            probe_name="", probe_index=j, metric=metric, value=value + i / 8, n_tokens=1, prompt_digest="", answer="",
        )
        for i in (1, 2)
        for j, (kind, metric) in enumerate(KINDS)
    ]  # fmt: skip
    timing = [TimingRow(trial_key=trial.key, step=2, phase="edit", seconds=3.0, count=2)]
    store.write_round(trial.key, EvalRound(step=2, rows=rows, timing=timing))
    store.finish(trial.key, step=2)
    return trial.key


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write(tmp_path, seed, "plain", 0.25)
        write(tmp_path, seed, "wrapped", 0.5)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> tuple[int, str, str]:
    code = main(["--root", str(root), *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_show_prints_arms_by_rounds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, root, "show", "toy")
    assert code == 0
    assert "toy: retained, mean [95% interval]; 4 of 4 trials done" in out
    assert [line.split()[:5] for line in out.splitlines() if "[." in line] == [
        ["plain", "2", ".438", "[.06,", ".90]"],
        ["wrapped", "2", ".688", "[.14,", ".97]"],
    ]
    assert "1.500   3.0 s" in out


def test_show_writes_csv_and_json_and_a_plot(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, root, "show", "toy", "--by", "trial", "--format", "csv", "--plot", str(root / "p.png"))
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(r["arm"], r["rel"], r["seconds_per_edit"]) for r in rows][:2] == [
        ("plain seed=0", "0.4375", "1.5"),
        ("plain seed=1", "0.4375", "1.5"),
    ]
    assert (root / "p.png").is_file()
    _, out, _ = call(capsys, root, "show", str(root / "results" / "toy"), "--phase", "immediate", "--format", "json")
    assert [r["rel_n"] for r in json.loads(out)] == [1, 1]  # only record 2 was measured right after it was written


def test_compare_pairs_differences(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, root, "compare", "toy", "--at", "2", "--format", "markdown")
    assert code == 0
    assert "| plain | 2 | .438 [.06, .90] | – |" in out
    assert "| wrapped | 2 | **.688 [.14, .97]** | +.250 [−.19, +.69]† |" in out
    assert out.rstrip().endswith("bold: the highest mean; † not shown at 5 %.")
    assert "n = 2 records, seeds: 2; protocol: teacher_forced (version " in out
    code, _, err = call(capsys, root, "compare", "toy", "--at", "7")
    assert (code, "nothing was measured at 7 edits" in err) == (2, True)
    code, _, err = call(capsys, root, "compare", "toy", "--by", "lam")
    assert (code, "no trial sweeps 'lam'" in err) == (2, True)


def test_a_table_for_a_paper_compiles_whatever_names_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "50%_a&b#{c}$d~e^f\\g<h>"
    for seed in (0, 1):
        write(tmp_path, seed, "plain", 0.25)
        write(tmp_path, seed, odd, 0.5)
    _, out, _ = call(capsys, tmp_path, "compare", "toy", "--to", "plain", "--format", "latex")
    table = out.replace(r"\$", "").split("\\midrule\n")[1]
    assert (
        r"50\%\_a\&b\#\{c\}d\textasciitilde{}e\textasciicircum{}f\textbackslash{}g\textless{}h\textgreater{} & 2"
        in table
    )
    assert r"\textbf{.688 [.14, .97]} & +.250 [$-$.19, +.69]$^{\dagger}$" in table
    assert r"\caption{retained at 2 edits; mean [95\% interval]" in out
    for begin, end in (("table", "table"), ("tabular", "tabular")):
        assert out.count(rf"\begin{{{begin}}}") == out.count(rf"\end{{{end}}}") == 1
    if LATEX is None:
        return
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + out + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        [LATEX, "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_truncated_table_and_unknown_sweep_say_what_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((root / "results" / "toy").glob("*/probes-*.parquet"))
    path.write_bytes(path.read_bytes()[:100])
    code, out, err = call(capsys, root, "show", "toy")
    assert (code, "3 of 4 trials done" in out) == (3, True)
    assert f" {path.parent.name}: {path.parent}: {path.name} is not as written" in err
    assert "1 damaged trial is left out; `raysweep run toy` makes what it can, with --repair" in err
    code, _, err = call(capsys, root, "show", "tpy")
    assert (code, "did you mean: toy?" in err) == (2, True)


def test_analyze_without_ray_sessions_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, root, "analyze", "toy")
    assert (code, "no Ray session lies in" in err) == (2, True)


def test_run_refuses_unwritable_storage_before_any_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "full").write_text("a file is in the way")
    space = root / "tiny.yaml"
    space.write_text(
        "sweep: tiny\nbase: {model: embedded, data: {name: world, size: 2}, protocol: {rounds: [0, 2]}}\n"
        'arms: {none: {editor: "null"}}\n'
    )
    code, out, err = call(capsys, root, "run", str(space), "--storage", str(root / "full"))
    assert (code, out) == (2, "")
    assert f"error[E-STORE] results belong into {root / 'full' / 'tiny'}, but {root / 'full'} is no folder" in err
    assert "--root, RAYSWEEP_ROOT or `run --storage` choose another place" in err


@pytest.mark.slow
def test_edit_runs_in_process_and_is_never_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["edit", "--editor", "null", "--edits", "2", "--rounds", "0,2", "--seed", "1"]
    code, out, _ = call(capsys, tmp_path, *flags)
    assert code == 0
    assert "[1/1] null: 2/2 edits" in out
    store = ResultStore(tmp_path / "results" / "edit")
    (key,) = store.keys()
    assert store.status(key).state is State.DONE
    assert store.about(key).trial["seed"] == 1
    code, out, _ = call(capsys, tmp_path, *flags)
    assert (code, "1 trials done" in out, "2/2 edits" in out) == (0, True, False)
    code, out, _ = call(capsys, tmp_path, *flags, "--set", "protocol.keep=edited")
    assert (code, "note: 1 finished trial has kept no edited model" in out) == (0, True), "the key is the same"
    code, _, err = call(capsys, tmp_path, "export", "edit", "null", "--to", str(tmp_path / "model"))
    assert (code, f"trial {key} kept no edited model, so it must be run again" in err) == (2, True)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_edit_makes_again_what_is_missing_and_on_demand_what_was_altered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["edit", "--editor", "null", "--edits", "2", "--rounds", "0,2"]
    assert call(capsys, tmp_path, *flags)[0] == 0
    (folder,) = (tmp_path / "results" / "edit").glob("*/probes-000002.parquet")
    whole = folder.read_bytes()
    folder.unlink()
    code, out, _ = call(capsys, tmp_path, *flags)
    assert (code, "0 trials done" in out, folder.read_bytes() == whole) == (0, True, True)
    folder.write_bytes(whole[:-1] + b"?")
    code, out, err = call(capsys, tmp_path, *flags)
    assert (code, "2/2 edits" in out) == (3, False)
    assert f"damaged: null {folder.parent.name}: {folder.parent}: probes-000002.parquet is not as written" in err
    code, out, err = call(capsys, tmp_path, "show", "edit")
    assert (code, out) == (3, "edit: no undamaged trial has a round\n")
    assert "1 damaged trial is left out" in err
    assert call(capsys, tmp_path, *flags, "--repair")[0] == 0
    assert folder.read_bytes() == whole
    (folder.parent / "trial.json").write_text("{}")
    assert call(capsys, tmp_path, "show", "edit")[0] == 3
    assert call(capsys, tmp_path, *flags)[0] == 0
    with DriverLock(Folder(tmp_path / "results" / "edit")):
        code, out, err = call(capsys, tmp_path, *flags)
    assert (code, out) == (2, "")
    assert "error[E-BUSY] " in err
    assert f"is being run by process {os.getpid()} of " in err


def test_a_second_run_is_told_who_runs_the_sweep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = root / "tiny.yaml"
    space.write_text(
        "sweep: tiny\nbase: {model: embedded, data: {name: world, size: 2}, protocol: {rounds: [0, 2]}}\n"
        'arms: {none: {editor: "null"}}\n'
    )
    with DriverLock(Folder(root / "results" / "tiny")):
        code, _, err = call(capsys, root, "run", str(space))
    assert code == 2
    assert "error[E-BUSY] " in err
    assert f"tiny is being run by process {os.getpid()} of " in err
    assert "--anyway" in err


def test_edit_runs_a_path_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("edit", "--editor", "null", "--edits", "4", "--rounds", "0,4", "--seed", "3")
    path = ("--set", "arms.null.wrap={name: prune, base: {path: [1.2, 2, e]}}")
    code, out, _ = call(capsys, tmp_path, *flags, *path)
    assert code == 0
    assert "sweep edit: 3 trials in 1 edit group, 4 edits in all, 1 arm; 0 trials done" in out
    assert [f"[{i}/3] null base={b}: 4/4 edits" in out for i, b in ((1, "1.2"), (2, "2"), (3, "e"))] == [True] * 3
    assert out.count("edits/s") == 1, "the others' edits were made in the first one's time"
    assert " shared" in out
    code, out, _ = call(capsys, tmp_path, *flags, *path)
    assert (code, "3 trials done" in out, "edits/s" in out) == (0, True, False)


def test_edit_speaks_the_reference_s_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import raysweep.cli.edit as edit

    class StopError(Exception):
        pass

    trees: list[dict[str, Any]] = []

    def keep(source: Any, *_: Any) -> None:
        trees.append(source.tree)
        raise StopError

    monkeypatch.setattr(edit, "examine_sweep", keep)
    monkeypatch.chdir(tmp_path)
    words = "--data ZsRE --data-path z.json --simie --lam 5 --init-model --solver chol64 --edits 20 --batch-size 4"
    call(capsys, tmp_path, "edit", "--editor", "FT-M", *words.split())
    (tree,) = trees
    wrap = {"name": "simie", "lam": 5.0, "mode": "init", "backend": "chol64"}
    assert tree["arms"] == {"ft+simie": {"editor": {"name": "ft", "objective": "target_new"}, "wrap": wrap}}
    assert tree["base"]["data"] == {"name": "zsre", "size": 20, "path": str(tmp_path / "z.json")}
    assert tree["base"]["protocol"] == {"batch_size": 4, "rounds": [0, 4, 8, 12, 16, 20]}


@pytest.mark.parametrize(("edits", "batch"), [(1, 1), (3, 1), (7, 2), (100, 10), (5, 9)])
def test_default_rounds_fit_the_batches(edits: int, batch: int) -> None:
    found = rounds_of("", edits, batch)
    assert found[0] == 0
    assert all(r % batch == 0 for r in found)
    assert found == sorted(set(found))
