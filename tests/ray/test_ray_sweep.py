"""A sweep through a real local Ray: killed worker, killed driver, Ctrl-C, failures, reuse; always the same bytes."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.tune import ExperimentAnalysis
from ray_helpers import descendants, finish, install_fakes, listening, start, table_bytes

from raysweep.results.ray_logs import sessions
from raysweep.results.store import ResultStore, State
from raysweep.results.tables import open_results
from raysweep.tune.analysis import analyse
from raysweep.workspace import Workspace
from tests import fake_loggers

# 127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net/tcp and tcp6 write them
LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}
pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Bench:
    """One plan, run in several roots; the undisturbed run is the reference."""

    def __init__(self, base: Path) -> None:
        self.base, self.plugins = base, base / "plugins"
        self.plugins.mkdir()
        install_fakes(self.plugins)
        self.flag = base / "died"
        self.configs: dict[str, dict[str, Any]] = {
            "mortal": {"sleep": 0.1, "die_at": 3, "flag": str(self.flag)},
            "calm": {"sleep": 0.1},
        }

    def start(self, root: str, **more: Any) -> Any:
        return start(self.base / root, "s", self.configs, plugins=self.plugins, **more)

    def bytes(self, root: str) -> dict[str, bytes]:
        return table_bytes(self.base / root, "s")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    found = Bench(tmp_path_factory.mktemp("ray"))
    found.flag.touch()
    code, outcome, lines = finish(found.start("undisturbed"))
    assert (code, outcome) == (0, {"done": 4, "failed": [], "unfinished": 0}), lines
    return found


def test_rerun_is_no_work_and_needs_no_ray(bench: Bench) -> None:
    before = bench.bytes("undisturbed")
    sessions = len(list((bench.base / "undisturbed/results/s/_ray").iterdir()))
    code, outcome, lines = finish(bench.start("undisturbed"))
    assert (code, outcome["done"], lines) == (0, 4, [])
    assert bench.bytes("undisturbed") == before
    assert len(list((bench.base / "undisturbed/results/s/_ray").iterdir())) == sessions


def test_ray_s_own_analysis_agrees(bench: Bench) -> None:
    sweep = open_results("s", Workspace(root=bench.base / "undisturbed"))
    found = analyse(sweep.store, sweep.keys, metric="retained/avg", mode="max")
    assert (found.disagreements, found.rounds.keys()) == ((), set(sweep.keys))
    assert found.compared > 50
    last = {key: steps[6]["retained/avg"] for key, steps in found.rounds.items()}
    assert found.best is not None
    assert found.best[1] == max(last.values()) == last[found.best[0]]
    trusted = analyse(sweep.store, sweep.keys, metric="retained/avg", mode="max", trust=True)
    assert trusted.best is not None
    assert trusted.best[1] == found.best[1]


def test_ray_s_own_configuration_names_arm_point_and_hyper_parameters(bench: Bench) -> None:
    sweep = open_results("s", Workspace(root=bench.base / "undisturbed"))
    (session,) = sessions(sweep.store)
    analysis = ExperimentAnalysis(sweep.store.folder.path(session))
    best = analysis.get_best_config(metric="retained/avg", mode="max")
    trial = sweep.store.about(best["trial"]).trial
    assert best["arm"] in {row["arm"] for row in sweep.trials().to_pylist()}
    assert best["editor"] == {"name": trial["editor"]["name"], **trial["editor"]["config"]}
    assert best["seed"] == trial["seed"] == best["point"]["seed"]
    assert {"config/arm", "config/seed", "config/editor/name"} <= set(analysis.dataframe().columns)


@pytest.fixture
def loggers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Loggers of which one works, one raises, and one asks a server that accepts and never answers."""
    fake_loggers.install(bench.plugins)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("FAKE_LOGGERS_PORT", str(server.getsockname()[1]))
        yield ["hanging", "raising", "plain"]


def test_killed_worker_fresh_processes_a_failing_arm_and_broken_loggers_change_nothing(
    bench: Bench, loggers: list[str]
) -> None:
    bench.flag.unlink()
    more: dict[str, dict[str, Any]] = {**bench.configs, "bad": {"raise_at": 3}}
    root = bench.base / "worker"
    process = start(root, "s", more, (0,), options={"reuse": False, "log": loggers}, plugins=bench.plugins)
    code, outcome, lines = finish(process)
    assert bench.flag.exists()
    assert (code, outcome["done"], outcome["failed"]) == (3, 2, ["ValueError: asked to fail"])
    assert any("its process died; going on" in line for line in lines)
    assert any("FAILED at 2/6: ValueError: asked to fail" in line for line in lines)
    expected, found = bench.bytes("undisturbed"), bench.bytes("worker")
    shared = (found.keys() & expected.keys()) - {"trials.parquet"}
    assert len(shared) == 2 * 2 * 4  # trials, tables, rounds
    assert all(found[name] == expected[name] for name in shared)
    told = [line.split() for line in (root / "logs/s/Plain.txt").read_text().splitlines()]
    assert sorted(line[-1] for line in told if line[0] == "finish") == ["done", "done", "failed"]
    assert [sum(line[0] == word for line in told) for word in ("start", "close")] == [3, 1]
    assert "ValueError: no room for step 0" in (root / "logs/s/raising.log").read_text()
    store = ResultStore(root / "results/s")
    failed = [key for key in store.keys() if store.status(key).state is State.FAILED]  # noqa: SIM118
    about = json.loads(store.folder.read(f"{failed[0]}/FAILED.json"))
    assert about is not None
    assert "raise ValueError" in about["traceback"]
    code, _, lines = finish(start(root, "s", more, (0,), plugins=bench.plugins))
    assert (code, lines) == (3, [])  # without --retry nothing is run


