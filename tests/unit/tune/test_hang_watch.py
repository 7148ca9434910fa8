"""When a trial counts as hung, and when a sweep counts as waiting for nodes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from raysweep.config.sweep_schema import ResourceSpec
from raysweep.errors import SpecError
from raysweep.results.store import HEARTBEAT
from raysweep.studies.base import Progress
from raysweep.tune import deps, hang_watch
from raysweep.tune.hang_watch import HangWatch
from raysweep.tune.waiting import Waiting


class Trial:
    """Beats on request, with a modification time of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "k" / HEARTBEAT
        self.path.parent.mkdir()
        self.count = 0

    def beat(self, done: int) -> None:
        self.count += 1
        self.path.write_text(json.dumps({"done": done, "doing": "edit"}))
        # Far in the past: a file server's clock must not matter.
        os.utime(self.path, ns=(self.count * 10**9, self.count * 10**9))


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def test_silence_counts_from_the_first_sign_and_is_told_once(trial: Trial, tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, 10)
    watch.started("k")
    assert watch.hung(5000) == [], "a model may take long to load"
    trial.beat(1)
    assert watch.hung(5010) == []
    assert watch.hung(5600) == []
    trial.beat(3)
    assert watch.hung(5606) == []
    assert watch.hung(6205) == []
    assert watch.hung(6210) == ["k"]
    assert watch.reasons == {"k": "no sign of life for 10 minutes at edit 3"}
    assert watch.hung(9000) == []


def test_a_new_life_begins_without_a_sign_and_without_a_reason(trial: Trial, tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, 10)
    watch.started("k")
    trial.beat(1)
    assert (watch.hung(10), watch.hung(700)) == ([], ["k"])
    watch.stopped("k")
    watch.started("k")
    assert watch.reasons == {}, "it may die of something else now"
    assert watch.hung(5000) == [], "the file of its former life is no sign"
    trial.beat(1)
    assert (watch.hung(5100), watch.hung(5800)) == ([], ["k"])


def test_a_trial_that_ended_is_not_watched(trial: Trial, tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, 10)
    watch.started("k")
    trial.beat(1)
    watch.hung(10)
    watch.stopped("k")
    assert watch.hung(5000) == []


def test_it_looks_rarely(trial: Trial, tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, 10)
    watch.started("k")
    watch.hung(100)
    trial.beat(1)
    assert watch.hung(100 + hang_watch.POLL / 2) == []
    assert watch._lives["k"].since is None


def test_where_trials_leave_no_heartbeat_it_is_refused(tmp_path: Path) -> None:
    hang_watch.check(ResourceSpec(), "s3://bucket", local=False)
    hang_watch.check(ResourceSpec(hung_after=30), str(tmp_path), local=True)
    with pytest.raises(SpecError, match="no sign of life between rounds"):
        hang_watch.check(ResourceSpec(hung_after=30), "s3://bucket", local=False)


def test_a_trial_beats_again_once_its_storage_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beat, path = deps.Heartbeat(tmp_path / "k"), tmp_path / "k" / HEARTBEAT
    monkeypatch.setattr(deps, "BEAT", 0.0)
    beat(Progress(1, 9, "edit"))
    assert not path.parent.exists(), "a folder that was removed does not come back"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(deps, "write_file", _full)
        beat(Progress(2, 9, "edit"))
    beat(Progress(3, 9, "edit"))
    assert json.loads(path.read_text())["done"] == 3


def _full(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_less_than_ten_minutes_is_refused() -> None:
    assert [ResourceSpec(hung_after=minutes).hung_after for minutes in (0, 10, 12.5)] == [0, 10, 12.5]
    for minutes in (-1, 0.5, 9.9):
        with pytest.raises(ValidationError):
            ResourceSpec(hung_after=minutes)


@pytest.mark.parametrize(
    "labels", [{"a b": "x"}, {"": "x"}, {"a": "x y"}, {"a": "in()"}, {"a": "in(x"}, {"a": ""}, {"a": 1}]
)
def test_labels_are_checked_as_written(labels: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ResourceSpec.model_validate({"labels": labels})


def test_waiting_is_said_after_ten_seconds_and_then_each_minute() -> None:
    waiting = Waiting()
    said = [now for now in range(200) if waiting.is_due(pending=True, running=now < 20, now=now)]
    assert said == [30, 90, 150]
    assert not waiting.is_due(pending=True, running=True, now=300)
    assert not waiting.is_due(pending=True, running=False, now=301)
    waiting.reset()
    assert not waiting.is_due(pending=True, running=False, now=320)
    assert not waiting.is_due(pending=False, running=False, now=900), "nothing waits any more"
