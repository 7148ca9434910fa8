"""Thousands of trials through the real shell: what each costs beyond its own work.

    python -m benchmarks.scale --trials 10000
    python -m benchmarks.scale --trials 200 --nodes 4

Trials of a study that does nothing (``benchmarks/instant.py``), so that all that is measured is overhead: ``raysweep run`` in a
process of its own with Ray, the store and the display; then the same command again, which finds everything done, and
``raysweep show``. With ``--nodes`` it joins a cluster of so many raylets on this machine. Memory and CPU seconds are read from
``/proc`` twice a second, by kind of process: the driver, the trials' workers, and Ray's own.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import yaml

from benchmarks import instant, measure
from raysweep.errors import RunFailedError

TITLE = "many trials through the shell"
COLUMNS = (
    "trials ended",
    "driver MB",
    "driver peak MB",
    "all MB",
    "driver cpu s",
    "worker cpu s",
    "ray cpu s",
    "wall s",
    "s a trial",
)
COMMAND_TITLE = "commands on that sweep"
COMMAND_COLUMNS = ("command", "trials", "wall s", "cpu s", "peak MB")
STORE_COLUMNS = ("what", "files", "files a trial", "bytes a trial", "bytes on disk a trial")
TICK = os.sysconf("SC_CLK_TCK")
PAUSE = 0.5  # seconds between two looks at the processes
ENDED = re.compile(
    r"\[(\d+)/\d+\] "
)  # how the plain display begins a line about a trial: how many have ended, of how many


@dataclass
class Usage:
    """What a process and its descendants use, as last seen: CPU seconds by kind, and resident megabytes (10⁶ bytes)."""

    driver: int
    roots: tuple[int, ...] = ()
    cpu: dict[tuple[int, int], tuple[str, float]] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Read ``/proc`` once more; what a process that is gone had used by the last look stays counted."""
        family = _family({self.driver, *self.roots})
        # A driver that has ended (a zombie has no pages) leaves what was seen last.
        if self.megabytes and not family.get(self.driver, (0, 0, 0))[2]:
            return
        self.megabytes = dict.fromkeys(("driver", "worker", "ray"), 0.0)
        for pid, (start, ticks, pages) in family.items():
            kind = self._kind(pid)
            self.cpu[pid, start] = kind, ticks / TICK
            self.megabytes[kind] += pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _kind(self, pid: int) -> str:
        if pid == self.driver:
            return "driver"
        # A worker has Ray's own name at first, then that of its class, and ray::IDLE between two.
        title = _read(f"/proc/{pid}/cmdline")
        return (
            "worker" if b"default_worker" in title or (title.startswith(b"ray::") and b"Agent" not in title) else "ray"
        )

    def seconds(self, kind: str) -> float:
        """Return the CPU seconds of all processes of *kind*."""
        return sum(seconds for found, seconds in self.cpu.values() if found == kind)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _family(roots: set[int]) -> dict[int, tuple[int, int, int]]:
    """Return start time, CPU ticks and resident pages of *roots* and all that descends from them."""
    parents, found = {}, {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (stat := _read(f"{path}/stat")):
            fields = stat.rpartition(b")")[2].split()
            parents[int(path.name)] = int(fields[1])
            found[int(path.name)] = int(fields[19]), int(fields[11]) + int(fields[12]), int(fields[21])
    family, before = roots & found.keys(), -1
    while len(family) != before:
        before = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return {pid: found[pid] for pid in family}


class Run:
    """One ``raysweep run``, watched: a row at each mark of ended trials, and one when it is over."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, roots: Sequence[int]) -> None:
        self.log, self.rows, self.ended = log, list[dict[str, object]](), 0
        self.start = time.perf_counter()
        self.began: tuple[float, int] | None = None  # when the first trials had ended, and how many
        self._errors = log.with_suffix(".err").open("w")
        self.process = subprocess.Popen(
            command, env=dict(environment), stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.usage = Usage(self.process.pid, tuple(roots))
        self.peak = 0.0

    def follow(self, marks: Sequence[int]) -> float:
        """Read what it prints until it ends; return the wall seconds, begin to end.

        Raises:
            RunFailedError: it ended with another code than 0.
        """
        assert self.process.stdout is not None
        reader = threading.Thread(target=self._count, args=(self.process.stdout,))
        reader.start()
        waiting = sorted(marks)
        while self.process.poll() is None:
            self._look()
            if waiting and self.ended >= waiting[0]:
                self.rows.append(self.row())
                waiting = [mark for mark in waiting if mark > self.ended]
            time.sleep(PAUSE)
        reader.join()
        self._errors.close()
        if self.process.returncode != 0:
            raise RunFailedError(
                f"raysweep run ended with {self.process.returncode}: {self.log.with_suffix('.err').read_text()[-2000:]}"
            )
        self.rows.append(self.row() | {"end": True})
        return time.perf_counter() - self.start

    def _count(self, lines: IO[str]) -> None:
        with self.log.open("w", buffering=1) as log:
            for line in lines:
                log.write(line)
                told = ENDED.match(line)
                if told is not None and int(told[1]) > self.ended:
                    self.ended = int(told[1])
                    if self.began is None:
                        self.began = time.perf_counter(), self.ended

    def _look(self) -> None:
        self.usage.look()
        self.peak = max(self.peak, self.usage.megabytes["driver"])

    def row(self) -> dict[str, object]:
        """Return what has been used so far."""
        usage, now = self.usage, time.perf_counter()
        row: dict[str, object] = {
            "trials ended": self.ended, "driver MB": usage.megabytes["driver"], "driver peak MB": self.peak,
            "all MB": sum(usage.megabytes.values()), "wall s": now - self.start,
            **{f"{kind} cpu s": usage.seconds(kind) for kind in ("driver", "worker", "ray")},
        }  # fmt: skip
        if self.began is not None and self.ended > self.began[1]:
            row["s a trial"] = (now - self.began[0]) / (self.ended - self.began[1])
        return row


def space(trials: int, rounds: int) -> dict[str, object]:
    """Return the search space: two arms, and as many seeds as make *trials* trials."""
    return {
        "sweep": "scale",
        "study": "instant",
        "base": {
            "model": "embedded",
            "data": {"name": "world", "size": rounds},
            "protocol": {"rounds": list(range(1, rounds + 1))},
        },
        "arms": {"first": {"editor": "null"}, "second": {"editor": "null", "wrap": "prune"}},
        "space": {"seed": {"grid": list(range((trials + 1) // 2))}},
        "resources": {"cpu": 1, "gpu": 0},
    }


@contextmanager
def cluster(nodes: int, environment: dict[str, str], folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the address of *nodes* raylets on this machine, of one CPU each, and their processes; none: an empty address."""
    if not nodes:
        yield "", ()
        return
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(folder)}
    os.environ |= {name: environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "PYTHONPATH")}
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    # Listening on this machine's own address, and guarded by the token: Ray's clients turn the loopback's into that one.
    made = Cluster(initialize_head=True, head_node_args=each)
    try:
        for _ in range(nodes - 1):
            made.add_node(**each)
        made.wait_for_nodes()
        started = (
            process.process.pid
            for node in made.list_all_nodes()
            for each in node.all_processes.values()
            for process in each
        )
        yield made.address, tuple(started)
    finally:
        made.shutdown()