def test_interrupted_then_killed_driver_changes_nothing(bench: Bench) -> None:
    first = bench.start("driver")
    _await_round(first)
    found = listening(first.pid)
    assert found  # gcs, raylet, workers …
    assert found <= LOOPBACK
    first.send_signal(signal.SIGINT)
    code, outcome, _ = finish(first)
    assert code == 130
    assert outcome["unfinished"] > 0
    second = bench.start("driver")
    _await_round(second)
    second.kill()
    second.communicate()
    store = ResultStore(bench.base / "driver/results/s")
    assert not all(store.status(k).state is State.DONE for k in store.keys())  # noqa: SIM118
    code, outcome, _ = finish(bench.start("driver"))
    assert (code, outcome["done"]) == (0, 4)
    assert bench.bytes("driver") == bench.bytes("undisturbed")
    sweep = open_results("s", Workspace(root=bench.base / "driver"))
    assert analyse(sweep.store, sweep.keys, metric="retained/avg", mode="max").disagreements == ()


def test_a_scheduler_s_warning_before_its_time_limit_is_no_interruption(bench: Bench) -> None:
    first = bench.start("limited")
    _await_round(first)
    first.send_signal(signal.SIGUSR1)
    code, outcome, lines = finish(first)
    assert (code, outcome["failed"]) == (3, []), lines
    assert outcome["unfinished"] > 0
    code, outcome, _ = finish(bench.start("limited"))
    assert (code, outcome["done"]) == (0, 4)
    assert bench.bytes("limited") == bench.bytes("undisturbed")


def test_a_collapsed_trial_is_stopped_by_rule_and_not_run_again(bench: Bench) -> None:
    configs = {"collapsing": {"collapse_at": 4}, "calm": {}}
    root = bench.base / "collapsed"
    code, outcome, lines = finish(start(root, "s", configs, (0,), plugins=bench.plugins))
    assert (code, outcome) == (0, {"done": 1, "failed": [], "unfinished": 0})
    why = "after 3 edits the model is no finite numbers (ValueError: no decomposition)"
    assert f"collapsing/0: STOPPED at 3/6: {why}" in lines
    sweep = open_results("s", Workspace(root=root))
    rows = {row["arm"]: row for row in sweep.trials().to_pylist()}
    stopped = rows["collapsing"]
    assert (stopped["status"], stopped["step"], stopped["error"]) == ("STOPPED", 3, why)
    assert stopped["non_finite_step"] == 3
    assert [p.name for p in (root / "results" / "s" / stopped["trial_key"]).glob("snapshot*")] == []
    code, outcome, lines = finish(start(root, "s", configs, (0,), plugins=bench.plugins))
    assert (code, lines) == (0, []), "what a rule stopped is no work"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_run_at_once(bench: Bench, number: signal.Signals) -> None:
    """The first one waits for the rounds in flight, here more than a minute."""
    slow = {arm: {**config, "sleep": 40.0} for arm, config in bench.configs.items()}
    process = start(bench.base / f"twice-{number.name}", "s", slow, plugins=bench.plugins)
    while "0/6 edits" not in process.stdout.readline():
        assert process.poll() is None
    family = descendants(process.pid)
    process.send_signal(number)
    time.sleep(2.0)
    assert process.poll() is None
    process.send_signal(number)
    began = time.monotonic()
    code, outcome, lines = finish(process)
    assert time.monotonic() - began < 20
    assert (code, outcome["failed"], outcome["unfinished"]) == (130, [], 4), lines
    until = time.monotonic() + 20
    while (left := {pid for pid in family if Path(f"/proc/{pid}").exists()}) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, "nothing of a run is left behind"


def _await_round(process: Any) -> None:
    """Wait until some trial has edited something."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if "2/6 edits" in line or "4/6 edits" in line:
            return
    raise AssertionError("no round in time")


class Passes(Bench):
    """Three trials per seed that share their edits, of which a process dies in the middle where told, and one that does not."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.log = base / "log"
        mortal = {"sleep": 0.1, "die_at": 3, "flag": str(self.flag), "log": str(self.log)}
        self.configs = {f"x{scale}": {**mortal, "scale": scale} for scale in (1.0, 2.0, 3.0)} | {
            "calm": {"sleep": 0.05}
        }

    def edits(self) -> list[str]:
        """Every edit made so far, as ``seed step``."""
        return [line.rpartition(" ")[0] for line in self.log.read_text().splitlines()]

    def editors(self) -> int:
        """How many processes made them."""
        return len({line.rpartition(" ")[2] for line in self.log.read_text().splitlines()})


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> Passes:
    """The reference is the run in which every trial edits for itself."""
    found = Passes(tmp_path_factory.mktemp("passes"))
    found.flag.touch()
    code, outcome, lines = finish(found.start("alone", share=False))
    assert (code, outcome) == (0, {"done": 8, "failed": [], "unfinished": 0}), lines
    assert len(found.edits()) == 6 * 6
    return found


