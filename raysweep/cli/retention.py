"""``raysweep retention``: what each arm keeps of what it wrote, and for how long."""

from __future__ import annotations

from typing import Annotated

import typer

from raysweep.cli.options import workspace_of
from raysweep.cli.say import tell
from raysweep.cli.show import AllOption, FormatOption, SweepArgument, WideOption, report_left_out
from raysweep.reports.fit import terminal_width
from raysweep.reports.render import Format, render
from raysweep.reports.retention_table import FLOOR, about, retentions, rows
from raysweep.reports.views import trial_views
from raysweep.results.tables import open_results


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    floor: Annotated[
        float, typer.Option("--floor", min=0.0, max=1.0, help="Rel below which, for good, an arm has collapsed.")
    ] = FLOOR,
    format_: FormatOption = Format.TABLE,
    everything: AllOption = False,
    wide: WideOption = False,
) -> None:
    """Show what each arm keeps: Rel at first and at the end, of the oldest and the youngest facts, half-life, collapse.

    The half-life is the number of edits after which half of the facts that were right are lost (Kaplan-Meier, exact answers).

    Example:

        raysweep retention demo
    """
    results = open_results(sweep, workspace_of(ctx), everything=everything)
    found = retentions(results, trial_views(results), floor=floor)
    table = rows(found, plain=format_ in (Format.CSV, Format.JSON))
    title = f"{results.name}: what is kept after so many edits, mean [95% interval]"
    print(render(table, format_, title=title, width=terminal_width(wide=wide)))
    tell(about(found, floor=floor), format_)
    report_left_out(results)
