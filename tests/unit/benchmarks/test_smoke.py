"""Each benchmark at its smallest: it runs, ours and plain agree, and no time is judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks import (
    belief,
    commands,
    coverage,
    driver,
    editing,
    free,
    lambda_path,
    launches,
    lifetime,
    measure,
    quirks,
    scale,
    scaling,
    simie,
    store,
    sweep,
    tracing,
    whole,
)
from raysweep.config.planned_trial import Plan
from raysweep.errors import ProblemsError, RunFailedError
from raysweep.results.runner import run_trial
from raysweep.results.store import ResultStore
from raysweep.tune import launch
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

VALUE = "value: {steps: 3, lr: 0.5, weight_decay: 1.0e-3, clamp: 4, kl: 0.0625}"
MOMENTS = "moments: {text: {name: dataset, tokens: 1500}, width: 64, damping: 0.01}"
UNDAMPED = "moments: {text: {name: dataset, tokens: 1500}, width: 64}"
HPARAMS = {
    "ft": ["layers: [1]", "objective: target_new", "steps: 3", "lr: 5.0e-3"],
    "rome": ["layers: [1]", VALUE, "contexts: {lengths: [[6, 2]]}", MOMENTS],
    "memit": ["layers: [0, 1]", VALUE, "contexts: {lengths: [[6, 2]]}", MOMENTS, "moment_weight: 10"],
    "alphaedit": ["layers: [0, 1]", VALUE, "contexts: {lengths: [[6, 2]]}", UNDAMPED, "ridge: 1"],
    "grace": ["layer: 2", "steps: 3"],
    "wise": ["layer: 2", "steps: 3", "contexts: {lengths: [[4, 1]]}"],
    "simie": ["lam: 1.0"],
}


def test_editing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for component, lines in HPARAMS.items():
        (tmp_path / "hparams" / component).mkdir(parents=True)
        (tmp_path / "hparams" / component / "embedded.yaml").write_text("\n".join(lines) + "\n")
    out = tmp_path / "numbers.json"
    editors = ["ft-m", "rome", "memit", "alphaedit"]
    memories = ["grace", "wise"]
    asked = ["--edits", "1", "--root", str(tmp_path), "--json", str(out)]
    rows = editing.main([*asked, *(word for name in [*editors, *memories] for word in ("--editor", name))])
    assert [r["editor"] for r in rows] == [*(e + w for e in editors for w in ("", "+simie")), *memories]
    for row in rows:
        # 1e-5 as a rule; Adam may turn one entry whose gradient is nought but rounding the other way (FT: 1e-3)
        assert row["rel diff"] < 5e-3
        assert row["steps"] == 3 or row["editor"] == "grace"
        assert row["answers differ"].startswith("0/")
        assert row["edit s"] > 0
    assert json.loads(out.read_text())["rows"][0]["edits"] == 1
    assert "| rel diff" in capsys.readouterr().out


def test_free(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    (row,) = free.main(["--prompts", "3", "--tokens", "6", "--repeat", "1", "--json", str(out)])
    assert row["equal"] == "3/3"
    assert json.loads(out.read_text())["rows"][0]["tokens"] == 6


def test_editing_asks_for_the_published_objectives_and_for_hparams() -> None:
    parsed = editing.arms(["ft-l", "rome"], ["none", "simie"])
    assert list(parsed) == ["ft-l", "ft-l+simie", "rome", "rome+simie"]
    assert parsed["ft-l+simie"] == {"editor": {"name": "ft", "objective": "prompt_last"}, "wrap": "simie"}


@pytest.mark.parametrize("mode", ["sequential", "init"])
def test_simie_back_ends_agree_with_a_direct_solve(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = simie.main(["--size", "32x8", "--keys", "4", "--updates", "6", "--mode", mode])
    assert [(r["held"], r["backend"]) for r in rows] == [(h, b) for h in (0, 64) for b in simie.BACKENDS]
    for row in rows:
        assert row["error"] < (1e-2 if row["backend"] == simie.REFERENCE else 1e-6)
    assert capsys.readouterr().out.count("| 32 ") == 8


def test_launches(capsys: pytest.CaptureFixture[str]) -> None:
    rows = launches.main(["--editor", "ft", "--blocks", "3"])
    per = ["step", "edit", "SimIE update", *launches.ARTIFACTS.values(), "batch of 12", "question"]
    what = ["ft"] * 3 + [*launches.ARTIFACTS] + ["evaluation"] * 2
    assert [(r["what"], r["per"]) for r in rows] == list(zip(what, per, strict=True))
    assert rows[0]["uploads"] == 0
    assert rows[1]["launches"] > 20 * rows[0]["launches"] > rows[0]["a block"] > 0
    assert "| a block |" in capsys.readouterr().out


def test_simie_knows_every_back_end() -> None:
    from raysweep.editors.wrappers.simie.config import SimIEConfig

    all_of_them = get_args(SimIEConfig.model_fields["backend"].annotation)
    assert set(all_of_them) == {*simie.BACKENDS, "closed64"}  # which makes no updates


def test_driver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_ray(plan: Plan, workspace: Workspace, *, options: Any, watcher: Any) -> launch.SweepOutcome:
        watcher.begin()
        for trial in plan.trials:
            watcher.started(trial.key)
            watcher.round(trial.key, {"step": 1, "done": True})
            watcher.stopped(trial.key)
        return launch.SweepOutcome(tuple(t.key for t in plan.trials), {}, (), False, "")

    monkeypatch.setattr(launch, "run_sweep", without_ray)
    rows = driver.main(["--trials", "3", "--marks", "1,2"])
    assert [row["trials ended"] for row in rows] == [1, 2, 3, 3]
    assert rows[0]["driver MB"] > 50
    assert "MB a trial" in rows[2]
    assert "| driver MB" in capsys.readouterr().out


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(commands, "COMMANDS", ("--version",))
    rows = commands.main(["--trials", "2", "--rounds", "1", "--records", "3", "--repeats", "1"])
    assert [row["command"] for row in rows] == ["--version", "show many", "show many", "compare many"]
    assert [row["files"] for row in rows[1:]] == [3, 6, 6]
    assert "| command" in capsys.readouterr().out


def test_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_ray(plan: Plan, workspace: Workspace, **options: Any) -> launch.SweepOutcome:
        return launch.SweepOutcome(tuple(t.key for t in plan.trials), {}, (), False, "")

    monkeypatch.setattr(launch, "run_sweep", without_ray)
    rows = sweep.main(["--trials", "2", "--edits", "1"])
    assert [r["trials"] for r in rows] == [2, 2]
    assert "in process" in capsys.readouterr().out


def test_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides make the same trials; the plain way makes one of the two λ and counts it twice."""
    asked: list[Plan] = []

    def without_ray(plan: Plan, workspace: Workspace, **options: Any) -> launch.SweepOutcome:
        asked.append(plan)
        return launch.SweepOutcome(tuple(t.key for t in plan.trials), {}, (), False, "")

    monkeypatch.setattr(launch, "run_sweep", without_ray)
    cheap = ["--set", "arms.rome.editor.value.steps=2", "--set", "arms.rome+simie.editor.value.steps=2"]
    options = ["--editor", "rome", "--lams", "1,10", "--edits", "2", "--rounds", "1", "--threads", "1", *cheap]
    mine, plain = whole.main([*options, "--concurrent", "1", "--root", str(tmp_path)])
    assert (mine["trials"], plain["trials"]) == (3, 3)
    assert len(asked[1].edit_groups) == 2
    assert plain["edit s"] > 0 < plain["measure s"]
    assert capsys.readouterr().out.count(" s per trial") == 2


