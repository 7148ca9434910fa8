"""The index of a sweep's finished trials: the same tables, verified once, and never believed of a folder that has changed."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import fs

from raysweep.reports.views import rows_with_gaps, trial_views
from raysweep.results import index, indexing, tables
from raysweep.results.folder import Folder, each
from raysweep.results.indexing import index_finished
from raysweep.results.state import State
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep

SEEDS = range(3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index few trials, at once."""
    for module in (index, indexing, tables):
        monkeypatch.setattr(module, "LEAST", 2)
    monkeypatch.setattr(index, "SETTLED", -1e9)


def shown(store: ResultStore) -> tuple[bytes, str, dict[str, State]]:
    """What a command makes of the sweep: the trials table's bytes, the rows shown, and the states."""
    sweep = Sweep(store)
    rows = rows_with_gaps(trial_views(sweep))
    sweep.write_trials()
    states = {key: sweep.state(key) for key in sweep.records}
    return store.folder.read("trials.parquet"), repr(rows), states


def test_a_sweep_is_shown_from_the_index_as_from_its_files(store: ResultStore, reads: Counter[str]) -> None:
    expected = shown(store)
    index_finished(Sweep(store))
    reads.clear()
    assert shown(store) == expected
    assert {name.partition("/")[0] for name in reads} == {"_index", "plan.json", "trials.parquet"}, (
        "no trial's own file was read"
    )
    assert index.finished(store.folder, expected[2]) == {k: Sweep(store).records[k].status for k in expected[2]}


def test_an_index_that_is_whole_is_not_written_again(store: ResultStore) -> None:
    index_finished(Sweep(store))
    before = store.folder.modified("_index")
    index_finished(Sweep(store))
    assert store.folder.modified("_index") == before


def test_a_changed_byte_is_noticed_though_size_and_time_are_as_before(store: ResultStore) -> None:
    index_finished(Sweep(store))
    key = store.keys()[0]
    file = Path(store.folder.path(sorted(n for n in store.folder.files(key) if "probes" in n)[0]))
    times, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert key not in index.finished(store.folder, store.keys())
    assert store.status(key).state is State.DONE  # its size is right; only its bytes are not
    sweep = Sweep(store)
    trial_views(sweep)
    assert set(sweep.damaged) == {key}


def test_a_trial_that_is_begun_anew_is_not_done_by_the_index(store: ResultStore) -> None:
    index_finished(Sweep(store))
    key = store.keys()[0]
    store.reopen(key)
    assert Sweep(store).state(key) is State.INTERRUPTED
    store.forget(key)
    assert Sweep(store).state(key) is State.ABSENT


def test_what_has_just_been_written_is_not_indexed(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SETTLED", 3600.0)
    index_finished(Sweep(store))
    assert not store.folder.exists("_index")


@pytest.mark.parametrize("file", ["trials.arrow", "probes.arrow"])
@pytest.mark.parametrize("harm", ["cut", "gone", "of another writer"])
def test_a_harmed_index_is_none(store: ResultStore, file: str, harm: str) -> None:
    expected = shown(store)
    index_finished(Sweep(store))
    path = Path(store.folder.path(f"_index/{file}"))
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(Path(store.folder.path("_index/trials.arrow")).read_bytes()[::-1])
    assert len(index.SweepIndex(store.folder)) == 0
    assert shown(store) == expected
    index_finished(Sweep(store))
    assert path.read_bytes() == whole


def test_a_large_trial_is_read_from_its_own_files(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = shown(store)
    monkeypatch.setattr(indexing, "MOST", 1)
    index_finished(Sweep(store))
    assert not store.folder.exists("_index")
    assert shown(store) == expected


def test_object_storage_is_listed_once_for_all_trials(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    monkeypatch.setattr(Folder, "local", None)
    remote = Folder(store.folder.base, fs.LocalFileSystem())
    get = index._remote_stamps
    monkeypatch.setattr(index, "_remote_stamps", lambda folder, keys: listed.append(folder.base) or get(folder, keys))
    first = index.stamps(remote, store.keys())
    assert (listed, set(first)) == ([store.folder.base], set(store.keys()))
    key = store.keys()[0]
    remote.write(f"{key}/more.json", b"{}")
    changed = index.stamps(remote, store.keys())
    assert {k for k in first if first[k].digest != changed[k].digest} == {key}


def test_storage_that_is_not_local_is_asked_by_several_threads(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.get_ident()
    assert set(each(store.folder, "ab", lambda key: threading.get_ident()).values()) == {here}
    monkeypatch.setattr(Folder, "local", None)
    both = threading.Barrier(2, timeout=30)
    assert list(each(store.folder, "ab", lambda key: both.wait() >= 0)) == ["a", "b"]
