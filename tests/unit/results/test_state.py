"""One rule for where a trial stands: whatever happens to its files, it is never called done unless all of it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results_helpers import begin, make_round, make_trial, write_trial

from raysweep.errors import DamagedError, NewerFormatError, StorageLostError
from raysweep.reports.views import trial_views
from raysweep.results.schema import PROBES, STATS, TIMING
from raysweep.results.state import State, trial_state
from raysweep.results.statefiles import FORMAT
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, trial_columns

STATE_FILES = ("trial.json", "DONE.json", "timing.json", "FAILED.json", "STOPPED.json")
WRONG = {
    "empty object": "{}",
    "null": "null",
    "list": "[1, 2]",
    "text": '"step"',
    "number": "7",
    "empty file": "",
    "cut off": '{"step": 4, "fi',
    "not UTF-8": b"\xff\xfe{}",
    "deeply nested": "[" * 100_000,
    "wrong types": '{"step": "4", "key": 1, "trial": [], "type": null}',
    "true for a number": '{"step": true}',
    "negative step": '{"step": -1}',
    "format is a text": '{"format": "2", "step": 4}',
}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "s")


@pytest.fixture
def folder(store: ResultStore, done: str) -> Path:
    assert store.folder.local is not None
    return store.folder.local / done


@pytest.fixture
def done(store: ResultStore) -> str:
    """The key of a finished trial, beside another one."""
    write_trial(store, make_trial(0))
    write_trial(store, make_trial(1))
    keys = [make_trial(seed).key for seed in (0, 1)]
    listed = [{"key": key, "arm": "memit", "point": {"seed": seed}} for seed, key in enumerate(keys)]
    store.write_plan({"sweep": "s", "search": {}, "trials": listed}, "")
    assert trial_state(store.folder, keys[0], verify=True).state is State.DONE
    return keys[0]


def left_out(store: ResultStore) -> dict[str, str]:
    """Return what a reader of the tables is told, after reading them."""
    sweep = Sweep(store)
    views = {view.row["trial_key"]: view for view in trial_views(sweep)}
    assert {key for key, view in views.items() if view.measured} == set(sweep.keys)
    assert make_trial(1).key in sweep.keys, "the other trial is read all the same"
    assert {views[key].row["status"] for key in sweep.damaged} <= {"DAMAGED", "NEWER"}
    return sweep.damaged


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", STATE_FILES)
def test_a_state_file_of_the_wrong_shape_damages_its_own_trial_only(
    store: ResultStore, done: str, folder: Path, name: str, wrong: str
) -> None:
    if name in ("FAILED.json", "STOPPED.json"):
        (folder / "DONE.json").unlink()
    content = WRONG[wrong]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    status = trial_state(store.folder, done)
    assert (status.state, status.altered, status.ended) == (State.DAMAGED, (), False)
    assert str(folder / name) in status.reason
    assert left_out(store) == {done: status.reason}
    assert begin(store, make_trial(0)) is None, "it is made again"
    store.reopen(done)
    assert trial_state(store.folder, done).state is State.INTERRUPTED


@pytest.mark.parametrize(
    "change", ["drop trial", "drop step of a list", "unknown spec", "another trial's", "unknown table"]
)
def test_json_that_is_nearly_right_is_damaged_too(store: ResultStore, done: str, folder: Path, change: str) -> None:
    name = "DONE.json" if change in ("drop step of a list", "unknown table") else "trial.json"
    about = json.loads((folder / name).read_text())
    if change == "drop trial":
        del about["trial"]
    elif change == "drop step of a list":
        del about["files"][1]["step"]
    elif change == "unknown spec":
        about["trial"]["protocol"]["rounds"] = "often"
    elif change == "unknown table":
        about["files"][0]["table"] = "../../elsewhere/probes"
    else:
        about = json.loads((folder.parent / make_trial(1).key / "trial.json").read_text())
    (folder / name).write_text(json.dumps(about))
    assert trial_state(store.folder, done).state is State.DAMAGED
    assert list(left_out(store)) == [done]


@pytest.mark.parametrize("name", [*STATE_FILES, "snapshot.json", "plan.json"])
def test_a_newer_raysweep_s_files_are_named_and_left_alone(
    store: ResultStore, done: str, folder: Path, name: str
) -> None:
    if name not in ("trial.json", "timing.json"):
        (folder / "DONE.json").unlink()
    path = folder.parent / name if name == "plan.json" else folder / name
    path.write_text(json.dumps({"format": FORMAT + 1, "surprise": True}))
    if name == "plan.json":
        with pytest.raises(NewerFormatError, match=rf"has format {FORMAT + 1}; this raysweep reads up to {FORMAT}"):
            store.plan()
        return
    status = trial_state(store.folder, done)
    assert (status.state, status.ended) == (State.NEWER, True)
    assert f"has format {FORMAT + 1}; this raysweep reads up to {FORMAT}" in left_out(store)[done]


def test_a_damaged_plan_counts_as_none(store: ResultStore, done: str, folder: Path) -> None:
    for content in ("{}", "[]", "null", '{"sweep": "s", "trials": [{"key": 1}]}', '{"sweep": "s", "trials": {}}'):
        (folder.parent / "plan.json").write_text(content)
        assert store.plan() is None
        assert len(Sweep(store).keys) == 2


@pytest.mark.parametrize("table", [PROBES.name, STATS.name, TIMING.name])
@pytest.mark.parametrize("step", [0, 4])
def test_a_missing_file_makes_a_trial_undone_at_once(
    store: ResultStore, done: str, folder: Path, table: str, step: int
) -> None:
    (folder / f"{table}-{step:06d}.parquet").unlink()
    status = trial_state(store.folder, done)
    assert (status.state, status.altered, status.ended) == (State.DAMAGED, (), False)
    assert f"{table}-{step:06d}.parquet is missing" in status.reason
    assert list(left_out(store)) == [done]


def _swap(folder: Path) -> None:
    """Put the file of the other trial in place of this one's."""
    other = folder.parent / make_trial(1).key / "probes-000002.parquet"
    (folder / "probes-000002.parquet").write_bytes(other.read_bytes())


