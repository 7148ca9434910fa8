"""``raysweep plan``: the trials of a sweep, with their keys and what is already done."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from raysweep.cli.options import Options
from raysweep.cli.validate import FileArgument, SetOption
from raysweep.config.components import Components
from raysweep.config.plan import Plan, PlannedTrial, open_plan
from raysweep.lazy import lazy
from raysweep.workspace import Workspace


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


def command(
    ctx: typer.Context,
    file: FileArgument,
    set_: SetOption = None,
    format_: Annotated[
        Format, typer.Option("--format", help="table, or json with every resolved value.")
    ] = Format.TABLE,
) -> None:
    """Print every trial of a sweep: arm, point, key, rounds, and what is already done. Runs nothing.

    The keys are those of the results: a trial whose key is done is not run again. Trials that take their edits from one
    pass (every λ of a path) count those edits once. Needs neither torch nor Ray.

    Example:

        raysweep plan demo
        raysweep plan search_spaces/smoke.yaml --set space.seed='{grid: [0, 1]}' --format json
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    found = open_plan(file, workspace, set_ or ())
    status = status_reader(workspace, found.sweep.name)
    if format_ is Format.JSON:
        print(json.dumps(as_json(found, status), indent=2, ensure_ascii=False))
    else:
        _table(found, status, workspace)


def status_reader(workspace: Workspace, sweep: str) -> Callable[[str], str]:
    """Return a function from a trial's key to ``absent``, ``running``, ``done``, ``failed`` or ``stopped``.

    Where the sweep has no local folder yet, nothing is imported to find that out.
    """
    where = workspace.results(sweep)
    if "://" not in where and not Path(where).is_dir():
        return lambda key: "absent"
    store = lazy("raysweep.results.store").ResultStore(where)
    return lambda key: str(store.status(key).state.value).lower()


def as_json(found: Plan, status: Callable[[str], str]) -> dict[str, Any]:
    """Return the plan as plain data."""
    return {
        "sweep": found.sweep.model_dump(mode="json"),
        "trials": [
            {
                "key": t.key,
                "arm": t.arm,
                "point": dict(t.point),
                "share": t.share,
                "status": status(t.key),
                "trial": t.trial.model_dump(mode="json"),
            }
            for t in found.trials
        ],
        "notes": list(found.notes),
    }


def _table(found: Plan, status: Callable[[str], str], workspace: Workspace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("arm", "point", "key", "status", box=box.SIMPLE_HEAD, title=f"sweep {found.sweep.name}")
    states = [status(t.key) for t in found.trials]
    for trial, state in zip(found.trials, states, strict=True):
        table.add_row(Text(trial.arm), Text(_point(trial)), trial.key, state)
    console.print(table)
    for rounds, batch, arms in _protocols(found):
        console.print(f"rounds {rounds} (batch size {batch}): {', '.join(arms)}", markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    estimates = lazy("raysweep.cli.estimates")
    for line in estimates.memory_lines(found, workspace, Components.installed()):
        console.print(line, markup=False, soft_wrap=True)
    said = estimates.time_line(found, workspace, states)
    if said:
        console.print(said, markup=False, soft_wrap=True)
    done = states.count("done")
    print(f"{extent(found)}; {done} done, {len(found.trials) - done} to run")


def extent(found: Plan) -> str:
    """Return how many trials there are, in how many passes, and how many edits those make: ``7 trials in 1 pass, 100 edits``."""
    edits = sum(group[0].trial.protocol.rounds[-1] for group in found.passes)
    count, passes = len(found.trials), len(found.passes)
    within = f" in {counted(passes, 'pass', 'passes')}" if passes < count else ""
    return f"{counted(count, 'trial', 'trials')}{within}, {edits:,} edits in all"


def counted(number: int, one: str, many: str) -> str:
    """Return ``1 trial`` or ``2 trials``."""
    return f"{number:,} {one if number == 1 else many}"


def _point(trial: PlannedTrial) -> str:
    return "  ".join(f"{k}={v}" for k, v in trial.point.items())


def _protocols(found: Plan) -> list[tuple[list[int], int, list[str]]]:
    """Return each protocol once, with the arms that have it."""
    arms: dict[tuple[tuple[int, ...], int], dict[str, None]] = {}
    for trial in found.trials:
        protocol = trial.trial.protocol
        arms.setdefault((protocol.rounds, protocol.batch_size), {})[trial.arm] = None
    return [(list(rounds), batch, list(names)) for (rounds, batch), names in arms.items()]
