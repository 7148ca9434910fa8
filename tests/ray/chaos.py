"""Sweeps that are hurt in every way we know, run again until they are complete, and compared with one that nobody hurt.

    make chaos                                   # 20 rounds
    python tests/ray/chaos.py --rounds 5 --seed 3

After every run of a driver: it ended with 0 exactly if the tables are all there and equal, byte for byte, to those of the
undisturbed run. After the last: nothing of it is left in /tmp, and no half-written file in the results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ray_cluster import LocalCluster
from ray_helpers import descendants, finish, install_fakes, start, table_bytes

CONFIGS: dict[str, dict[str, Any]] = {"x1": {"scale": 1.0}, "x2": {"scale": 2.0}, "calm": {}}
TRIES = 6  # runs until a hurt sweep must be complete
DONE = {"done": 6, "failed": [], "unfinished": 0}


@dataclass
class Played:
    """What became of one round: its kind, the exit codes of its drivers, and what was wrong (nothing, if all is well)."""

    kind: str
    codes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kind}: exit codes {self.codes}{''.join(f'; WRONG: {w}' for w in self.wrong)}"


class Chaos:
    """One plan of six trials in four passes, its undisturbed tables, and the ways to hurt a run of it."""

    def __init__(self, base: Path, *, mounts: bool = False, sleep: float = 0.15) -> None:
        self.base, self.plugins, self.mounts = base, base / "plugins", mounts
        self.plugins.mkdir()
        install_fakes(self.plugins)
        self.fault = base / "fault"  # what writing in the results raises, while this file says so
        common = {"sleep": sleep, "log": str(base / "log"), "fault": str(self.fault)}
        self.configs = {arm: {**config, **common} for arm, config in CONFIGS.items()}
        self.pids: set[int] = set()
        self.number = 0
        code, outcome, lines = finish(self.start("undisturbed"))
        assert (code, outcome) == (0, DONE), lines
        self.expected = table_bytes(base / "undisturbed", "s")
        self.kinds: dict[str, Callable[[Path, random.Random, Played], None]] = {
            "trial killed": lambda root, rng, played: self._killed("ray::Trainable", root, rng, played),
            "shard killed": lambda root, rng, played: self._killed("ray::Shard", root, rng, played),
            "raylet killed": lambda root, rng, played: self._killed("raylet", root, rng, played),
            "driver killed": self._driver_killed,
            "interrupted": self._interrupted,
            "storage removed": lambda root, rng, played: self._taken(shutil.rmtree, root, rng, played),
            "storage moved": lambda root, rng, played: self._taken(_move_away, root, rng, played),
            "storage read-only": lambda root, rng, played: self._unwritable("EROFS", root, rng, played),
            "storage full": lambda root, rng, played: self._unwritable("ENOSPC", root, rng, played),
            "node killed": lambda root, rng, played: self._node_lost(LocalCluster.kill, root, rng, played),
            "node drained": lambda root, rng, played: self._node_lost(LocalCluster.drain, root, rng, played),
            "two drivers": self._two_drivers,
            "two drivers, the second afresh": self._fresh_beside,
        }

    def play(self, kind: str, seed: int) -> Played:
        """Play one round; everything random in it comes from *seed*."""
        self.number += 1
        root, played = self.base / f"round-{self.number}", Played(kind)
        (root / "results").mkdir(parents=True)
        with self._storage(kind, root):
            self.kinds[kind](root, random.Random(seed), played)
            for _ in range(TRIES):
                if played.codes[-1:] == [0]:
                    break
                self._run(root, played)
            else:
                played.wrong.append("never complete")
            self._check_rest(root, played)
        return played

    # the ways to hurt it

    def _killed(self, title: str, root: Path, rng: random.Random, played: Played) -> None:
        process = self._begun(root, rng, shards=2 if "Shard" in title else 1)
        until = time.monotonic() + 30
        while time.monotonic() < until and process.poll() is None:
            victims = [
                pid for pid in descendants(process.pid) if _title(pid).startswith(title) or _program(pid) == title
            ]
            if victims:
                _kill(rng.choice(victims))
                break
            time.sleep(0.02)
        else:
            played.wrong.append(f"there was no {title} to kill")
        self._end(process, root, played)

    def _driver_killed(self, root: Path, rng: random.Random, played: Played) -> None:
        process = self._begun(root, rng)
        process.kill()
        self._end(process, root, played)

    def _interrupted(self, root: Path, rng: random.Random, played: Played) -> None:
        process = self._begun(root, rng)
        process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
        self._end(process, root, played)

    def _taken(self, take: Callable[[Path], Any], root: Path, rng: random.Random, played: Played) -> None:
        process = self._begun(root, rng)
        until = time.monotonic() + 20
        while time.monotonic() < until:  # writers at work may get in its way
            with contextlib.suppress(OSError):
                take(root / "results" / "s")
                break
        # A small sweep may be made anew before the driver looks for its lock: then 0 is right, and the tables are compared.
        self._end(process, root, played)

    def _unwritable(self, error: str, root: Path, rng: random.Random, played: Played) -> None:
        process = self._begun(root, rng)
        with self._broken(error, root):
            self._end(process, root, played)

    def _node_lost(
        self, lose: Callable[[LocalCluster, int], None], root: Path, rng: random.Random, played: Played
    ) -> None:
        """Take one of two nodes away; what ran there goes on on the other one."""
        folder = Path(tempfile.mkdtemp(prefix="rc"))  # short, for Ray's sockets
        paths = {"PYTHONPATH": str(self.plugins), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            with patch.dict(os.environ, paths):
                cluster = LocalCluster(folder, cpus=(0, 1, 1))
            try:
                joining = {k: v for k, v in cluster.environment.items() if k.startswith("RAY_AUTH")}
                with patch.dict(os.environ, joining):
                    process = self._begun(root, rng, options={"address": cluster.address})
                lose(cluster, rng.choice([1, 2]))
                self._end(process, root, played)
            finally:
                cluster.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if played.codes[-1] != 0:
            played.wrong.append("the other node did not take over")

    def _two_drivers(self, root: Path, rng: random.Random, played: Played) -> None:
        first = self._begun(root, rng)
        second = self.start(root.name)
        code, outcome, lines = finish(second)
        played.codes.append(code)
        if code != 2 or f"is being run by process {first.pid} of" not in outcome.get("error", ""):
            played.wrong.append(f"the second driver ended with {code}: {outcome} {lines}")
        third = self.start(root.name, options={"anyway": True})
        self._end(first, root, played)
        self._end(third, root, played)

    def _fresh_beside(self, root: Path, rng: random.Random, played: Played) -> None:
        first = self._begun(root, rng)
        second = self.start(root.name, options={"fresh": True, "anyway": True})
        self._end(first, root, played)
        self._end(second, root, played)

    # runs and what is asked of them

    def start(self, root: str, *, shards: int = 1, options: dict[str, Any] | None = None) -> subprocess.Popen[str]:
        """Start a driver of the plan below *root*."""
        process = start(
            self.base / root, "s", self.configs, plugins=self.plugins, options=options, shards=shards, retries=2
        )
        self.pids.add(process.pid)
        return process

    def _begun(
        self, root: Path, rng: random.Random, *, shards: int = 1, options: dict[str, Any] | None = None
    ) -> subprocess.Popen[str]:
        """Start a driver and wait until some trial, the more the later, has reached a round."""
        process = self.start(root.name, shards=shards, options=options)
        assert process.stdout is not None
        for _ in range(rng.randint(1, 12)):
            if not process.stdout.readline():
                break
        time.sleep(rng.random() * 0.3)
        return process

    def _run(self, root: Path, played: Played) -> None:
        self._end(self.start(root.name), root, played)

    def _end(self, process: subprocess.Popen[str], root: Path, played: Played) -> None:
        """Wait for a driver; its exit code has to say whether the sweep is complete."""
        out, err = process.communicate(timeout=240)
        played.codes.append(process.returncode)
        if "CHAOS_VERBOSE" in os.environ:
            print(process.returncode, out, err, sep="\n", flush=True)
        if "Traceback" in err and process.returncode >= 0:
            played.wrong.append(f"a traceback: {err[-1500:]}")
        complete = self._complete(root)
        if (process.returncode == 0) and not complete:
            differing = self._difference(root)
            played.wrong.append(f"exit code 0, but not the undisturbed run's tables: {differing}\n{out}\n{err}")
        if process.returncode not in (0, 2) and complete and process.returncode > 0:
            played.wrong.append(f"exit code {process.returncode}, but everything is there\n{out}\n{err}")

    def _complete(self, root: Path) -> bool:
        """Tell whether the tables are there and equal to those of the undisturbed run."""
        return self._difference(root) == ""

    def _difference(self, root: Path) -> str:
        """Return in what the tables differ from those of the undisturbed run; nothing if they do not."""
        try:
            tables = table_bytes(root, "s")
        except Exception as error:
            return repr(error)
        return ", ".join(sorted(n for n in tables.keys() | self.expected if tables.get(n) != self.expected.get(n)))

    def _check_rest(self, root: Path, played: Played) -> None:
        if played.codes[-1:] == [0] and not self._complete(root):
            played.wrong.append(f"the final tables are not those of the undisturbed run: {self._difference(root)}")
        drafts = [p for p in (root / "results" / "s").rglob(".*") if "_ray" not in p.parts]
        if drafts or (root / "results" / "s" / "_drivers").exists():
            played.wrong.append(f"left in the results: {drafts or '_drivers'}")
        for folder in Path("/tmp").glob("rs*"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                owner = json.loads((folder / "owner.json").read_text())["pid"]
                if owner in self.pids:
                    played.wrong.append(f"left in /tmp: {folder} of process {owner}")

    @contextlib.contextmanager
    def _storage(self, kind: str, root: Path) -> Iterator[None]:
        """Put the results of a round that breaks its disk on a disk of their own, where that is allowed."""
        if not (self.mounts and kind in ("storage full", "storage read-only")):
            yield
            return
        where = str(root / "results")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", where], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", where], check=True)

    @contextlib.contextmanager
    def _broken(self, error: str, root: Path) -> Iterator[None]:
        """Let nobody write in the results: really, on a disk of their own, or by an error raised where files are written."""
        results = root / "results"
        if not self.mounts:
            self.fault.write_text(error)
            yield
            self.fault.unlink()
        elif error == "EROFS":
            until = time.monotonic() + 20
            while time.monotonic() < until and subprocess.run(["mount", "-o", "remount,ro", results]).returncode:
                time.sleep(0.01)  # a file is open for writing
            yield
            subprocess.run(["mount", "-o", "remount,rw", results], check=True)
        else:
            with contextlib.suppress(OSError), (results / "filler").open("wb") as filler:
                while True:
                    filler.write(b"0" * 4096)
                    filler.flush()
            yield
            (results / "filler").unlink()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _move_away(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def can_mount() -> bool:
    """Tell whether this process may mount a disk of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


def main() -> int:
    """Play rounds, each kind in turn; print what became of each; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only this kind")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as base:
        chaos = Chaos(Path(base), mounts=os.getuid() == 0 and can_mount())
        kinds = [options.kind] if options.kind else list(chaos.kinds)
        for number in range(options.rounds):
            began = time.monotonic()
            played = chaos.play(kinds[number % len(kinds)], options.seed + number)
            wrong += bool(played.wrong)
            print(f"[{number + 1}/{options.rounds}] {played}  ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{options.rounds - wrong} of {options.rounds} rounds well, {wrong} not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
