"""What a run does around Ray: which trials it picks, what it deletes, what it says of storage that went away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from results_helpers import make_round, make_trial, write_trial

from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.sweep_schema import ArmSpec, SweepSpec, WrittenEditor
from raysweep.errors import BusyError, NewerFormatError, RunFailedError, StoreError
from raysweep.reports.standing import missing_lines
from raysweep.results.drivers import DriverLock
from raysweep.results.outcome import SweepOutcome
from raysweep.results.state import State
from raysweep.results.store import ResultStore
from raysweep.tune import launch
from raysweep.tune.launch import run_sweep
from raysweep.tune.pending import pending, trial_states
from raysweep.tune.sweep_run import RunOptions, SweepRun
from raysweep.workspace import Workspace

SEEDS = range(4)


@pytest.fixture
def plan() -> Plan:
    trials = [PlannedTrial("memit", {"seed": seed}, make_trial(seed)) for seed in SEEDS]
    arms = (ArmSpec(name="memit", editor=WrittenEditor(name="memit")),)
    return Plan(SweepSpec(name="s", arms=arms), tuple(trials))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path)


@pytest.fixture
def store(workspace: Workspace) -> ResultStore:
    return ResultStore(workspace.results("s"))


class Fake:
    """Stands for Ray: writes each trial that it is given, but for what is done to the storage meanwhile."""

    def __init__(self, store: ResultStore) -> None:
        self.store = store
        self.rounds: list[list[int]] = []
        self.meanwhile: Callable[[], Any] = lambda: None
        self.interrupt_after = 99

    def __call__(self, run: SweepRun, todo: Sequence[str]) -> bool:
        table = run.table
        self.rounds.append([table[key].trial.seed for key in todo])
        for number, key in enumerate(todo):
            if number == self.interrupt_after:
                return True
            if number == 2:
                self.meanwhile()
            write_trial(ResultStore(self.store.folder.base), table[key].trial)
        return False


@pytest.fixture
def fake(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(store)
    monkeypatch.setattr(launch, "_run_in_ray", made)
    return made


def said(outcome: SweepOutcome) -> str:
    return "\n".join(missing_lines(outcome, {}, dict.fromkeys(outcome.absent, "memit")))


def test_a_complete_sweep_ends_with_0_and_is_never_run_again(plan: Plan, workspace: Workspace, fake: Fake) -> None:
    assert run_sweep(plan, workspace).exit_code == 0
    outcome = run_sweep(plan, workspace)
    assert (outcome.exit_code, len(outcome.done), said(outcome)) == (0, 4, "")
    assert fake.rounds == [[0, 1, 2, 3]]


@pytest.mark.parametrize("take", ["removed", "moved"])
def test_storage_taken_away_ends_with_3_and_a_rerun_makes_what_is_missing(
    plan: Plan, workspace: Workspace, store: ResultStore, fake: Fake, take: str
) -> None:
    folder = Path(store.folder.base)
    fake.meanwhile = lambda: shutil.rmtree(folder) if take == "removed" else folder.rename(folder.with_name("moved"))
    outcome = run_sweep(plan, workspace)
    assert (outcome.exit_code, outcome.lost, len(outcome.done), len(outcome.absent)) == (3, True, 2, 2)
    assert f"{store.folder.location} was removed, moved or replaced while the sweep ran" in said(outcome)
    assert "not begun: memit (2 trials)" in said(outcome)
    fake.meanwhile = lambda: None
    outcome = run_sweep(plan, workspace)
    assert (outcome.exit_code, len(outcome.done), outcome.lost) == (0, 4, False)
    assert fake.rounds == [[0, 1, 2, 3], [0, 1]]


def test_storage_that_stays_away_is_said_too(
    plan: Plan, workspace: Workspace, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(run: SweepRun, todo: Sequence[str]) -> bool:
        shutil.rmtree(run.store.folder.base)
        return False

    monkeypatch.setattr(launch, "_run_in_ray", run)
    outcome = run_sweep(plan, workspace)
    assert (outcome.exit_code, outcome.lost, len(outcome.absent)) == (3, True, 4)
    assert not store.folder.exists(), "nothing is written where nothing was"


def test_a_missing_file_is_made_again_and_an_altered_one_on_demand(
    plan: Plan, workspace: Workspace, store: ResultStore, fake: Fake
) -> None:
    run_sweep(plan, workspace)
    folders = [Path(store.folder.base) / trial.key for trial in plan.trials]
    (folders[0] / "probes-000002.parquet").unlink()
    (folders[1] / "trial.json").write_text("{}")
    shutil.copy(folders[3] / "probes-000002.parquet", folders[2] / "probes-000002.parquet")
    outcome = run_sweep(plan, workspace)
    assert fake.rounds[1:] == [[0, 1]]
    assert (outcome.exit_code, len(outcome.done), outcome.altered) == (3, 3, (plan.trials[2].key,))
    assert f"damaged: trial {plan.trials[2].key}: " in said(outcome)
    assert "1 finished trial has altered tables; add --repair to the same command" in said(outcome)
    outcome = run_sweep(plan, workspace, options=RunOptions(repair=True))
    assert (fake.rounds[2:], outcome.exit_code) == ([[2]], 0)


def test_a_newer_raysweep_s_trial_and_plan_are_left_alone(
    plan: Plan, workspace: Workspace, store: ResultStore, fake: Fake
) -> None:
    run_sweep(plan, workspace)
    done = Path(store.folder.base) / plan.trials[0].key / "DONE.json"
    done.write_text(json.dumps({"format": 99}))
    outcome = run_sweep(plan, workspace, options=RunOptions(repair=True, retry=True))
    assert (outcome.exit_code, len(fake.rounds), json.loads(done.read_text())) == (3, 1, {"format": 99})
    assert "has format 99; this raysweep reads up to" in said(outcome)
    text = json.dumps({"format": 99})
    (Path(store.folder.base) / "plan.json").write_text(text)
    with pytest.raises(NewerFormatError):
        run_sweep(plan, workspace)
    assert (Path(store.folder.base) / "plan.json").read_text() == text


def test_an_interrupted_run_lists_what_was_not_begun(
    plan: Plan, workspace: Workspace, store: ResultStore, fake: Fake
) -> None:
    fake.interrupt_after = 1
    outcome = run_sweep(plan, workspace)
    assert (outcome.exit_code, outcome.interrupted, len(outcome.done)) == (130, True, 1)
    assert said(outcome) == "not begun: memit (3 trials)\ninterrupted; run the same command again to go on"
    begun = plan.trials[2]
    store.begin(begun.trial, arm="memit", point={}, provenance={})
    store.write_round(begun.key, make_round(begun.trial, 0))
    assert store.status(begun.key).state is State.INTERRUPTED
    states = trial_states(store, {t.key: t for t in plan.trials})
    assert [plan.trials[i].key for i in (2, 1, 3)] == pending(states), "begun ones first"


def test_what_has_no_end_is_run_once_more(
    plan: Plan, workspace: Workspace, fake: Fake, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def run(run: SweepRun, todo: Sequence[str]) -> bool:
        calls.append(len(todo))
        return fake(run, todo[:2] if len(calls) == 1 else todo)

    monkeypatch.setattr(launch, "_run_in_ray", run)
    assert run_sweep(plan, workspace).exit_code == 0
    assert calls == [4, 2]
    assert "2 trials have no end; running them once more" in caplog.text


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_ray_that_gives_up_is_started_once_more(
    deaths: int, plan: Plan, workspace: Workspace, fake: Fake, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, its memory monitor's kill of a process ends all of Tune; so does a lost object."""
    calls: list[int] = []

    def run(run: SweepRun, todo: Sequence[str]) -> bool:
        calls.append(len(todo))
        fake(run, todo[:1] if len(calls) <= deaths else todo)
        if len(calls) <= deaths:
            raise RuntimeError(
                "Caught unexpected exception: OutOfMemoryError: Task was killed due to the node running low on memory."
            )
        return False

    monkeypatch.setattr(launch, "_run_in_ray", run)
    if deaths == 1:
        assert run_sweep(plan, workspace).exit_code == 0
        assert "3 trials have no end; running them once more" in caplog.text
    else:
        with pytest.raises(
            RunFailedError, match="Ray gave up: Caught unexpected exception: OutOfMemoryError"
        ) as raised:
            run_sweep(plan, workspace)
        assert raised.value.hint == "run the same command again"
        deaths = 0
        assert run_sweep(plan, workspace).exit_code == 0, "what was done counts, and the rest is made"
    assert calls[:2] == [4, 3]
    assert "Ray gave up (Caught unexpected exception: OutOfMemoryError" in caplog.text


