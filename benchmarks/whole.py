"""A whole sweep against the plain way: {ROME, MEMIT, AlphaEdit⁻} x {plain, SimIE in init mode x every λ}, wall clock.

    python -m benchmarks.whole --edits 30 --threads 2
    python -m benchmarks.whole --editor rome --lams 1,10 --edits 5

Ours is one sweep through Ray, its start and the writing of results included: a pass of edits for every editor bare, one for all
its λ, what trials of an editor share kept. The plain way makes every trial by itself in this process: full forward passes, an LU
solve per edit and weight, questions one at a time, each trial's own answers of the pristine model. Artifacts are made beforehand
on both sides. ``--plain-lams n`` times only the first n values of λ the plain way and counts the others as their mean, since
no step's work depends on λ. ``--plain-edits n`` makes only the first n edits of each plain trial and counts the others as their
mean; everything is measured at every round all the same.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.editing import ASKED, Bench, plain_editor, prepare
from benchmarks.plain import common, evaluate
from benchmarks.plain import simie as plain_simie
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.schema import TrialSpec
from raysweep.config.sweep import parse_search_space
from raysweep.errors import RunFailedError
from raysweep.tune import launch
from raysweep.workspace import Workspace

TITLE = "a whole sweep"
EDITORS = ("rome", "memit", "alphaedit")
LAMS = "0.01,0.1,1,5,10,30,50"
COLUMNS = ("way", "trials", "edits each", "edits timed", "edit s", "measure s", "whole s", "ratio")


def planned(options: argparse.Namespace, lams: Sequence[float], workspace: Workspace, edits: int) -> Plan:
    """Return the sweep."""
    arms: dict[str, Any] = {}
    for name in options.editor or EDITORS:
        editor = {"name": name, **({"pre": 0} if name == "alphaedit" else {})}
        wrap = {"name": "simie", "lam": {"path": list(lams)}}
        grouped = editor | ({"value": {"batch": options.together}} if options.together > 1 else {})
        arms |= {name: {"editor": editor}, f"{name}+simie": {"editor": grouped, "wrap": wrap}}
    data = {"name": options.data, "size": edits, **({"path": options.data_path} if options.data_path else {})}
    steps = sorted({max(1, round(edits * i / options.rounds)) for i in range(1, options.rounds + 1)})
    tree = {
        "sweep": "whole",
        "base": {
            "model": options.model,
            "data": data,
            "protocol": {"rounds": [0, *steps], "immediate": False, "probes": [k.value for k in ASKED]},
            "threads": max(1, options.threads // options.concurrent),
        },
        "arms": arms,
        "resources": {"cpu": max(1, options.threads // options.concurrent), "gpu": "auto"},
    }
    return plan(parse_search_space(tree, file="flags", overrides=options.set or ()), workspace)


def ours(options: argparse.Namespace, lams: Sequence[float], root: Path) -> dict[str, Any]:
    """Run the sweep through Ray; a sweep of one edit beforehand makes the artifacts."""
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        for edits in (1, options.edits):
            here = Workspace(root, storage=f"{scratch}/{edits}")
            found = planned(options, lams, here, edits)
            start = time.perf_counter()
            outcome = launch.run_sweep(found, here, options=launch.RunOptions(concurrent=options.concurrent))
            seconds = time.perf_counter() - start
            if len(outcome.done) != len(found.trials):
                raise RunFailedError(f"the benchmark's trials failed: {dict(outcome.failed)}")
    return {
        "way": "one sweep",
        "trials": len(found.trials),
        "edits each": options.edits,
        "edits timed": options.edits,
        "whole s": seconds,
    }


def plain(options: argparse.Namespace, lams: Sequence[float], root: Path) -> dict[str, Any]:
    """Make every trial by itself, without Ray."""
    torch.set_num_threads(options.threads)
    workspace = Workspace(root)
    found = planned(options, lams, workspace, options.edits)
    editing = measuring = 0.0
    for arm in dict.fromkeys(t.arm for t in found.trials):
        mine = [t.trial for t in found.trials if t.arm == arm]
        bench = prepare(mine[0], workspace)
        timed = mine[: options.plain_lams]
        most = options.plain_edits or options.edits
        spent = [_trial(replace(bench, trial=trial), trial, most) for trial in timed]
        editing += sum(s[0] for s in spent) / len(timed) * len(mine)
        measuring += sum(s[1] for s in spent) / len(timed) * len(mine)
        print(f"{arm}: {sum(map(sum, spent)) / len(spent):.1f} s per trial", flush=True)
    row = {"way": "the plain way", "trials": len(found.trials), "edits each": options.edits}
    row |= {"edits timed": options.plain_edits or options.edits, "edit s": editing, "measure s": measuring}
    return row | {"whole s": editing + measuring}


def _trial(bench: Bench, trial: TrialSpec, most: int) -> tuple[float, float]:
    """Return the seconds of editing and of measuring of one plain trial, the mean of its first *most* edits for all of them."""
    lm = replace(bench.lm, module=copy.deepcopy(bench.lm.module))
    edit = plain_editor(bench, lm)()
    if trial.editor.wrap:
        state = plain_simie.begin(lm, list(bench.edited), lam=float(trial.editor.wrap[0].config.lam), init=True)
        edit = partial(plain_simie.edit, state=state, base=edit)
    rounds, editing, measuring, done = trial.protocol.rounds, 0.0, 0.0, 0
    for step in rounds:
        start = time.perf_counter()
        for record in bench.records[done : min(step, most)]:
            common.add(lm, edit(lm, record))
        editing, start, done = editing + time.perf_counter() - start, time.perf_counter(), step
        for record in bench.records[: step or rounds[-1]]:
            for probe in record.probes:
                if probe.kind in ASKED:
                    evaluate.score(lm, probe)
        measuring += time.perf_counter() - start
    return editing * rounds[-1] / min(most, rounds[-1]), measuring


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.whole", description=TITLE)
    parser.add_argument("--editor", action="append", choices=EDITORS, help="may be repeated; default: all")
    parser.add_argument("--lams", default=LAMS)
    parser.add_argument("--plain-lams", type=int, default=1, help="how many of them to time the plain way")
    parser.add_argument(
        "--plain-edits", type=int, default=0, help="how many edits of a trial to time the plain way; 0: all"
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="world")
    parser.add_argument("--data-path", default="")
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument(
        "--together", type=int, default=1, help="values optimised at once where edits do not see each other"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrent", type=int, default=2, help="trials at once in Ray; they share the threads")
    parser.add_argument("--set", action="append", help="as in raysweep run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--root", type=Path, default=Path(), help="workspace of artifacts, data and models")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    about, root = measure.machine(), options.root.resolve()
    lams = [float(v) for v in options.lams.split(",")]
    rows = [ours(options, lams, root), plain(options, lams, root)]
    rows[1]["ratio"] = rows[1]["whole s"] / rows[0]["whole s"]
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


if __name__ == "__main__":
    main()