def timed(words: Sequence[str], environment: Mapping[str, str], log: Path) -> dict[str, object]:
    """Run a command of ``raysweep`` to its end; return what it used."""
    start, peak = time.perf_counter(), 0.0
    with log.open("w") as out:
        command = [sys.executable, "-m", "raysweep", *words]
        process = subprocess.Popen(command, env=dict(environment), stdout=out, stderr=subprocess.STDOUT)
        ended, code, used = 0, 0, None
        while not ended:
            # The high-water mark of the process itself: rusage counts what it was forked from as well.
            peak = max(peak, _high_water(process.pid))
            time.sleep(0.02)
            ended, code, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode != 0 or used is None:
        raise RunFailedError(f"raysweep {' '.join(words)} ended with {process.returncode}: {log.read_text()[-2000:]}")
    wall = time.perf_counter() - start
    return {"wall s": wall, "cpu s": used.ru_utime + used.ru_stime, "peak MB": peak}


def _high_water(pid: int) -> float:
    found = re.search(rb"VmHWM:\s+(\d+)", _read(f"/proc/{pid}/status"))
    return int(found[1]) * 1024 / 1e6 if found is not None else 0.0


def stored(results: Path, trials: int) -> list[dict[str, object]]:
    """Return how many files and bytes lie in *results*: ours, and Ray's own logs."""
    rows = []
    for what, ours in (("the store", True), ("Ray's logs", False)):
        infos = [
            p.stat() for p in results.rglob("*") if p.is_file() and ("_ray" not in p.relative_to(results).parts) == ours
        ]
        each = {"files a trial": len(infos), "bytes a trial": sum(i.st_size for i in infos),
                "bytes on disk a trial": sum(i.st_blocks * 512 for i in infos)}  # fmt: skip
        rows.append({"what": what, "files": len(infos), **{name: count / trials for name, count in each.items()}})
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Measure what the command line asks for; return the rows of the run."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=TITLE)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--concurrent", type=int, default=0, help="trials at once; 0 = as many as fit")
    parser.add_argument("--nodes", type=int, default=0, help="join a cluster of so many raylets on this machine")
    parser.add_argument("--marks", default="10,100,500,1000,2000,3000,4000,5000,6000,7000,8000,9000")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the workspace, which is left there")
    parser.add_argument(
        "--commands", action="store_true", help="only the commands, on the finished sweep that --keep names"
    )
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    about = measure.machine()
    with tempfile.TemporaryDirectory(prefix="rs-") as scratch:
        rows, commands, files = measured(options, Path(scratch), options.keep or Path(scratch) / "work")
    measure.show(TITLE, about, COLUMNS, rows)
    measure.show(COMMAND_TITLE, about, COMMAND_COLUMNS, commands)
    measure.show("what lies on the disk", about, STORE_COLUMNS, files)
    measure.write_json(options.json, TITLE, about, vars(options), [*rows, *commands, *files])
    return rows