def test_lambda_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--editor", "null", "--path", "wrap.prune.base", "--values", "1.2,2,e", "--edits", "2", "--rounds", "2"]
    one, path = lambda_path.main([*asked, "--root", str(tmp_path), "--immediate"])
    assert (one["values"], path["values"], path["rows"]) == (1, 3, "same")
    assert path["measure s"] > 0
    assert "| x apart" in capsys.readouterr().out


def test_lambda_path_refuses_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=r"wrap\.simie\.mode' has no path"):
        lambda_path.main(["--editor", "null", "--path", "wrap.simie.mode", "--values", "init", "--root", str(tmp_path)])


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def in_process(plan: Plan, workspace: Workspace) -> launch.SweepOutcome:
        (job,) = plan.trials
        reports = list(run_trial(job, make_deps(workspace), ResultStore(workspace.results(plan.sweep.name))))
        return launch.SweepOutcome((job.key,), {}, (), False, reports[-1].error)

    monkeypatch.setattr(launch, "run_sweep", in_process)
    asked = ["--editor", "null", "--wrap", "", "--root", str(tmp_path)]
    (row,) = scaling.main([*asked, "--shards", "1", "--edits", "2"])
    assert (row["x one"], row["rows"]) == (1.0, "same")
    with pytest.raises(RunFailedError, match="cannot be computed apart"):
        scaling.main([*asked, "--shards", "2", "--edits", "2"])
    rows = scaling.main([*asked, "--growth", "--at", "2,4", "--window", "2"])
    assert [r["edits before"] for r in rows] == [2, 4]
    assert capsys.readouterr().out.count("| x first, per pass |") == 1


