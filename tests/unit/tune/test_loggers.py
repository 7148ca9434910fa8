"""Loggers take what they can; a run does not notice what they cannot."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from tensorboardX.proto.event_pb2 import Event

from raysweep.errors import MissingExtraError, NameUnknownError
from raysweep.results.ray_logs import TRIAL_KEY
from raysweep.tune import loggers
from raysweep.tune.loggers.base import Message, Started
from raysweep.tune.loggers.callback import LoggerCallback
from raysweep.tune.loggers.process import LoggerProcess, opened
from raysweep.tune.loggers.tensorboard import TensorBoard
from tests import fake_loggers

CONFIG = {TRIAL_KEY: "0123456789ab", "arm": "memit", "editor": {"name": "memit", "layers": [1, 2]}, "seed": 0}
STARTED = Started("0123456789ab", "memit λ=1/2", CONFIG)
START: Message = {"do": "start", "key": "k", "name": "a", "config": {}}
FINISH: Message = {"do": "finish", "key": "k", "state": "done", "values": {}}


def message(step: int) -> Message:
    return {"do": "log", "key": "k", "step": step, "values": {"retained/rel": 0.5}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to log into; the fake loggers are installed, and their server accepts and never answers."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    fake_loggers.install(plugins)
    monkeypatch.setenv("PYTHONPATH", str(plugins))
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("FAKE_LOGGERS_PORT", str(server.getsockname()[1]))
        yield tmp_path / "logs"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_taken_in_order_and_to_the_end(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(["plain"], "s", folder) as (process,):
        assert all([process.put(START), *(process.put(message(step)) for step in range(5)), process.put(FINISH)])
    assert (process.lost, warnings(caplog)) == (0, [])
    lines = (folder / "Plain.txt").read_text().splitlines()
    assert lines == ["start k", *(f"log k {step} 0.5" for step in range(5)), "finish k done", "close"]


def test_a_server_that_never_answers_holds_nothing_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = LoggerProcess("hanging", "s", folder, limit=10, patience=0.5)
    process.put(START)
    while process.taken < 1:  # it is there; what follows is the server's silence
        time.sleep(0.01)
    began = time.monotonic()
    # 2 MB, more than a pipe and the queue hold together
    taken = [process.put({**message(step), "key": "k" * 2000}) for step in range(1000)]
    assert time.monotonic() - began < 0.5
    assert not all(taken)
    time.sleep(max(0.0, began + 0.6 - time.monotonic()))
    closing = time.monotonic()
    process.close()
    assert time.monotonic() - closing < 0.4, "it was silent long enough while the run went on"
    assert (process.taken, process.lost) == (1, 1000)
    (line,) = warnings(caplog)
    assert line.startswith("--log hanging: 1000 of 1001 messages were lost; the results are complete without it")


@pytest.mark.parametrize(
    ("name", "lost", "words"),
    [
        ("raising", 2, "ValueError: no room for step 0"),
        ("unable", 4, "EOFError: EOF when reading a line"),
        ("dying", 3, ""),
    ],
)
def test_one_that_fails_is_counted_and_told(
    name: str, lost: int, words: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened([name], "s", folder) as (process,):
        for one in (START, message(0), message(1), FINISH):
            process.put(one)
    assert process.lost == lost
    *first, last = warnings(caplog)
    assert first == ([f"--log {name}: {words}; the run goes on"] if words else [])
    assert f"{lost} of 4 messages were lost" in last
    assert words in last


def test_a_folder_that_cannot_be_made_is_no_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("")
    with opened(["tensorboard"], "s", tmp_path / "logs") as processes:
        assert processes == []
    (line,) = warnings(caplog)
    assert line.endswith("the run goes on without it")


class Kept:
    """A logger's process that keeps messages, and has no room for the first ones."""

    name = "kept"

    def __init__(self, full: int = 0) -> None:
        self.full = full
        self.messages: list[Any] = []

    def put(self, one: Message) -> bool:
        if self.full:
            self.full -= 1
            return False
        self.messages.append(one)
        return True


def told(kept: Kept, last: dict[str, object]) -> list[Any]:
    """Return what *kept* is told of a trial with one round before its *last* one."""
    callback = LoggerCallback([kept], {STARTED.key: STARTED.name})  # type: ignore[list-item]
    assert callback.__getstate__() == {"processes": (), "labels": {}}
    trial: Any = SimpleNamespace(config=CONFIG, last_result=last)
    for result in ({"step": 0, "retained/rel": 0.5, "pid": 7}, last):
        callback.on_trial_result(0, [], trial, result)
    callback.on_trial_complete(0, [], trial)
    return kept.messages


def test_ray_s_news_become_messages() -> None:
    last = {"step": 4, "retained/rel": 1.0, "time_total_s": 2.5, "failure": "", "done": True}
    start, first, second, end = told(Kept(), last)
    assert (start["name"], start["config"]) == (STARTED.name, CONFIG)
    assert (first["step"], first["values"]) == (0, {"retained/rel": 0.5})
    assert (second["step"], second["values"]) == (4, {"retained/rel": 1.0, "seconds": 2.5})
    assert (end["do"], end["state"], end["values"]) == ("finish", "done", second["values"])
    json.dumps([start, first, second, end])


@pytest.mark.parametrize(("said", "state"), [("failure", "failed"), ("stopped", "stopped")])
def test_another_end_is_told(said: str, state: str) -> None:
    assert told(Kept(), {"step": 4, said: "why"})[-1]["state"] == state


