"""Parts of a sweep beside each other in one folder of results, and a run that SIGUSR1 stops; Ray is stood for by a fake."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from results_helpers import make_trial, write_trial

from raysweep.config.parts import Part
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.sweep_schema import ArmSpec, SweepSpec, WrittenEditor
from raysweep.errors import BusyError
from raysweep.reports.standing import missing_lines
from raysweep.results.proposals import PROPOSALS
from raysweep.results.store import ResultStore
from raysweep.tune import launch, outcome
from raysweep.tune.launch import run_sweep
from raysweep.tune.sweep_run import RunOptions, SweepRun
from raysweep.workspace import Workspace


def plan_of(seeds: int, proposal_cache_key: str = "") -> Plan:
    trials = [
        PlannedTrial("memit", {"seed": seed}, make_trial(seed), proposal_cache_key=proposal_cache_key)
        for seed in range(seeds)
    ]
    arms = (ArmSpec(name="memit", editor=WrittenEditor(name="memit")),)
    return Plan(SweepSpec(name="s", arms=arms), tuple(trials))


class Fake:
    """Stands for Ray: writes each trial that it is given."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.before_each: Callable[[SweepRun], object] = lambda run: None

    def __call__(self, run: SweepRun, todo: Sequence[str]) -> bool:
        self.runs.append([run.table[key].trial.seed for key in todo])
        for key in todo:
            self.before_each(run)
            write_trial(run.store, run.table[key].trial)
        return False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(launch, "_run_in_ray", made)
    return made


@pytest.fixture
def plan() -> Plan:
    return plan_of(5)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path)


def part(number: int, total: int = 2) -> RunOptions:
    return RunOptions(part=Part(number, total))


def listed(workspace: Workspace) -> int:
    return pq.read_table(Path(workspace.results("s")) / "trials.parquet").num_rows


def test_parts_make_the_sweep_and_a_plain_run_finds_it_done(plan: Plan, workspace: Workspace, fake: Fake) -> None:
    for number in (1, 2):
        ended = run_sweep(plan, workspace, options=part(number))
        assert (ended.exit_code, missing_lines(ended, {}, {})) == (0, [])
    assert fake.runs == [[0, 2, 4], [1, 3]]
    assert listed(workspace) == 5
    assert (len(run_sweep(plan, workspace).done), len(fake.runs)) == (5, 2)
    saved = ResultStore(workspace.results("s")).plan()
    assert saved is not None
    assert len(saved.trials) == 5, "plan.json has the whole plan"


def test_a_part_runs_beside_another_but_not_beside_itself_or_the_whole(
    plan: Plan, workspace: Workspace, fake: Fake
) -> None:
    def meanwhile(run: SweepRun) -> None:
        fake.before_each = lambda run: None
        run_sweep(plan, workspace, options=part(2))
        for other in (part(1), part(1, 3), RunOptions()):
            with pytest.raises(BusyError):
                run_sweep(plan, workspace, options=other)

    fake.before_each = meanwhile
    assert run_sweep(plan, workspace, options=part(1)).exit_code == 0
    assert listed(workspace) == 5


def test_more_parts_than_trials_leave_some_with_nothing_to_do(plan: Plan, workspace: Workspace, fake: Fake) -> None:
    ended = run_sweep(plan, workspace, options=part(6, 6))
    assert (ended.exit_code, ended.done, fake.runs) == (0, (), [])


def test_the_table_of_trials_lacks_nobody_who_ended_while_it_was_written(
    plan: Plan, workspace: Workspace, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(plan, workspace, options=part(1))
    store, late = ResultStore(workspace.results("s")), [t.trial for t in Part(2, 2).trials_of(plan)]

    class Slow(outcome.Sweep):
        """A table that is outdated when it is written, for as long as there is somebody who ends."""

        def write_trials(self) -> None:
            super().write_trials()
            if late:
                write_trial(store, late.pop())

    monkeypatch.setattr(outcome, "Sweep", Slow)
    run_sweep(plan, workspace, options=part(1))
    assert listed(workspace) == 5


def test_proposals_go_with_the_last_part_that_uses_them(workspace: Workspace, fake: Fake) -> None:
    plan = plan_of(4, proposal_cache_key="k")
    kept = Path(workspace.results("s")) / PROPOSALS / "k"
    kept.mkdir(parents=True)
    run_sweep(plan, workspace, options=part(1))
    assert kept.exists()
    run_sweep(plan, workspace, options=part(2))
    assert not kept.exists()


def test_sigusr1_stops_with_exit_code_3_and_says_how_to_go_on(plan: Plan, workspace: Workspace, fake: Fake) -> None:
    count = iter(range(9))

    def stop(run: SweepRun) -> None:
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    fake.before_each = stop
    ended = run_sweep(plan, workspace)
    assert (ended.exit_code, len(ended.done), ended.time_up) == (3, 2, True)
    assert (
        missing_lines(ended, {}, {})[-1]
        == "stopped by SIGUSR1, for the time limit; run the same command again to go on"
    )
    ended = run_sweep(plan, workspace)
    assert (ended.exit_code, len(ended.done), ended.time_up) == (0, 5, False)


def test_a_part_s_lock_names_its_trials(plan: Plan, workspace: Workspace, fake: Fake) -> None:
    seen: list[object] = []
    fake.before_each = lambda run: seen.append(run.lock.keys)
    run_sweep(plan, workspace, options=part(2))
    assert seen[0] == tuple(t.key for t in Part(2, 2).trials_of(plan))
