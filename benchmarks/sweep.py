"""What Ray costs per trial: trials that edit nothing, through Ray and in this process.

    python -m benchmarks.sweep --trials 10

Ray's start-up is separated by a sweep of one trial: ``per trial = (T(N) - T(1)) / (N - 1)``. Trials run one at a time on both
sides, each in a fresh workspace.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import parse_search_space
from raysweep.errors import RunFailedError
from raysweep.results import runner
from raysweep.results.store import ResultStore
from raysweep.tune import launch
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

TITLE = "Ray's overhead per trial"
COLUMNS = ("way", "trials", "whole s", "first trial s", "s per trial", "ratio")


def planned(count: int, edits: int, threads: int, workspace: Workspace) -> Plan:
    """Return *count* trials of the editor that does nothing, which differ in their seed."""
    base = {"model": "embedded", "data": {"name": "world", "size": edits}, "threads": threads}
    tree = {
        "sweep": "overhead",
        "base": {**base, "protocol": {"rounds": [0, edits]}},
        "arms": {"null": {"editor": "null"}},
        "space": {"seed": {"grid": list(range(count))}},
        "resources": {"cpu": 1, "gpu": 0},
    }
    return plan(parse_search_space(tree, file="flags"), workspace)


def in_process(count: int, edits: int, threads: int) -> dict[str, Any]:
    """Run the trials here, one after another."""
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as folder:
        workspace = Workspace(Path(folder))
        found = planned(count, edits, threads, workspace)
        store, deps = ResultStore(workspace.results(found.sweep.name)), make_deps(workspace)
        clock = measure.Clock()
        for one in found.trials:
            with clock.timed():
                reports = list(runner.run_trial(one, deps, store))
            _demand(all(r.error == "" for r in reports) and reports[-1].done, reports[-1].error)
    rest = clock.wall[1:] or clock.wall
    row: dict[str, Any] = {"way": "in process", "trials": count, "whole s": sum(clock.wall)}
    return row | {"first trial s": clock.wall[0], "s per trial": sum(rest) / len(rest), "wall": clock.wall}


def through_ray(count: int, edits: int, threads: int, concurrent: int) -> dict[str, Any]:
    """Run one trial, then *count* trials, each as a sweep of its own that starts and ends Ray."""
    one = _sweep(1, edits, threads, concurrent)
    whole = _sweep(count, edits, threads, concurrent) if count > 1 else one
    per_trial = (whole - one) / (count - 1) if count > 1 else float("nan")
    row: dict[str, Any] = {"way": f"Ray, {concurrent} at a time", "trials": count, "whole s": whole}
    return row | {"first trial s": one, "s per trial": per_trial}


def _sweep(count: int, edits: int, threads: int, concurrent: int) -> float:
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as folder:
        workspace = Workspace(Path(folder))
        found = planned(count, edits, threads, workspace)
        clock = measure.Clock()
        with clock.timed():
            outcome = launch.run_sweep(found, workspace, options=launch.RunOptions(concurrent=concurrent))
        _demand(len(outcome.done) == count, f"{len(outcome.done)} of {count} trials done: {dict(outcome.failed)}")
    return clock.wall[0]


def _demand(good: bool, message: str) -> None:
    if not good:
        raise RunFailedError(f"the benchmark's trials failed: {message}")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.sweep", description=TITLE)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--edits", type=int, default=10, help="records per trial (evaluated, not changed)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--concurrent", type=int, default=1, help="trials at once in Ray")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = measure.machine()
    rows = [in_process(options.trials, options.edits, options.threads)]
    rows.append(through_ray(options.trials, options.edits, options.threads, options.concurrent))
    rows[1]["ratio"] = rows[1]["s per trial"] / rows[0]["s per trial"]
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


if __name__ == "__main__":
    main()