def test_a_pass_edits_once_and_stores_what_separate_trials_do(passes: Passes) -> None:
    passes.log.unlink()
    code, outcome, lines = finish(passes.start("together"))
    assert (code, outcome) == (0, {"done": 8, "failed": [], "unfinished": 0}), lines
    assert sorted(passes.edits()) == [f"{seed} {step}" for seed in (0, 1) for step in range(1, 7)]
    assert passes.bytes("together") == passes.bytes("alone")
    assert sum(": 6/6 edits" in line for line in lines) == 8, "every trial is reported"
    sweep = open_results("s", Workspace(root=passes.base / "together"))
    found = analyse(sweep.store, sweep.keys, metric="retained/avg", mode="max")
    assert (found.disagreements, found.rounds.keys()) == ((), set(sweep.keys))
    assert all(sorted(steps) == [0, 2, 4, 6] for steps in found.rounds.values())


def test_a_pass_survives_its_worker_ctrl_c_and_its_driver(passes: Passes) -> None:
    passes.flag.unlink()
    first = passes.start("hurt", concurrent=1)
    _await_round(first)
    first.send_signal(signal.SIGINT)
    code, outcome, _ = finish(first)
    assert (code, outcome["done"]) == (130, 0)
    assert passes.flag.exists()
    second = passes.start("hurt", concurrent=1)
    _await_round(second)
    second.kill()
    second.communicate()
    code, outcome, lines = finish(passes.start("hurt"))
    assert (code, outcome["done"]) == (0, 8), lines
    assert passes.bytes("hurt") == passes.bytes("alone")


def test_a_sweep_in_many_sessions_is_as_one(passes: Passes) -> None:
    """So that Tune, and with it the driver, never holds more than a session's trials; passes are cut by sessions too."""
    passes.log.unlink(missing_ok=True)
    code, outcome, lines = finish(passes.start("sessions", session=3))
    assert (code, outcome) == (0, {"done": 8, "failed": [], "unfinished": 0}), lines
    assert sorted(passes.edits()) == [f"{seed} {step}" for seed in (0, 1) for step in range(1, 7)]
    assert passes.bytes("sessions") == passes.bytes("alone")
    sessions = sorted((passes.base / "sessions/results/s/_ray").iterdir())
    counts = [len(json.loads(next(s.glob("experiment_state-*.json")).read_text())["trial_data"]) for s in sessions]
    assert counts == [3, 3, 2]
    sweep = open_results("s", Workspace(root=passes.base / "sessions"))
    found = analyse(sweep.store, sweep.keys, metric="retained/avg", mode="max")
    assert (found.disagreements, found.rounds.keys()) == ((), set(sweep.keys))


def test_a_trial_added_to_a_finished_pass_edits_anew_and_leaves_the_others_alone(passes: Passes) -> None:
    everything = passes.configs
    passes.configs = {k: v for k, v in everything.items() if k != "x2.0"}
    try:
        code, outcome, _ = finish(passes.start("added"))
    finally:
        passes.configs = everything
    assert (code, outcome["done"]) == (0, 6)
    passes.log.unlink()
    code, outcome, lines = finish(passes.start("added"))
    assert (code, outcome["done"]) == (0, 8)
    assert sum("x1.0" in line for line in lines) == 0, "what is done is not run again"
    assert len(passes.edits()) == 12
    assert passes.bytes("added") == passes.bytes("alone")


@pytest.mark.parametrize("victim", ["nobody", "whoever edits third"])
def test_shards_and_their_deaths_change_nothing(passes: Passes, victim: str) -> None:
    passes.log.unlink()
    for mark in passes.base.glob("log-*"):
        mark.unlink()
    (passes.base / "shards").touch()
    if victim != "nobody":
        passes.flag.unlink()
    root = f"shards of {victim.partition(' ')[0]}"
    try:
        code, outcome, lines = finish(passes.start(root, shards=2))
    finally:
        (passes.base / "shards").unlink()
    assert (code, outcome) == (0, {"done": 8, "failed": [], "unfinished": 0}), lines
    assert passes.editors() >= 2
    assert passes.flag.exists()
    assert set(passes.edits()) == {f"{seed} {step}" for seed in (0, 1) for step in range(1, 7)}
    assert passes.bytes(root) == passes.bytes("alone")


def test_an_error_in_a_shard_fails_the_trial(passes: Passes) -> None:
    configs: dict[str, dict[str, Any]] = {"bad": {"raise_at": 2, "sleep": 0.1}}
    process = start(passes.base / "bad", "s", configs, (0,), plugins=passes.plugins, shards=2)
    code, outcome, _ = finish(process)
    assert (code, outcome["failed"]) == (3, ["ValueError: asked to fail"])