def test_tracing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model reads who it is about from the subject at first, and at the end from the last token."""
    rows = tracing.main(["--records", "60", "--root", str(tmp_path)])
    assert [r["after block"] for r in rows] == [0, 1, 2, 3]
    assert rows[0]["whole subject"] == 1 > rows[-1]["whole subject"]
    assert rows[0]["prompt's last token"] == 0 < rows[-1]["prompt's last token"]
    assert "| pairs" in capsys.readouterr().out


def test_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = store.main(
        ["--trials", "2", "--rounds", "2", "--records", "3", "--snapshot", "1", "--folder", str(tmp_path)]
    )
    assert [r["count"] for r in rows if r["what"].startswith("write a")] == [4, 3]
    assert next(r["size"] for r in rows if r["what"] == "read all rounds") == "36 rows"
    assert list(tmp_path.iterdir()) == []


def test_belief(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"lines": 2500, "facts": 300, "points": 4, "objects": 160, "cooccurrences": 40}
    argv = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    rows = belief.main([*argv, "--folder", str(tmp_path)])
    assert [r["stage"] for r in rows[-2:]] == ["points", "lines"]
    assert rows[-2]["what"].startswith("4 points")
    assert all(row["peak MiB so far"] > 0 for row in rows)
    assert "| peak MiB so far |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_table_has_the_machine_and_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    about = measure.machine()
    text = measure.show("things", about, ["name", "s"], [{"name": "a", "s": 0.12345}, {"name": "b", "s": float("nan")}])
    assert text == capsys.readouterr().out.rstrip("\n")
    assert about["torch"] in text
    assert text.splitlines()[-2:] == ["| a    | 0.123 |", "| b    | –     |"]


def test_quirks(tmp_path: Path) -> None:
    """A row without a model, one of a recorded model, and every flag that the rest would set is accepted by the planner."""
    rows = quirks.main(["--only", "Q14", "Q32", "--root", str(tmp_path), "--edits", "4"])
    assert [r["quirk"] for r in rows] == ["Q14", "Q32", "Q32"]
    assert all(r["change"] > 0 for r in rows)
    world = quirks.World(Workspace(tmp_path), 4)
    for _, editor, wrap, point in quirks.WORLD:
        lam = {k: v for k, v in point.items() if k.endswith(".lam")}
        assert world.trial(editor, wrap, point).key != world.trial(editor, wrap, lam).key


def test_coverage_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = coverage.main(["--scale", "0.001"])
    assert capsys.readouterr().out == "\n".join(lines) + "\n"
    assert [line.count("|") for line in lines[:3]] == [len(coverage.COLUMNS) + 1] * 3
    assert len(lines) == 2 + len(coverage.ROWS) + 4
    with pytest.raises(ValueError, match="no population is called 'x'"):
        coverage.cells(coverage.np.random.default_rng(0), "x", 5, 1, (0.0,), repetitions=1)


@pytest.mark.slow
def test_lifetime(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is killed in its last tenth ends like one that is not; the benchmark itself compares."""
    rows = lifetime.main(["--edits", "60", "--width", "16"])
    assert [r["edits"] for r in rows] == [1, 18, 36, 54, 60]
    assert all(r["edit cpu ms"] > 0 and r["MB"] > 50 for r in rows[1:])
    out = capsys.readouterr().out
    assert "are equal, byte for byte" in out
    assert "| x first" in out


def test_lifetime_has_a_trial_for_each_editor(tmp_path: Path) -> None:
    lifetime.write_model(tmp_path / "tiny", 16)
    lifetime.write_facts(tmp_path / "facts.json", 20)
    for editor in lifetime.EDITORS:
        job, _ = lifetime.planned(tmp_path, 20, editor, "", lifetime.marks(20))
        assert (job.trial.editor.name, job.trial.data.size) == (editor, 20)
        assert job.trial.protocol.rounds == (1, 6, 12, 18, 20)


@pytest.mark.ray
@pytest.mark.slow
def test_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the real shell; then the commands once more, on what is there."""
    rows = scale.main(["--trials", "4", "--marks", "1", "--keep", str(tmp_path / "work")])
    last = rows[-1]
    assert last["trials ended"] == 4
    assert last["driver MB"] > 50 < last["driver peak MB"]
    assert all(last[f"{kind} cpu s"] > 0 for kind in ("driver", "worker", "ray"))
    assert scale.main(["--trials", "4", "--commands", "--keep", str(tmp_path / "work")]) == []
    out = capsys.readouterr().out
    assert out.count("| run, all done | 4 ") == 2
    assert "| the store " in out


BUSY = "import sys, time; held = b'x' * (60 << 20); sum(range(5_000_000)); print('ready', flush=True)"


@pytest.mark.parametrize("workers", [0, 1])
def test_scale_counts_the_processes_of_a_family(workers: int) -> None:
    """A family of its own: another test may have left a Ray, and so workers, to the process of the tests."""
    worker = f"subprocess.Popen(['ray::Trial', '-c', {BUSY + '; time.sleep(60)'!r}], executable=sys.executable)"
    parts = [BUSY, *(["import subprocess", worker] if workers else []), "time.sleep(60)"]
    with subprocess.Popen([sys.executable, "-c", "; ".join(parts)], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            assert [driver.stdout.readline() for _ in range(1 + workers)] == ["ready\n"] * (1 + workers)
            usage = scale.Usage(driver.pid)
            usage.look()
        finally:
            for pid in scale._family({driver.pid}):
                os.kill(pid, signal.SIGKILL)
    assert usage.megabytes["driver"] > 50
    assert usage.seconds("driver") > 0
    assert (usage.seconds("worker") > 0, usage.megabytes["worker"] > 50) == (bool(workers), bool(workers))
    assert usage.megabytes["ray"] == 0
