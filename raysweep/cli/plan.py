"""``raysweep plan``: the trials of a sweep, with their keys and what is already done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from raysweep.cli.options import Options
from raysweep.cli.say import say
from raysweep.cli.validate import FileArgument, SetOption
from raysweep.config.components import Components
from raysweep.config.names import TrialName
from raysweep.config.plan import open_plan
from raysweep.config.planned_trial import Plan
from raysweep.lazy import lazy
from raysweep.reports import fit
from raysweep.reports.prose import counted
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
    pass (every λ of a path) count those edits once. Needs neither torch nor Ray, but for a model whose tokenizer was never
    planned with.

    Example:

        raysweep plan demo
        raysweep plan search_spaces/smoke.yaml --set space.seed='{grid: [0, 1]}' --format json
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    planned = open_plan(file, workspace, set_ or ())
    statuses = trial_statuses(planned, workspace)
    if format_ is Format.JSON:
        print(json.dumps(as_json(planned, statuses), indent=2, ensure_ascii=False))
    else:
        _table(planned, statuses, workspace)


def trial_statuses(planned: Plan, workspace: Workspace) -> list[tuple[str, str]]:
    """Return for each trial where it stands (``absent``, ``running``, ``done`` …) and, if its files are damaged, the reason.

    Where the sweep has no local folder yet, nothing is imported to find that out.
    """
    where = workspace.results(planned.sweep.name)
    # pyarrow takes longer to import than a plan to make.
    if "://" not in where and not Path(where).is_dir():
        return [("absent", "")] * len(planned.trials)
    folder = lazy("raysweep.results.folder").Folder(where)
    drivers = lazy("raysweep.results.drivers").drivers_at_work(folder)
    state = lazy("raysweep.results.state")
    statuses = [state.trial_state(folder, t.key, t.trial.protocol.rounds, drivers=drivers) for t in planned.trials]
    return [(str(s.state.value).lower(), s.reason) for s in statuses]


def as_json(planned: Plan, statuses: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the plan as plain data."""
    return {
        "sweep": planned.sweep.model_dump(mode="json"),
        "trials": [
            {
                "key": t.key,
                "arm": t.arm,
                "point": dict(t.point),
                "names": [{"arm": n.arm, "point": dict(n.point)} for n in planned.names if n.key == t.key],
                "share": t.edit_key,
                "status": status,
                **({"reason": reason} if reason else {}),
                "trial": t.trial.model_dump(mode="json"),
            }
            for t, (status, reason) in zip(planned.trials, statuses, strict=True)
        ],
        "notes": list(planned.notes),
    }


def _table(planned: Plan, statuses: Sequence[tuple[str, str]], workspace: Workspace) -> None:
    states = [state for state, _ in statuses]
    by_key = dict(zip((t.key for t in planned.trials), states, strict=True))
    columns = [
        fit.Column("arm", [n.arm for n in planned.names], name_column=True),
        fit.Column("point", [_point(n) for n in planned.names]),
        fit.Column("key", [n.key for n in planned.names], whole=True),
        fit.Column("status", [by_key[n.key] for n in planned.names], whole=True),
    ]
    title = f"sweep {planned.sweep.name}"
    print(fit.complete(columns, title=title, width=fit.terminal_width()).rstrip(), end="\n\n")
    for rounds, batch, arms in _protocols(planned):
        say(f"rounds {rounds} (batch size {batch}): {', '.join(arms)}")
    damaged = {t.key: reason for t, (_, reason) in zip(planned.trials, statuses, strict=True) if reason}
    called = {n.key: n.arm for n in reversed(planned.names)}
    lines = lazy("raysweep.reports.standing").damage_lines(damaged, called) if damaged else ()
    for note in (*planned.notes, *lines):
        say(f"note: {note}")
    estimates = lazy("raysweep.reports.estimates")
    for line in estimates.memory_lines(planned, workspace, Components.installed()):
        say(line)
    time_left = estimates.time_line(planned, workspace, states)
    if time_left:
        say(time_left)
    done = states.count("done")
    say(f"{extent(planned)}; {done} done, {len(planned.trials) - done} to run")


def extent(planned: Plan) -> str:
    """Return how many trials there are, in how many passes, and how many edits those make: ``7 trials in 1 pass, 100 edits``."""
    edits = sum(group[0].trial.protocol.rounds[-1] for group in planned.edit_groups)
    count, n_groups = len(planned.trials), len(planned.edit_groups)
    within = f" in {counted(n_groups, 'pass', 'passes')}" if n_groups < count else ""
    return f"{counted(count, 'trial', 'trials')}{within}, {edits:,} edits in all"


def _point(name: TrialName) -> str:
    return "  ".join(f"{k}={v}" for k, v in name.point.items())


def _protocols(planned: Plan) -> list[tuple[list[int], int, list[str]]]:
    """Return each protocol once, with the arms that have it."""
    arms: dict[tuple[tuple[int, ...], int], dict[str, None]] = {}
    protocols = {trial.key: trial.trial.protocol for trial in planned.trials}
    for name in planned.names:
        protocol = protocols[name.key]
        arms.setdefault((protocol.rounds, protocol.batch_size), {})[name.arm] = None
    return [(list(rounds), batch, list(names)) for (rounds, batch), names in arms.items()]
