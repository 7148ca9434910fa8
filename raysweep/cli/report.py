"""``raysweep report``: a sweep as one page that answers which arm holds, for how long, at what cost, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.show import AllOption, PhaseOption, ProtocolOption, SweepArgument, report_left_out
from raysweep.lazy import lazy
from raysweep.reports import asked
from raysweep.results.tables import open_results


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page; default: SWEEP.html.")
    ] = None,
    at: Annotated[int, typer.Option("--at", help="The round; -1 = the last one in common.")] = -1,
    phase: PhaseOption = None,
    everything: AllOption = False,
    protocol: ProtocolOption = "",
) -> None:
    """Write a sweep's report: one HTML file without scripts or pictures from elsewhere, to be opened, mailed and printed.

    On top stand the answers in sentences; below them the tables, pictures, records won and lost with what was answered, what
    differs between arms, versions and commands. The same results give the same file, byte by byte.

    Example:

        raysweep report demo -o report.html
        raysweep report demo --protocol wild-mirage+whole_match
    """
    workspace = workspace_of(ctx)
    results = open_results(sweep, workspace, everything=everything)
    chosen, selection = phase.value if phase else None, asked.chosen(protocol, [results])
    asked.refuse_immediate(chosen, selection)
    text = lazy("raysweep.reports.page.build").page(results, workspace, at=at, phase=chosen, selection=selection)
    path = out or Path(f"{results.name}.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"report: {path} ({len(text.encode()) / 1e3:.0f} kB)")
    report_left_out(results)