def measured(options: argparse.Namespace, scratch: Path, root: Path) -> tuple[list[dict[str, object]], ...]:
    """Return the rows of the run, of the commands after it, and of the files."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "scale.yaml"
    file.write_text(yaml.safe_dump(space(options.trials, options.rounds)))
    environment = {
        **os.environ,
        **instant.install(root / "plugins"),
        "RAYSWEEP_ROOT": str(root),
        "OMP_NUM_THREADS": "1",
    }
    count = 2 * ((options.trials + 1) // 2)
    run = ["run", str(file), "--concurrent", str(options.concurrent)]
    rows: list[dict[str, object]] = []
    if not options.commands:
        with cluster(options.nodes, environment, scratch) as (address, roots):
            joined = [*run, "--address", address] if address else run
            watched = Run([sys.executable, "-m", "raysweep", *joined], environment, root / "run.log", roots)
            watched.follow([int(mark) for mark in options.marks.split(",")])
        if watched.ended != count:
            raise RunFailedError(f"{watched.ended} of {count} trials were seen to end; {watched.log} says more")
        rows = watched.rows
    commands = []
    for words in (["validate", str(file)], ["plan", str(file)], run, ["show", "scale"], ["compare", "scale"]):
        used = timed(words, environment, root / f"again-{words[0]}.log")
        commands.append({"command": "run, all done" if words is run else words[0], "trials": count, **used})
    return rows, commands, stored(root / "results" / "scale", count)


if __name__ == "__main__":
    main()