def test_fresh_deletes_all_or_nothing(
    plan: Plan, workspace: Workspace, store: ResultStore, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(plan, workspace)
    before = sorted(store.folder.files(recursive=True))
    rename, last = Path.rename, plan.trials[-1].key

    def refuse(path: Path, target: Path) -> Path:
        if path.name == last:
            raise PermissionError(1, "Operation not permitted", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match=rf"cannot delete .*/{last}: .*; nothing was deleted"):
        run_sweep(plan, workspace, options=RunOptions(fresh=True))
    assert sorted(store.folder.files(recursive=True)) == before
    assert len(fake.rounds) == 1, "and nothing was run"
    monkeypatch.setattr(Path, "rename", rename)
    assert run_sweep(plan, workspace, options=RunOptions(fresh=True)).exit_code == 0
    assert fake.rounds == [[0, 1, 2, 3]] * 2


def test_a_second_driver_stops_before_it_changes_anything(
    plan: Plan, workspace: Workspace, store: ResultStore, fake: Fake
) -> None:
    run_sweep(plan, workspace)
    with DriverLock(store.folder):
        before = sorted(store.folder.files(recursive=True))
        for options in (RunOptions(), RunOptions(fresh=True), RunOptions(repair=True)):
            with pytest.raises(BusyError, match="is being run by process"):
                run_sweep(plan, workspace, options=options)
        assert sorted(store.folder.files(recursive=True)) == before
        assert run_sweep(plan, workspace, options=RunOptions(anyway=True)).exit_code == 0