def _flip(folder: Path) -> None:
    path = folder / "probes-000002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def _cut(folder: Path) -> None:
    path = folder / "probes-000002.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def _swap_rounds(folder: Path) -> None:
    (folder / "probes-000002.parquet").write_bytes((folder / "probes-000004.parquet").read_bytes())


def _add(folder: Path) -> None:
    """Copy in a round that the trial does not have."""
    other = folder.parent / make_trial(1).key / "probes-000004.parquet"
    (folder / "probes-000003.parquet").write_bytes(other.read_bytes())


def _empty(folder: Path) -> None:
    (folder / "probes-000002.parquet").write_bytes(b"")


@pytest.mark.parametrize("harm", [_swap, _flip, _cut, _swap_rounds, _add, _empty])
def test_an_altered_or_foreign_file_is_found_and_made_again_on_demand_only(
    store: ResultStore, done: str, folder: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder)
    status = trial_state(store.folder, done, verify=True)
    assert (status.state, status.ended) == (State.DAMAGED, True)
    (name,) = status.altered
    assert name in status.reason
    assert name in left_out(store)[done]
    with pytest.raises(DamagedError, match=name):
        trial_columns(store, done)


def test_equal_sizes_do_not_hide_another_trial_s_file(store: ResultStore, done: str, folder: Path) -> None:
    _swap(folder)
    listed = json.loads((folder / "DONE.json").read_text())
    size = (folder / "probes-000002.parquet").stat().st_size
    for file in listed["files"]:
        if (file["table"], file["step"]) == ("probes", 2):
            file["bytes"] = size
    (folder / "DONE.json").write_text(json.dumps(listed))
    assert trial_state(store.folder, done).state is State.DONE, "a look does not read every file"
    assert trial_state(store.folder, done, verify=True).altered == ("probes-000002.parquet",)
    assert list(left_out(store)) == [done]


def test_altered_seconds_are_found_too(store: ResultStore, done: str, folder: Path) -> None:
    path = folder / "timing-000002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert trial_state(store.folder, done, verify=True).altered == ("timing-000002.parquet",)
    assert list(left_out(store)) == [done]


def test_done_names_its_files_and_two_equal_runs_write_it_alike(store: ResultStore, done: str, tmp_path: Path) -> None:
    files = json.loads(store.folder.read(f"{done}/DONE.json"))["files"]
    assert [(f["table"], f["step"]) for f in files] == [
        (table, step) for step in (0, 2, 4) for table in ("editor_stats", "probes")
    ]
    assert [f["rows"] for f in files if f["table"] == "probes"] == [8, 12, 20]
    other = ResultStore(tmp_path / "again")
    begin(other, make_trial(0))
    for step in (0, 2):
        other.write_round(done, make_round(make_trial(0), step))
    resumed = ResultStore(tmp_path / "again")  # another process goes on
    snapshot = begin(resumed, make_trial(0))
    assert snapshot is not None
    assert snapshot.step == 2
    resumed.write_round(done, make_round(make_trial(0), 4))
    resumed.finish(done, step=4)
    assert resumed.folder.read(f"{done}/DONE.json") == store.folder.read(f"{done}/DONE.json")
    assert trial_state(resumed.folder, done, verify=True).state is State.DONE


