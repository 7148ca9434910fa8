"""What the commands on the keyboard cost: CPU seconds of whole processes, imports and all.

    python -m benchmarks.commands --trials 200

``show`` and ``compare`` read a sweep of so many trials, written by the store itself: two arms, ``--rounds`` rounds
of ``--records`` records. Every command runs ``--repeats`` times in a fresh process; the least CPU seconds (user and system) count.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.store import rows_of, trial
from raysweep.errors import RunFailedError
from raysweep.results.provenance import provenance
from raysweep.results.store import ResultStore
from raysweep.rows import EvalRound
from raysweep.workspace import Workspace

TITLE = "commands on the keyboard"
COLUMNS = ("command", "trials", "files", "cpu s", "wall s", "first cpu s")
COMMANDS = ("--help", "ls", "validate demo", "plan demo")


def write_sweep(workspace: Workspace, trials: int, rounds: int, records: int) -> int:
    """Write the sweep ``many`` of *trials* trials that edited nothing; return how many Parquet files it has."""
    store = ResultStore(workspace.results("many"))
    steps = [records * (i + 1) for i in range(rounds)]
    places = []
    for seed in range(trials):
        one, arm = trial(seed, steps), f"arm{seed % 2}"
        store.begin(one, arm=arm, point={"seed": seed}, provenance=provenance(one))
        for step in steps:
            store.write_round(one.key, EvalRound(step=step, rows=rows_of(one.key, step, records)))
        store.finish(one.key, step=steps[-1])
        places.append({"key": one.key, "arm": arm, "point": {"seed": seed}})
    store.write_plan({"sweep": "many", "trials": places}, "")
    return len(list(Path(workspace.results("many")).glob("*/*.parquet")))


def timed(command: str, root: Path, repeats: int) -> dict[str, Any]:
    """Run ``raysweep`` with *command* in the workspace *root*, *repeats* times; return the least seconds."""
    cpu, wall = [], []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYSWEEP_ROOT": str(root)}
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        argv = [sys.executable, "-m", "raysweep", *command.split()]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RunFailedError(f"raysweep {command} ended with {done.returncode}: {done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"command": command, "cpu s": min(cpu), "wall s": min(wall), "first cpu s": cpu[0], "cpu": cpu}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.commands", description=TITLE)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=30, help="records per round, three rows each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    about = measure.machine()
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as folder:
        rows = [timed(command, Path(folder), options.repeats) for command in COMMANDS]
        for count in (1, options.trials):
            root = Path(folder) / str(count)
            files = write_sweep(Workspace(root), count, options.rounds, options.records)
            for command in ("show many", "compare many") if count > 1 else ("show many",):
                rows.append({**timed(command, root, options.repeats), "trials": count, "files": files})
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


if __name__ == "__main__":
    main()
