"""Who runs a sweep: of two drivers one, and nobody is hindered by one that died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from raysweep.errors import BusyError
from raysweep.processes import ProcessId, start_of, this_process
from raysweep.results import drivers
from raysweep.results.drivers import STALE, DriverLock, drivers_at_work
from raysweep.results.folder import Folder


@pytest.fixture(params=["local", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(tmp_path / "s")
    return Folder("bucket/s", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))


def write(folder: Folder, **changes: Any) -> None:
    """Write the file of another driver: a living process of this machine but for *changes*."""
    me = this_process()
    content = {
        "host": me.host, "boot": me.boot, "namespace": me.namespace, "pid": os.getppid(), "start": start_of(os.getppid()),
        "user": "ada", "since": "2026-01-01 00:00:00Z", "running": True, "keys": None,
    }  # fmt: skip
    folder.write_json("_drivers/other.json", {**content, **changes})


def age(folder: Folder, seconds: float) -> None:
    base = Path(folder.base) if folder.local else Path(folder.filesystem.base_path) / folder.base
    old = time.time() - seconds
    os.utime(base / "_drivers/other.json", (old, old))


def test_the_second_driver_is_told_who_the_first_is(folder: Folder) -> None:
    with DriverLock(folder):
        with pytest.raises(BusyError) as caught, DriverLock(folder):
            raise AssertionError
        said = str(caught.value)
        assert f"process {os.getpid()} of " in said
        assert f" on {this_process().host}, since 20" in said
        assert "--anyway" in caught.value.hint
        assert len(drivers_at_work(folder)) == 1, "the first one's lock stands"
        with DriverLock(folder, anyway=True):
            assert len(drivers_at_work(folder)) == 2
        with pytest.raises(BusyError), DriverLock(folder):
            pass
    assert drivers_at_work(folder) == ()
    assert folder.files("_drivers") == []
    with DriverLock(folder):
        pass


@pytest.mark.parametrize(
    ("change", "hinders"),
    [
        ({}, True),
        ({"start": "1"}, False),  # the number was given to a later process
        ({"pid": 2**22 + 1}, False),  # no such process
        ({"boot": "another start of this machine, or another machine"}, True),  # unknown, but its file is fresh
        ({"namespace": "pid:[1]"}, True),  # another container of this machine
        ({"running": False}, True),  # about to start, and first by name
    ],
)
def test_a_fresh_file_hinders_unless_its_process_is_known_to_be_gone(
    folder: Folder, change: dict[str, Any], hinders: bool
) -> None:
    write(folder, **change)
    assert bool(drivers_at_work(folder)) is hinders
    lock = DriverLock(folder)
    lock._name = "_drivers/zzz.json"
    if hinders:
        with pytest.raises(BusyError, match="of ada on "), lock:
            pass
        return
    with lock:
        assert folder.files("_drivers") == ["_drivers/zzz.json"], "what a dead driver left is removed"


def test_a_driver_elsewhere_counts_while_its_file_is_kept_fresh(folder: Folder) -> None:
    write(folder, boot="elsewhere", host="far")
    age(folder, STALE - 30)
    assert [d.process.host for d in drivers_at_work(folder)] == ["far"]
    age(folder, STALE + 30)
    assert drivers_at_work(folder) == ()
    with DriverLock(folder):
        assert not folder.exists("_drivers/other.json")
    write(folder)
    age(folder, 10 * STALE)
    assert len(drivers_at_work(folder)) == 1, (
        "a process that is seen to live is believed, however old its file (a full disk)"
    )


def test_drivers_of_other_trials_do_not_meet(folder: Folder) -> None:
    with DriverLock(folder, keys=["a", "b"]):
        with DriverLock(folder, keys=["c"]):
            pass
        for keys in (["b", "c"], None):
            with pytest.raises(BusyError), DriverLock(folder, keys=keys):
                pass
        (driver,) = drivers_at_work(folder)
        assert (driver.works_on("a"), driver.works_on("c")) == (True, False)


def test_of_many_that_start_at_once_one_runs(tmp_path: Path) -> None:
    folder, gate = Folder(tmp_path / "s"), threading.Barrier(6)
    ran: list[int] = []
    held, most = [0], [0]

    def drive(number: int) -> None:
        gate.wait()
        try:
            with DriverLock(folder):
                held[0] += 1
                most[0] = max(most[0], held[0])
                time.sleep(0.4)
                held[0] -= 1
                ran.append(number)
        except BusyError:
            pass

    threads = [threading.Thread(target=drive, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ran), most[0]) == (1, 1)


def test_a_killed_driver_hinders_nobody(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raysweep.results.drivers import DriverLock; from raysweep.results.folder import Folder\n"
        "with DriverLock(Folder(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    folder = Folder(tmp_path)
    (driver,) = drivers_at_work(folder)
    assert driver.process.pid == process.pid
    with pytest.raises(BusyError, match=f"process {process.pid} of "), DriverLock(folder):
        pass
    process.kill()
    assert process.wait() != 0
    with DriverLock(folder):
        assert len(drivers_at_work(folder)) == 1


@pytest.mark.parametrize("harm", ["removed", "moved", "made anew"])
def test_a_folder_that_goes_away_is_noticed(tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "BEAT", 0.05)
    with DriverLock(Folder(tmp_path / "s")) as lock:
        time.sleep(0.15)
        assert lock.check(), "a beat keeps it"
        (tmp_path / "s").rename(tmp_path / "t")
        if harm == "made anew":
            (tmp_path / "s" / "_drivers").mkdir(parents=True)
        until = time.monotonic() + 10
        while not lock.lost and time.monotonic() < until:
            time.sleep(0.01)
        assert lock.lost
    assert (tmp_path / "s").exists() == (harm == "made anew"), "the lock does not bring the folder back"


def test_foreign_files_among_the_drivers_are_ignored(folder: Folder) -> None:
    for name, content in (("a.json", b"{}"), ("b.json", b"not JSON"), ("c.txt", b""), ("d.json", b"[1]")):
        folder.write(f"_drivers/{name}", content)
    assert drivers_at_work(folder) == ()
    with DriverLock(folder):
        assert len(drivers_at_work(folder)) == 1


def test_process_identity() -> None:
    me = this_process()
    assert me.is_alive()
    assert json.loads(json.dumps(me.start)) == me.start
    child = subprocess.Popen([sys.executable, "-c", ""])
    start = start_of(child.pid) or ""
    while start_of(child.pid) is not None:  # a zombie is no living process
        time.sleep(0.01)
    assert ProcessId(me.host, me.boot, me.namespace, child.pid, start).is_alive() is False
    child.wait()
    assert ProcessId(me.host, me.boot, me.namespace, child.pid, start).is_alive() is False
    assert ProcessId(me.host, "other", me.namespace, me.pid, me.start).is_alive() is None
