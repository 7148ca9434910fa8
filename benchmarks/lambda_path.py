"""A path of values against one value: the same run, measured for one λ and for all of them.

    python -m benchmarks.lambda_path --edits 30 --rounds 6 --threads 2
    python -m benchmarks.lambda_path --path wrap.prune.base --values 1.2,1.5,2,e,linear

Edits are made once for the whole path; every value's model is measured at every round. Both parts are timed apart, since more
values mean more models to measure, however they were made. The rows of the one value are compared: they must be the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from raysweep.config.load import parse_value
from raysweep.config.plan import plan
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.sweep import parse_search_space
from raysweep.errors import RunFailedError
from raysweep.results import runner
from raysweep.results.schema import PROBES
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, seconds_by_phase
from raysweep.rows import SHARED_PHASE_SUFFIX
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

TITLE = "a path of values against one value"
LAMBDAS = "0.01,0.1,1,5,10,30,50"
COLUMNS = (
    "editor",
    "values",
    "edits",
    "rounds",
    "edit s",
    "measure s",
    "other s",
    "whole s",
    "x one",
    "x apart",
    "rows",
)
EDITING = ("edit", "apply")
MEASURING = ("base", "round", "immediate")


def planned(options: argparse.Namespace, editor: str, workspace: Workspace) -> tuple[PlannedTrial, ...]:
    """Return the trials of the path, which all take their edits from one pass."""
    _, wrapper, key = options.path.split(".", 2)
    values = [parse_value(v, "--values") for v in options.values.split(",")]
    model, data = options.model, {"name": options.data, "size": options.edits}
    steps = sorted({round(options.edits * i / options.rounds) for i in range(1, options.rounds + 1)})
    tree = {
        "sweep": "path",
        "base": {
            "model": model,
            "data": {**data, **({"path": options.data_path} if options.data_path else {})},
            "protocol": {"rounds": steps, "immediate": options.immediate},
            "threads": options.threads,
        },
        "arms": {"path": {"editor": editor, "wrap": {"name": wrapper, key: {"path": values}}}},
    }
    found = plan(parse_search_space(tree, file="flags", overrides=options.set or ()), workspace)
    if len(found.edit_groups) != 1:
        raise RunFailedError(
            f"{options.path} is no path: {len(found.trials)} trials in {len(found.edit_groups)} passes"
        )
    return found.trials


def run(trials: Sequence[PlannedTrial], workspace: Workspace, folder: Path) -> tuple[dict[str, float], ResultStore]:
    """Run *trials* as one pass; return the seconds of its parts, and the store."""
    store = ResultStore(folder)
    clock = measure.Clock()
    with clock.timed():
        *_, last = runner.run_trial(trials[-1], make_deps(workspace), store, trials[:-1])
    if last.error:
        raise RunFailedError(f"the benchmark's trials failed: {last.error}")
    phases = seconds_by_phase(Sweep(store).timing())
    own, once = (sum_of(phases, trials, shared) for shared in (False, True))
    seconds = {
        "edit s": once["edit"] + own["edit"],
        "measure s": once["measure"] + own["measure"],
        "other s": once["other"] + own["other"],
        "whole s": clock.wall[0],
    }
    return seconds, store


def sum_of(
    phases: Mapping[str, Mapping[str, tuple[float, int]]], trials: Sequence[PlannedTrial], shared: bool
) -> dict[str, float]:
    """Return seconds of editing, measuring and the rest: of each trial, or once what they *shared*."""
    found = {"edit": 0.0, "measure": 0.0, "other": 0.0}
    for trial in trials[:1] if shared else trials:
        for phase, (seconds, _) in phases[trial.key].items():
            if phase.endswith(SHARED_PHASE_SUFFIX) is not shared:
                continue
            name = phase.removesuffix(SHARED_PHASE_SUFFIX)
            found["edit" if name in EDITING else "measure" if name in MEASURING else "other"] += seconds
    return found


def same_rows(key: str, first: ResultStore, other: ResultStore) -> str:
    """Return whether the trial *key* has the same bytes in both stores, as a cell of the table."""
    names = first.fragments(PROBES, key)
    equal = names == other.fragments(PROBES, key) and all(first.folder.read(n) == other.folder.read(n) for n in names)
    return "same" if equal else "DIFFERENT"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.lambda_path", description=TITLE)
    parser.add_argument("--editor", action="append", help="may be repeated; default: rome, memit")
    parser.add_argument("--path", default="wrap.simie.lam", help="wrap.<wrapper>.<key>")
    parser.add_argument("--values", default=LAMBDAS)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="world")
    parser.add_argument("--data-path", default="")
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--immediate", action="store_true", help="also measure each record right after it is written")
    parser.add_argument("--set", action="append", help="as in raysweep run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path(), help="workspace of artifacts, data and models")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = measure.machine()
    workspace = Workspace(options.root.resolve())
    rows = []
    for editor in options.editor or ("rome", "memit"):
        rows += measured(planned(options, editor, workspace), editor, workspace)
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


def measured(trials: Sequence[PlannedTrial], editor: str, workspace: Workspace) -> list[dict[str, Any]]:
    """Return the rows of one value and of the path; artifacts are made beforehand by a run that is not counted."""
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        folder = Path(scratch)
        first = trials[0].trial
        short = first.model_copy(update={"protocol": first.protocol.model_copy(update={"rounds": (0, 1)})})
        run([PlannedTrial("warm", {}, short)], workspace, folder / "warm")
        one, alone = run(trials[:1], workspace, folder / "one")
        path, together = run(trials, workspace, folder / "path")
        rows = same_rows(first.key, alone, together)
    common = {"editor": editor, "edits": first.protocol.rounds[-1], "rounds": len(first.protocol.rounds)}
    return [
        {**common, "values": 1, **one},
        {
            **common,
            "values": len(trials),
            **path,
            "x one": path["whole s"] / one["whole s"],
            "x apart": len(trials) * one["whole s"] / path["whole s"],
            "rows": rows,
        },
    ]


if __name__ == "__main__":
    main()
