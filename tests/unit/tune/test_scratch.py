"""Ray's scratch folder: private, gone afterwards, and gone at the next start where its driver was killed; others' folders stay."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raysweep.processes import this_process
from raysweep.tune.scratch import OWNER, remove_abandoned, scratch_folder


def test_it_is_private_whatever_ray_makes_of_its_own(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as inner:
        assert list(inner.iterdir()) == []
        inner.chmod(0o777)  # as Ray does
        assert stat.S_IMODE(inner.parent.stat().st_mode) == 0o700
        assert inner.parent.parent == tmp_path
        assert len(str(inner)) == len(str(tmp_path)) + len("/rs12345678/r"), "sockets' paths are short"
        (inner / "session/sockets").mkdir(parents=True)
        assert remove_abandoned(tmp_path) == [], "its owner lives"
    assert list(tmp_path.iterdir()) == []


def test_it_goes_when_the_block_is_left_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_driver_s_is_removed_at_the_next_start_and_so_are_its_processes(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from pathlib import Path; from raysweep.tune.scratch import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as inner:\n"
        "    (inner / 'session' / 'logs').mkdir(parents=True)\n"
        "    left = [sys.executable, '-c', 'import time; time.sleep(60)', f'--temp-dir={inner}']\n"
        "    print(subprocess.Popen(left, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    orphan = int(driver.stdout.readline())
    (left,) = tmp_path.iterdir()
    with scratch_folder(tmp_path):
        assert left.exists()
    driver.kill()
    driver.wait()
    with scratch_folder(tmp_path) as inner:
        assert list(tmp_path.iterdir()) == [inner.parent]
    until = time.monotonic() + 10
    while _is_alive(orphan) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _is_alive(orphan)


def test_what_is_not_surely_an_abandoned_one_of_ours_stays(tmp_path: Path) -> None:
    gone = replace(this_process(), pid=2**22 + 1)
    owners = {
        "rs-no-owner": None,
        "rs-not-json": "{",
        "rs-other-shape": json.dumps({"pid": 1}),
        "rs-other-machine": json.dumps(asdict(replace(gone, boot="elsewhere"))),
        "rs-other-container": json.dumps(asdict(replace(gone, namespace="pid:[1]"))),
        "rs-alive": json.dumps(asdict(this_process())),
        "other-prefix": json.dumps(asdict(gone)),
    }
    for name, text in owners.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("precious")
        if text is not None:
            (tmp_path / name / OWNER).write_text(text)
    (tmp_path / "rs-file").write_text("")
    target = tmp_path / "target"
    target.mkdir()
    (target / OWNER).write_text(json.dumps(asdict(gone)))
    (tmp_path / "rs-link").symlink_to(target)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert remove_abandoned(tmp_path) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    (tmp_path / "rs-gone").mkdir()
    (tmp_path / "rs-gone" / OWNER).write_text(json.dumps(asdict(gone)))
    assert remove_abandoned(tmp_path) == [tmp_path / "rs-gone"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_another_user_s_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rs-foreign"
    folder.mkdir()
    (folder / OWNER).write_text(json.dumps(asdict(replace(this_process(), pid=2**22 + 1))))
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert remove_abandoned(tmp_path) == []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
