"""How a sweep is cut into Ray sessions, and what the driver keeps of them; Ray itself is not started here."""

from __future__ import annotations

import os
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raysweep.cli.display import Display
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.config.sweep_schema import ArmSpec, SweepSpec, WrittenEditor
from raysweep.results.provenance import provenance
from raysweep.results.ray_logs import TRIAL_KEY
from raysweep.results.state import State
from raysweep.results.store import ResultStore
from raysweep.rows import EvalRound
from raysweep.tune import launch, ray_nodes, sessions
from raysweep.tune.local_ray import STATE_PERIOD
from raysweep.tune.placement import NodeKind, Supply
from raysweep.tune.sessions import SESSION, WAVES, Sessions
from raysweep.workspace import Workspace


def make_plan(count: int) -> Plan:
    trials = [
        TrialSpec(
            study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name="null"),
            protocol=ProtocolSpec(rounds=(1,)), seed=seed,
        )
        for seed in range(count)
    ]  # fmt: skip
    spec = SweepSpec(name="s", arms=(ArmSpec(name="null", editor=WrittenEditor(name="null")),))
    return Plan(spec, tuple(PlannedTrial("null", {"seed": t.seed}, t) for t in trials))


class FakeTuner:
    """Stands for ``ray.tune.Tuner``: ends every trial of its search, keeps what Ray's does, and refers to itself."""

    made: list[weakref.ref[FakeTuner]] = []  # noqa: RUF012
    alive: list[int] = []  # noqa: RUF012
    suggested: list[list[str]] = []  # noqa: RUF012

    def __init__(self, trainable: Any, *, tune_config: Any, run_config: Any) -> None:
        self.search, self.callbacks = tune_config.search_alg, run_config.callbacks
        self.most, self.itself = tune_config.num_samples, self
        self.held = bytearray(1_000_000)
        FakeTuner.alive.append(sum(ref() is not None for ref in FakeTuner.made))
        FakeTuner.made.append(weakref.ref(self))
        FakeTuner.suggested.append([])

    def fit(self) -> list[Any]:
        results = []
        while isinstance(config := self.search.suggest(str(len(results))), dict):
            trial = SimpleNamespace(config=config, tuner=self)
            for callback in self.callbacks[2:]:  # after Ray's two loggers
                callback.on_trial_start(0, [], trial)
                result = {"step": 1, "done": True, "retained/rel": 0.5, "config": config, "big": bytearray(10_000)}
                callback.on_trial_result(0, [], trial, result)
                callback.on_trial_complete(0, [], trial)
            self.search.on_trial_complete(str(len(results)))
            FakeTuner.suggested[-1].append(str(config[TRIAL_KEY]))
            results.append(SimpleNamespace(error=None, config=config, trial=trial))
        assert len(results) <= self.most
        return results


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeTuner]]:
    monkeypatch.setattr(ray_nodes, "supply", lambda: Supply([NodeKind("n1", {"CPU": 2.0})]))
    monkeypatch.setattr(sessions.tune, "with_parameters", lambda trainable, **_: trainable)
    monkeypatch.setattr(sessions.tune, "with_resources", lambda trainable, _: trainable)
    monkeypatch.setattr(sessions.tune, "Tuner", FakeTuner)
    # which Tune changes, and by which it is known whether a signal came
    monkeypatch.setattr(sessions, "_watched_signals", lambda: nullcontext(SimpleNamespace(came=False)))
    yield FakeTuner
    for made in (FakeTuner.made, FakeTuner.alive, FakeTuner.suggested):
        made.clear()


def make_sessions(
    plan: Plan, tmp_path: Path, *, watcher: Any = None, halted: Any = lambda: False, concurrent: int = 0
) -> Sessions:
    workspace = Workspace(root=tmp_path)
    table = {t.key: t for t in plan.trials}
    options = launch.RunOptions(concurrent=concurrent)
    return Sessions(ResultStore(workspace.results("s")), table, plan.sweep, workspace, options, watcher, halted)