def test_a_start_that_was_dropped_is_tried_again() -> None:
    assert [one["do"] for one in told(Kept(full=1), {"step": 4})] == ["start", "log", "finish"]


def test_ray_s_callback_can_be_ours() -> None:
    assert hasattr(Trial, "last_result")
    assert {"on_trial_result", "on_trial_complete", "on_trial_error"} <= vars(LoggerCallback).keys()


def test_what_is_missing_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    loggers.check(["tensorboard"])
    with pytest.raises(NameUnknownError, match="unknown logger 'tensorbord'") as unknown:
        loggers.check(["tensorbord"])
    assert "tensorboard" in unknown.value.hint
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name in ("mlflow", "tensorboard", "trackio", "wandb"):
        with pytest.raises(MissingExtraError, match=f"--log {name} needs the package") as missing:
            loggers.check([name])
        assert f"pip install 'raysweep[{name}]'" in missing.value.hint


def events(path: Path) -> Iterator[Event]:
    """Yield the records of an event file: length, checksum, bytes, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_s_files_hold_the_rounds(tmp_path: Path) -> None:
    for steps in ((0, 10), (100,)):  # interrupted after the first, and going on
        board = TensorBoard("s", tmp_path)
        board.start(STARTED)
        for step in steps:
            board.log(STARTED.key, step, {"retained/rel": step / 100})
        if steps[-1] == 100:
            board.finish(STARTED.key, "done", {"retained/rel": 1.0})
        board.close()
    (trial,) = (tmp_path / "tensorboard").iterdir()
    assert trial.name == "memit_λ=1_2-01234567"
    found = [event for path in sorted(trial.glob("events*"), key=os.path.getmtime) for event in events(path)]
    values = [(e.step, v.simple_value) for e in found for v in e.summary.value if v.tag == "retained/rel"]
    assert values == [(0, 0.0), (10, pytest.approx(0.1)), (100, 1.0)]
    assert "_hparams_/session_start_info" in {v.tag for e in found for v in e.summary.value}


class Recorder(ModuleType):
    """Stands for another program's package: keeps what is called, and with what."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*values: Any, **named: Any) -> Any:
            self.calls.append((name, values, named))
            return self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(values, named) for called, values, named in self.calls if called == name]


@pytest.fixture
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    """What a logger made of two trials: one that failed, one that was interrupted."""
    package = Recorder(request.param)
    for name in (request.param, f"{request.param}.entities"):
        monkeypatch.setitem(sys.modules, name, package)
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "wandb":
        monkeypatch.setattr(package, "summary", {}, raising=False)
    if request.param == "mlflow":
        monkeypatch.setattr(package, "search_runs", lambda *_, **__: [], raising=False)
        monkeypatch.setattr(package, "info", SimpleNamespace(run_id="r"), raising=False)
    logger = loggers.LOGGERS.get(request.param)("s", tmp_path)
    for key in ("failed", "interrupted"):
        logger.start(Started(key, f"a {key}", CONFIG))
        logger.log(key, 10, {"retained/rel": 0.5})
    logger.finish("failed", "failed", {"retained/rel": 0.5})
    logger.close()
    return package


@pytest.mark.parametrize("recorded", ["wandb"], indirect=True)
def test_wandb_gets_a_run_per_trial(recorded: Recorder) -> None:
    (_, first), (_, second) = recorded.named("init")
    assert (first["project"], first["group"], first["name"], first["id"]) == ("raysweep", "s", "a failed", "failed")
    assert (first["resume"], first["config"], second["id"]) == ("allow", CONFIG, "interrupted")
    assert recorded.named("log") == [(({"retained/rel": 0.5},), {"step": 10})] * 2
    assert recorded.__dict__["summary"] == {"retained/rel": 0.5, "state": "failed"}
    assert [named["exit_code"] for _, named in recorded.named("finish")] == [1, 1]


@pytest.mark.parametrize("recorded", ["trackio"], indirect=True)
def test_trackio_gets_a_run_per_trial(recorded: Recorder) -> None:
    ((project,), first), _ = recorded.named("init")
    assert (project, first["group"], first["name"], first["resume"]) == ("raysweep", "s", "a failed failed", "allow")
    assert recorded.named("log") == [(({"retained/rel": 0.5},), {"step": 10})] * 2
    assert len(recorded.named("finish")) == 2


@pytest.mark.parametrize("recorded", ["mlflow"], indirect=True)
def test_mlflow_gets_a_run_per_trial(recorded: Recorder, tmp_path: Path) -> None:
    assert recorded.named("MlflowClient") == [((), {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"})]
    first, second = (named for _, named in recorded.named("create_run"))
    assert (first["run_name"], first["tags"]["raysweep.key"], second["run_name"]) == (
        "a failed",
        "failed",
        "a interrupted",
    )
    parameters = [values for values, _ in recorded.named("Param")]
    assert parameters[: len(parameters) // 2] == [
        ("trial", "0123456789ab"), ("arm", "memit"), ("editor/name", "memit"), ("editor/layers", "[1, 2]"), ("seed", "0"),
    ]  # fmt: skip
    assert [(name, value, step) for (name, value, _, step), _ in recorded.named("Metric")] == [
        ("retained/rel", 0.5, 10)
    ] * 2
    assert [status for (_, status), _ in recorded.named("set_terminated")] == ["FAILED", "KILLED"]
