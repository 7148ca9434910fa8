"""``python -m benchmarks.gpu check`` measures, ``python -m benchmarks.gpu table FILE`` prints what was measured."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.gpu import cells, counting, models, promises, table
from raysweep.atomic import write_file
from raysweep.runtime import device, repeatable

TITLE = "edits and questions on this device"
EXAMS = 0.15  # of the seconds, at most, go to the editor contract


def check(file: Path, *, seconds: float, tiny: bool, only: Sequence[str] = ()) -> dict[str, Any]:
    """Measure until *seconds* are used, write the report after every measurement, and return it.

    Args:
        file: where the report is written, as JSON.
        seconds: no measurement begins afterwards; the last one may take some seconds more.
        tiny: reduced shapes and each kind of measurement once, to see on any machine that everything runs.
        only: ``shape/dtype`` pairs; empty = all.
    """
    begin = time.perf_counter()
    report: dict[str, Any] = {"benchmark": TITLE, "machine": measure.machine()}
    report |= {"options": {"seconds": seconds, "tiny": tiny, "only": list(only)}, "promises": [], "cells": []}

    def save() -> None:
        report["seconds"] = time.perf_counter() - begin
        write_file(file, json.dumps(report, indent=1, default=str) + "\n", sync=False)

    shapes = models.TINY if tiny else models.SHAPES
    # The first product of the process: torch looks once whether products are to repeat.
    with repeatable(device()):
        report["ceiling"] = counting.ceiling(next(iter(shapes.values())).square)
        report["repeats"] = counting.repeats(24 if tiny else 512)
    report["repeats unasked"] = counting.repeats(24 if tiny else 512)
    save()
    families = promises.FAMILIES[:1] if tiny else promises.FAMILIES
    exams = promises.examine(device(), lambda: time.perf_counter() - begin < EXAMS * seconds, families)
    for row in exams:
        report["promises"].append(row)
        print(f"{row['editor']} {row['family']}: {len(row['broken'])} promises broken", flush=True)
        save()
    bench = cells.Bench(shapes, report["ceiling"])
    every = cells.covering(cells.all_cells()) if tiny else cells.all_cells()
    chosen = [c for c in every if not only or f"{c.shape}/{c.dtype}" in only]
    for row in bench.measure(chosen, lambda: time.perf_counter() - begin < seconds):
        report["cells"].append(row)
        said = row["failed"][-1] if "failed" in row else f"{row['s']:.4g} s"
        print(
            f"{report['seconds']:4.0f} s  {row['shape']} {row['dtype']} {row['way']} {row['what']}: {said}", flush=True
        )
        save()
    report["left out"] = len(chosen) - len(report["cells"])
    save()
    return report


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what the command line asks for; return the report."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=TITLE)
    ways = parser.add_subparsers(dest="way", required=True)
    run = ways.add_parser("check", help="measure")
    run.add_argument("--out", type=Path, default=Path("gpu.json"), help="the report")
    run.add_argument("--seconds", type=float, default=450, help="nothing begins after so many")
    run.add_argument("--shape", choices=("full", "tiny"), default="full", help="tiny: reduced, for any machine")
    run.add_argument("--only", action="append", default=[], metavar="SHAPE/DTYPE", help="may be repeated; default: all")
    run.add_argument("--threads", type=int, default=0, help="of the CPU; 0 = as torch chooses")
    shown = ways.add_parser("table", help="print a report as Markdown")
    shown.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.way == "table":
        report: dict[str, Any] = json.loads(options.file.read_text())
    else:
        if options.threads:
            torch.set_num_threads(options.threads)
        report = check(options.out, seconds=options.seconds, tiny=options.shape == "tiny", only=options.only)
    table.show(report)
    return report


if __name__ == "__main__":
    main()