def test_what_version_0_1_finished_is_done(store: ResultStore, done: str, folder: Path) -> None:
    (folder / "DONE.json").write_text('{"step": 4}')
    (folder / "timing.json").unlink()
    about = json.loads((folder / "trial.json").read_text())
    del about["format"]
    (folder / "trial.json").write_text(json.dumps(about))
    assert trial_state(store.folder, done, verify=True).state is State.DONE
    assert left_out(store) == {}
    _swap(folder)
    assert f"of another trial: {make_trial(1).key}" in left_out(store)[done], "its rows still say whose they are"
    (folder / "probes-000002.parquet").unlink()
    assert trial_state(store.folder, done).state is State.DAMAGED


def test_what_version_0_1_began_goes_on(store: ResultStore, tmp_path: Path) -> None:
    trial = make_trial()
    begin(store, trial)
    for step in (0, 2):
        store.write_round(trial.key, make_round(trial, step))
    path = tmp_path / "s" / trial.key / "snapshot.json"
    about = json.loads(path.read_text())
    assert {f["step"] for f in about["files"]} == {0, 2}
    path.write_text(json.dumps({k: v for k, v in about.items() if k not in ("files", "format")}))
    other = ResultStore(tmp_path / "s")
    snapshot = begin(other, trial)
    assert snapshot is not None
    assert snapshot.step == 2
    other.write_round(trial.key, make_round(trial, 4))
    other.finish(trial.key, step=4)
    assert trial_state(other.folder, trial.key, verify=True).state is State.DONE
    assert len(json.loads(other.folder.read(f"{trial.key}/DONE.json"))["files"]) == 6


def test_an_unfinished_trial_whose_rounds_were_altered_begins_again(store: ResultStore, tmp_path: Path) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 0))
    store.write_round(trial.key, make_round(trial, 2))
    (tmp_path / "s" / trial.key / "probes-000000.parquet").unlink()
    assert begin(ResultStore(tmp_path / "s"), trial) is None
    assert not list((tmp_path / "s" / trial.key).glob("*.parquet"))


def test_a_folder_that_vanishes_under_a_trial_never_becomes_done(store: ResultStore, tmp_path: Path) -> None:
    trial = make_trial()
    begin(store, trial)
    store.write_round(trial.key, make_round(trial, 0))
    (tmp_path / "s").rename(tmp_path / "moved")
    with pytest.raises(StorageLostError, match="was removed or moved while its trial ran"):
        store.write_round(trial.key, make_round(trial, 2))
    other = ResultStore(tmp_path / "s")  # somebody begins the sweep anew
    begin(other, trial)
    store.write_round(trial.key, make_round(trial, 2))
    store.write_round(trial.key, make_round(trial, 4))
    with pytest.raises(StorageLostError, match=r"000000\.parquet is gone, though this trial wrote it"):
        store.finish(trial.key, step=4)
    assert trial_state(store.folder, trial.key).state is State.INTERRUPTED


def test_a_failure_before_the_first_file_is_a_failure(store: ResultStore) -> None:
    store.fail("k", step=0, error="ProcessDied", message="out of memory")
    assert trial_state(store.folder, "k").state is State.FAILED
    assert trial_state(store.folder, "j").state is State.ABSENT


def test_the_planned_rounds_count(store: ResultStore, done: str) -> None:
    assert trial_state(store.folder, done, (0, 2, 4)).state is State.DONE
    assert trial_state(store.folder, done, (0, 2, 4, 6)).state is State.DAMAGED


def test_an_object_store_is_judged_by_the_same_rule(tmp_path: Path) -> None:
    from pyarrow import fs

    remote: Any = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store = ResultStore("bucket/s", remote)
    write_trial(store, make_trial(0))
    key = make_trial(0).key
    assert trial_state(store.folder, key, verify=True).state is State.DONE
    path = tmp_path / "bucket/s" / key / "probes-000002.parquet"
    path.write_bytes(path.read_bytes()[::-1])
    assert trial_state(store.folder, key, verify=True).altered == ("probes-000002.parquet",)
