from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import fs
from results_helpers import ORIGIN, begin, make_round, make_trial

from raysweep.errors import DamagedError, StoreError
from raysweep.results.drivers import DriverLock
from raysweep.results.folder import Folder
from raysweep.results.schema import PROBES
from raysweep.results.store import ResultStore, State, TrialStatus
from raysweep.results.tables import open_results
from raysweep.workspace import Workspace


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results" / "s")


def files(store: ResultStore, key: str) -> dict[str, bytes]:
    return {n: store.folder.read(n) for n in store.folder.files(key) if "timing" not in n and "parquet" in n}


def test_life_of_a_trial(store: ResultStore) -> None:
    trial = make_trial()
    assert store.status(trial.key) == TrialStatus(State.ABSENT)
    with DriverLock(store.folder):
        assert begin(store, trial) is None
        assert store.status(trial.key) == TrialStatus(State.RUNNING, 0)
        store.write_round(trial.key, make_round(trial, 0))
        store.write_round(trial.key, make_round(trial, 2))
        assert store.status(trial.key) == TrialStatus(State.RUNNING, 2)
    assert store.status(trial.key) == TrialStatus(State.INTERRUPTED, 2), "nobody runs the sweep"
    store.write_round(trial.key, make_round(trial, 4))
    store.finish(trial.key, step=4)
    assert store.status(trial.key) == TrialStatus(State.DONE, 4)
    assert not [n for n in store.folder.files(trial.key) if "snapshot" in n]
    assert store.keys() == (trial.key,)


def test_going_on_returns_the_snapshot_and_notes_the_session(store: ResultStore) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    store.write_round(trial.key, make_round(trial, 4))
    snapshot = begin(store, trial)
    assert snapshot is not None
    assert (snapshot.step, dict(snapshot.meta)) == (4, {"n": 4})
    assert torch.equal(snapshot.tensors["weights/w"], torch.full((2, 3), 4.0))
    assert [s["from_step"] for s in store.about(trial.key).sessions] == [0, 4]
    assert len([n for n in store.folder.files(trial.key) if n.endswith(".safetensors")]) == 1


def test_going_on_with_other_versions_is_noted(store: ResultStore) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    newer = {"run": {**ORIGIN["run"], "torch": "3", "git_dirty": True}, "session": ORIGIN["session"]}
    store.begin(trial, arm="memit", point={}, provenance=newer)
    about = store.about(trial.key)
    assert about.provenance["torch"] == "2"
    assert "changed" not in about.sessions[0]
    assert about.sessions[1]["changed"] == {"torch": "3", "git_dirty": True}


def test_a_round_written_twice_is_the_same_bytes(store: ResultStore) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    once = files(store, trial.key)
    store.write_round(trial.key, make_round(trial, 2))
    assert files(store, trial.key) == once


def test_a_fresh_begin_clears_what_was_left(store: ResultStore) -> None:
    trial = make_trial()
    begin(store, trial)
    store._write_rows(trial.key, PROBES, 2, make_round(trial, 2).rows)  # then the process died
    assert begin(store, trial) is None
    assert files(store, trial.key) == {}


@pytest.mark.parametrize("damage", ["truncate", "flip", "json", "fields"])
def test_corrupt_snapshot_is_set_aside_and_the_trial_begins_again(
    store: ResultStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    folder = store.folder.local
    assert folder is not None
    tensors = folder / trial.key / "snapshot-000002.safetensors"
    about = folder / trial.key / "snapshot.json"
    data = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "json":
        about.write_text(about.read_text()[:20])
    else:
        about.write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert begin(store, trial) is None
    assert "beginning again, the damaged file is kept as *.corrupt" in caplog.text
    assert {p.name for p in (folder / trial.key).glob("*.corrupt")} == {
        "snapshot-000002.safetensors.corrupt",
        "snapshot.json.corrupt",
    }
    assert not [n for n in store.folder.files(trial.key) if n.endswith(".parquet")]


def test_a_crash_between_tensors_and_pointer_keeps_the_older_snapshot(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    monkeypatch.setattr(Folder, "write_json", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write_round(trial.key, make_round(trial, 4))
    monkeypatch.undo()
    snapshot = begin(store, trial)
    assert snapshot is not None
    assert snapshot.step == 2


def test_a_snapshot_whose_tensors_are_gone_begins_again(store: ResultStore, caplog: pytest.LogCaptureFixture) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    store.folder.delete(f"{trial.key}/snapshot-000002.safetensors")
    assert begin(store, trial) is None
    assert "names a file that is gone" in caplog.text


def test_a_failed_trial_goes_on_from_its_snapshot(store: ResultStore) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    store.fail(trial.key, step=2, error="ValueError", message="boom")
    assert store.status(trial.key) == TrialStatus(State.FAILED, 2, "ValueError: boom")
    assert begin(store, trial) is not None
    assert store.status(trial.key).state is State.INTERRUPTED


def test_stopped_is_not_done(store: ResultStore) -> None:
    trial = make_trial()
    begin(store, trial)
    store.stop(trial.key, step=2, rule="collapsed", reason="no numbers")
    assert store.status(trial.key) == TrialStatus(State.STOPPED, 2, "no numbers", rule="collapsed")


def test_rows_of_another_trial_are_refused(store: ResultStore) -> None:
    one, two = make_trial(0), make_trial(1)
    begin(store, one)
    with pytest.raises(StoreError, match=f"rows of {two.key} were handed in for trial {one.key}"):
        store.write_round(one.key, make_round(two, 2))


def test_unwritable_storage_is_an_error_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*file/s/\.probe"):
        Folder(tmp_path / "file" / "s").check_writable()
    with pytest.raises(StoreError, match="cannot open storage nosuch://bucket"):
        Folder("nosuch://bucket")


@pytest.mark.parametrize("where", ["its end", "its middle"])
def test_a_truncated_fragment_of_an_unfinished_trial_names_the_file_and_the_cure(
    store: ResultStore, tmp_path: Path, where: str
) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, replace(make_round(trial, 2), snapshot=None))
    path = tmp_path / "results/s" / trial.key / "probes-000002.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-30] if where == "its end" else data[:60] + b"?" * 40 + data[100:])
    with pytest.raises(DamagedError, match=r"probes-000002\.parquet is truncated or damaged") as caught:
        open_results("s", Workspace(root=tmp_path)).probes()
    assert "--repair" in caught.value.hint


def test_object_store_is_the_same_code(tmp_path: Path) -> None:
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())  # not LocalFileSystem: takes the put path
    store = ResultStore("bucket/s", remote)
    assert store.folder.local is None
    trial = make_trial()
    store.folder.check_writable()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 2))
    snapshot = begin(store, trial)
    assert snapshot is not None
    assert snapshot.step == 2
    assert isinstance(open_results(tmp_path / "bucket/s").probes(), pa.Table)
    store.forget(trial.key)
    assert store.status(trial.key).state is State.ABSENT


def test_file_uri_is_local(tmp_path: Path) -> None:
    assert Folder(f"file://{tmp_path}").local == tmp_path