@pytest.mark.parametrize("count", [1, SESSION - 1, SESSION, SESSION + 1, 3 * SESSION + 2])
def test_every_trial_is_in_one_session_and_no_session_has_more_than_its_share(
    tmp_path: Path, tuner: type[FakeTuner], count: int
) -> None:
    plan = make_plan(count)
    keys = [t.key for t in plan.trials]
    assert not make_sessions(plan, tmp_path).run(keys)
    sizes = [len(part) for part in tuner.suggested]
    assert [key for part in tuner.suggested for key in part] == keys
    assert sizes == [SESSION] * (count // SESSION) + [count % SESSION] * (count % SESSION > 0)


def test_a_trial_whose_process_died_too_often_has_failed_with_ray_s_reason(
    tmp_path: Path, tuner: type[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's kill for want of memory, for one; a trial that ended by itself keeps its own end."""
    plan = make_plan(3)
    fit = FakeTuner.fit

    def dying(self: FakeTuner) -> list[Any]:
        results = fit(self)
        for result in results[:2]:
            result.error = RuntimeError(
                "The actor died unexpectedly before finishing this task.\nclass_name: Trainable"
            )
        return results

    monkeypatch.setattr(FakeTuner, "fit", dying)
    made = make_sessions(plan, tmp_path)
    keys = [t.key for t in plan.trials]
    made.store.fail(keys[1], step=0, error="ValueError", message="its own")
    made.run(keys)
    errors = {key: made.store.status(key).error for key in keys}
    assert list(errors.values()) == [
        "ProcessDied: The actor died unexpectedly before finishing this task.", "ValueError: its own", "",
    ]  # fmt: skip


def test_a_session_is_long_beside_what_runs_at_once(tmp_path: Path, tuner: type[FakeTuner]) -> None:
    assert make_sessions(make_plan(1), tmp_path).size == SESSION
    assert make_sessions(make_plan(1), tmp_path, concurrent=40).size == 40 * WAVES


def test_nothing_of_a_session_is_held_when_the_next_one_begins(tmp_path: Path, tuner: type[FakeTuner]) -> None:
    """Tune's trials, results and state refer to each other, so without a collection they live as long as the driver."""
    plan = make_plan(5 * SESSION)
    labels = {t.key: f"null {t.trial.seed}" for t in plan.trials}
    display = Display(labels, dict.fromkeys(labels, 1), printer=lambda line: None)
    make_sessions(plan, tmp_path, watcher=display).run(list(labels))
    assert tuner.alive == [0] * 5
    assert sum(ref() is not None for ref in tuner.made) == 0
    assert sum(row.ended for row in display.rows.values()) == 5 * SESSION


def test_what_the_display_keeps_of_a_trial_is_small(tmp_path: Path) -> None:
    """Neither a round's result, nor the count of steps of a trial that ended in the middle of one."""
    labels = {f"k{i}": f"arm {i}" for i in range(400)}
    display = Display(labels, dict.fromkeys(labels, 1), printer=lambda line: None, folder=tmp_path)
    beat = '{"done": 0, "doing": "training the model", "steps": [1, 9]}'
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for key in labels:
            (tmp_path / key).mkdir()
            (tmp_path / key / ".heartbeat").write_text(beat)
            display.started(key)
            assert len(display.news(1.0)) == 1
            display.round(key, {"step": 1, "done": True, "retained/rel": 0.5, "config": {"big": bytearray(100_000)}})
            display.stopped(key)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert (display._running, display._counted) == (set(), {})
    assert grown / len(labels) < 2000  # bytes


@pytest.mark.parametrize("when", ["in a session", "between sessions", "storage lost"])
def test_after_an_interruption_no_session_begins(
    tmp_path: Path, tuner: type[FakeTuner], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    plan = make_plan(3 * SESSION)
    lost: list[bool] = []

    def release() -> None:
        if when == "between sessions":
            raise KeyboardInterrupt
        lost.append(True)

    came = SimpleNamespace(came=when == "in a session")
    monkeypatch.setattr(sessions, "_watched_signals", lambda: nullcontext(came))
    monkeypatch.setattr(sessions, "release_memory", release)
    found = make_sessions(plan, tmp_path, halted=lambda: when == "storage lost" and bool(lost))
    keys = [t.key for t in plan.trials]
    if when == "between sessions":
        with pytest.raises(KeyboardInterrupt):
            found.run(keys)
    else:
        assert found.run(keys) is (when == "in a session")
    assert tuner.suggested == [keys[:SESSION]]


class Local:
    """Stands for :class:`Sessions`: makes the trials here, three a session, and may be interrupted between two of them."""

    ran: list[list[str]] = []  # noqa: RUF012
    interrupt_after: int | None = None

    def __init__(self, store: ResultStore, table: Any, *_: Any) -> None:
        self.store, self.table = store, table

    def run(self, keys: Sequence[str]) -> bool:
        for begin in range(0, len(keys), 3):
            if len(Local.ran) == Local.interrupt_after:
                raise KeyboardInterrupt
            Local.ran.append(list(keys[begin : begin + 3]))
            for key in Local.ran[-1]:
                trial = self.table[key].trial
                self.store.begin(trial, arm="null", point={}, provenance=provenance(trial))
                self.store.write_round(key, EvalRound(step=1, rows=[]))
                self.store.finish(key, step=1)
        return False


def test_ctrl_c_between_sessions_ends_with_130_and_a_rerun_makes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "running_ray", lambda address: nullcontext())
    monkeypatch.setattr(sessions, "Sessions", Local)
    monkeypatch.setattr(Local, "ran", [])
    monkeypatch.setattr(Local, "interrupt_after", 2)
    plan, workspace = make_plan(8), Workspace(root=tmp_path)
    keys = [t.key for t in plan.trials]
    outcome = launch.run_sweep(plan, workspace)
    assert (outcome.exit_code, len(outcome.done), outcome.absent) == (130, 6, tuple(keys[6:]))
    monkeypatch.setattr(Local, "interrupt_after", None)
    outcome = launch.run_sweep(plan, workspace)
    assert (outcome.exit_code, outcome.done) == (0, tuple(keys))
    assert [key for session in Local.ran for key in session] == keys, "each trial ran once"
    assert {
        s.state
        for s in launch.trial_states(ResultStore(workspace.results("s")), {t.key: t for t in plan.trials}).values()
    } == {State.DONE}
    assert launch.run_sweep(plan, workspace).exit_code == 0
    assert len(Local.ran) == 3, "what is done is not run again"


@pytest.mark.parametrize(
    ("concurrent", "given", "used"), [(1, "5", "5"), (40, "5", "auto"), (40, "7", "7")], ids=["few", "many", "a user's"]
)
def test_the_state_of_a_long_session_is_not_written_every_five_seconds(
    tmp_path: Path, tuner: type[FakeTuner], monkeypatch: pytest.MonkeyPatch, concurrent: int, given: str, used: str
) -> None:
    monkeypatch.setenv(STATE_PERIOD, given)
    make_sessions(make_plan(1), tmp_path, concurrent=concurrent)
    assert os.environ[STATE_PERIOD] == used
