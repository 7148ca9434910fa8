"""Edit-parallel runs by the number of shards, and the cost of an edit by how many came before it.

    python -m benchmarks.scaling --shards 1,2 --edits 24
    python -m benchmarks.scaling --growth --at 10,30,100,300,1000

The first table runs one trial through Ray with each number of shards (SimIE in closed form by default) and compares its rows
with those of one shard. The second runs one trial in this process (SimIE, sequential, by default), keeps weights and memory at each
point, and afterwards times at one point after the other, over and over, the edits of the same few records, which are proposed but
never written: the least seconds of each record, then the mean. How many passes an optimisation takes depends on what the model
knows by then, so seconds are also given per pass.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.lambda_path import same_rows
from raysweep.config.load import parse_value
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import parse_search_space
from raysweep.editors.base import EditStep
from raysweep.editors.build import build_editor
from raysweep.errors import RunFailedError
from raysweep.models.ledger import Ledger
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, seconds_by_phase
from raysweep.studies.base import Deps
from raysweep.studies.edit_group import needed_artifacts, ordered_records
from raysweep.tune import launch
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

TITLE = "edit-parallel runs by the number of shards"
COLUMNS = ("editor", "shards", "edits", "edit s", "s per edit", "whole s", "x one", "rows")
GROWTH = "the cost of an edit by how many came before"
PER = {"": "edit cpu s", ", per pass": "ms a pass"}
GROWTH_COLUMNS = (
    "editor", "edits before", "passes", "edit s", "edit cpu s", "ms a pass", "apply s", *(f"x first{what}" for what in PER)
)  # fmt: skip
CLOSED = "{name: simie, lam: 10, mode: init, backend: closed64}"
SEQUENTIAL = "{name: simie, lam: 10}"


def planned(options: argparse.Namespace, wrap: str, edits: int, workspace: Workspace, shards: int = 1) -> Plan:
    """Return the one trial to run."""
    tree = {
        "sweep": f"shards-{shards}",
        "base": {
            "model": options.model,
            "data": {"name": options.data, "size": edits, **({"path": options.data_path} if options.data_path else {})},
            "protocol": {"rounds": [edits], "immediate": False, "probes": ["efficacy"]},
            "threads": options.threads,
        },
        "arms": {"one": {"editor": options.editor, **({"wrap": parse_value(wrap, "--wrap")} if wrap else {})}},
        "resources": {"cpu": options.threads, "gpu": "auto", "shards": shards},
    }
    return plan(parse_search_space(tree, file="flags", overrides=options.set or ()), workspace)


def spread(options: argparse.Namespace, workspace: Workspace) -> list[dict[str, Any]]:
    """Return a row per number of shards; artifacts are made beforehand by a run that is not counted."""
    rows: list[dict[str, Any]] = []
    stores: list[ResultStore] = []
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        here = Workspace(workspace.root, storage=scratch)
        _run(planned(options, options.wrap, 1, here), here)
        for shards in map(int, options.shards.split(",")):
            found = planned(options, options.wrap, options.edits, here, shards)
            if shards > 1 and not found.trials[0].can_propose:
                raise RunFailedError(f"the edits of {found.trials[0].trial.editor.label} cannot be computed apart")
            clock = measure.Clock()
            with clock.timed():
                store = _run(found, here)
            stores.append(store)
            key = found.trials[0].key
            seconds = sum(s for p, (s, _) in seconds_by_phase(Sweep(store).timing())[key].items() if p == "edit")
            rows.append({
                "editor": found.trials[0].trial.editor.label, "shards": shards, "edits": options.edits, "edit s": seconds,
                "s per edit": seconds / options.edits, "whole s": clock.wall[0],
                "x one": rows[0]["edit s"] / seconds if rows else 1.0, "rows": same_rows(key, stores[0], store),
            })  # fmt: skip
    return rows


def _run(found: Plan, workspace: Workspace) -> ResultStore:
    outcome = launch.run_sweep(found, workspace)
    if outcome.exit_code:
        raise RunFailedError(f"the benchmark's trials failed: {dict(outcome.failed)}")
    return ResultStore(workspace.results(found.sweep.name))


def growth(options: argparse.Namespace, workspace: Workspace) -> list[dict[str, Any]]:
    """Return a row per point: what it costs, after so many edits, to edit the same records, which are never written."""
    points = sorted(map(int, options.at.split(",")))
    written = min(points[-1], options.records)
    (job,) = planned(options, options.wrap, written + options.window, workspace).trials
    deps: Deps = make_deps(workspace)
    lm, editor = deps.load_model(job.trial.model), build_editor(job.trial.editor)
    records = ordered_records(job.trial, deps)
    artifacts = needed_artifacts(editor, job.trial, lm, deps)
    ledger, state = Ledger(lm), editor.begin(lm, artifacts)
    names = editor.edited_parameters(lm)
    kept: dict[int, tuple[dict[str, torch.Tensor], Any, float]] = {}
    try:
        for i, record in enumerate(islice(cycle(records[:written]), points[-1]), start=1):
            rng, clock = torch.Generator().manual_seed(i), measure.Clock()
            step = editor.edit(lm, [record], state, artifacts=artifacts, rng=rng)
            with clock.timed():
                ledger.apply(step.patch)
            state = step.state
            if i in points:
                kept[i] = {n: lm.weight(n).detach().clone() for n in names}, state, clock.wall[0]
        costs: dict[int, list[_Cost]] = {point: [_Cost() for _ in records[written:]] for point in points}
        for _ in range(options.repeats):  # the points in turn, so that whatever else the machine does meets all alike
            for point, (weights, state, _) in kept.items():
                with torch.no_grad():
                    for name, weight in weights.items():
                        lm.weight(name).copy_(weight)
                for record, cost in zip(records[written:], costs[point], strict=True):
                    cost.add(partial(editor.edit, lm, [record], state, artifacts=artifacts))
    finally:
        ledger.restore()
    rows: list[dict[str, Any]] = []
    for point in points:
        passes, wall, cpu = (sum(each) / len(each) for each in zip(*(c.least() for c in costs[point]), strict=True))
        rows.append({"editor": job.trial.editor.label, "edits before": point, "passes": passes, "edit s": wall, "edit cpu s": cpu,
                     "apply s": kept[point][2], "ms a pass": 1000 * cpu / (passes or 1)})  # fmt: skip
        rows[-1] |= {f"x first{what}": rows[-1][of] / (rows[0][of] or 1) for what, of in PER.items()}
    return rows


@dataclass
class _Cost:
    """What one record's edit costs, measured several times; ``passes`` of its optimisation."""

    passes: float = 0.0
    clock: measure.Clock = field(default_factory=measure.Clock)

    def add(self, edit: Callable[..., EditStep[Any]]) -> None:
        """Make the edit once more."""
        rng = torch.Generator().manual_seed(0)
        with self.clock.timed():
            step = edit(rng=rng)
        self.passes = sum(v for n, v in step.stats.items() if n.partition("/")[0] in ("steps", "value_steps"))

    def least(self) -> tuple[float, float, float]:
        """Return the passes and the least wall and CPU seconds."""
        return self.passes, min(self.clock.wall), min(self.clock.cpu)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=TITLE)
    parser.add_argument("--growth", action="store_true", help="the second table instead of the first")
    parser.add_argument("--shards", default="1,2")
    parser.add_argument("--edits", type=int, default=24)
    parser.add_argument("--at", default="10,30,100,300,1000", help="points of the second table")
    parser.add_argument("--records", type=int, default=500, help="different ones; after them comes the first again")
    parser.add_argument("--window", type=int, default=10, help="records whose edit is measured at each point")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is measured; the least counts")
    parser.add_argument("--editor", default="rome")
    parser.add_argument("--wrap", default=None, help="as in a search space; empty = none")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="world")
    parser.add_argument("--data-path", default="")
    parser.add_argument("--set", action="append", help="as in raysweep run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path(), help="workspace of artifacts, data and models")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    if options.wrap is None:
        options.wrap = SEQUENTIAL if options.growth else CLOSED
    torch.set_num_threads(options.threads)
    about = measure.machine()
    workspace = Workspace(options.root.resolve())
    rows = growth(options, workspace) if options.growth else spread(options, workspace)
    title, columns = (GROWTH, GROWTH_COLUMNS) if options.growth else (TITLE, COLUMNS)
    measure.report(options, title, about, columns, rows)
    return rows


if __name__ == "__main__":
    main()
