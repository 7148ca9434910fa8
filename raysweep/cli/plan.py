"""``raysweep plan``: the trials of a sweep, with their keys and what is already done."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from raysweep.cli import flags, preflight
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.validate import FileArgument, SetOption
from raysweep.config.components import Components
from raysweep.config.plan import open_plan
from raysweep.reports import estimates, plan_table
from raysweep.reports.fit import terminal_width


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
    hparams: flags.HparamsOption = "",
) -> None:
    """Print every trial of a sweep: arm, point, key, rounds, and what is already done. Runs nothing.

    The keys are those of the results: a trial whose key is done is not run again. The trials of an edit group (every λ of
    a path) take their edits from one run over the records, so those count once. Where this machine has a GPU, or
    resources.memory is set, it says how many edits made together (batch) fit there. Needs neither torch nor Ray, but for a
    model whose tokenizer was never planned with.

    Example:

        raysweep plan demo
        raysweep plan search_spaces/smoke.yaml --set space.seed='{grid: [0, 1]}' --format json
    """
    workspace = workspace_of(ctx)
    plan = open_plan(file, workspace, [*flags.hparams_overrides(hparams, file, workspace), *(set_ or ())])
    statuses = plan_table.trial_statuses(plan, workspace)
    components, room = Components.installed(), preflight.room_for_edits(plan.sweep.resources)
    if format_ is Format.JSON:
        # `print`, not `say`: JSON must not be broken at the width of a terminal.
        fitting = estimates.together(plan, workspace, components, room)
        tree = plan_table.as_json(plan, statuses, workspace, fitting)
        print(json.dumps(tree, indent=2, ensure_ascii=False))
        return
    print(plan_table.text(plan, statuses, width=terminal_width()), end="\n\n")
    for line in plan_table.notes(plan, statuses, workspace, components, room):
        say(line)
