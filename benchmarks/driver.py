"""What a long sweep costs the driver: its memory and CPU seconds by the number of trials that have ended.

    python -m benchmarks.driver --trials 2000

Trials of the editor that does nothing, through Ray, one at a time, with the plain display of ``raysweep run``. The driver is this
process; the trials' own process and Ray's are not in the figures. ``MB a trial`` counts from the first mark, so that what is
loaded once is not in it. The last row is that of the end, when the table of trials has been written.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.sweep import planned
from raysweep.cli.display import Display
from raysweep.errors import RunFailedError
from raysweep.tune import launch
from raysweep.workspace import Workspace

TITLE = "the driver of a long sweep"
COLUMNS = ("trials ended", "driver MB", "peak MB", "MB a trial", "driver cpu s", "cpu s a trial", "wall s", "objects")


class Observed(Display):
    """The display of ``raysweep run``, which also takes this process's measure at each of *marks* ended trials."""

    def __init__(self, *arguments: Any, marks: Sequence[int], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.marks, self.ended = set(marks), 0
        self.measured: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Start the clock."""
        super().begin()
        self.start = time.perf_counter(), time.process_time()

    def stopped(self, key: str) -> None:
        """Count a trial that ended."""
        super().stopped(key)
        self.ended += 1
        if self.ended in self.marks:
            self.measured.append(self.row())

    def row(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        memory, first = resident(), self.measured[0] if self.measured else None
        row = {
            "trials ended": self.ended,
            "driver MB": memory,
            "peak MB": resident("VmHWM"),
            "driver cpu s": cpu,
            "wall s": wall,
            "objects": len(gc.get_objects()),
        }
        if first is not None:
            more = self.ended - first["trials ended"]
            row |= {
                "MB a trial": (memory - first["driver MB"]) / more,
                "cpu s a trial": (cpu - first["driver cpu s"]) / more,
            }
        return row


def resident(field: str = "VmRSS") -> float:
    """Return the megabytes (10^6 bytes) of this process that lie in memory, or with ``VmHWM`` the most that ever did."""
    fields: Mapping[str, str] = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024 / 1e6


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.driver", description=TITLE)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--edits", type=int, default=1, help="records per trial (evaluated, not changed)")
    parser.add_argument("--marks", default="10,50,100,200,500,1000,1500,2000", help="measure when so many have ended")
    parser.add_argument("--concurrent", type=int, default=1)
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    about = measure.machine()
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as folder:
        workspace = Workspace(Path(folder))
        found = planned(options.trials, options.edits, 1, workspace)
        labels = {t.key: f"null seed={t.trial.seed}" for t in found.trials}
        marks = sorted({int(m) for m in options.marks.split(",")} | {options.trials})
        shown = Observed(labels, dict.fromkeys(labels, options.edits), printer=lambda line: None, marks=marks)
        outcome = launch.run_sweep(
            found, workspace, options=launch.RunOptions(concurrent=options.concurrent), watcher=shown
        )
        if len(outcome.done) != options.trials:
            raise RunFailedError(f"{len(outcome.done)} of {options.trials} trials done: {dict(outcome.failed)}")
        shown.measured.append(shown.row())
    measure.report(options, TITLE, about, COLUMNS, shown.measured)
    return shown.measured


if __name__ == "__main__":
    main()
