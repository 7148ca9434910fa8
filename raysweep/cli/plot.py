"""``raysweep plot``: one picture of a sweep, by kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.show import AllOption, PhaseOption, SweepArgument, report_left_out
from raysweep.errors import SpecError, nearest
from raysweep.lazy import lazy
from raysweep.reports.views import trial_views
from raysweep.results.tables import open_results


def command(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(help="edits, over, pareto, retention, survival, cost or drift.")],
    sweep: SweepArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="A .png, .svg or .pdf; default: SWEEP-KIND.png.")
    ] = None,
    over: Annotated[str, typer.Option("--over", metavar="KEY", help="The swept key of the picture `over`.")] = "",
    at: Annotated[int, typer.Option("--at", help="The round, where one is drawn; -1 = the last one in common.")] = -1,
    phase: PhaseOption = None,
    everything: AllOption = False,
) -> None:
    """Draw one picture of a sweep. Equal results are equal files, byte by byte.

    - edits: Rel, Gen, Loc and Avg over edits, with 95% bands
    - over: the same over a swept key at one round (`--over wrap.simie.lam`)
    - pareto: Rel against Loc, with the arms that none beats in both
    - retention: which facts are left, by when they were written
    - survival: how long a fact that was right is kept
    - cost: Avg against the seconds of an edit
    - drift: how far weights, and answers on a fixed text (protocol.drift), are from the unedited model's

    Example:

        raysweep plot survival demo
        raysweep plot over lambda_units --over wrap.simie.lam -o lambda.svg
    """
    pictures, style = lazy("raysweep.reports.pictures"), lazy("raysweep.reports.plot_style")
    if kind not in pictures.KINDS:
        raise SpecError(f"there is no picture '{kind}'", hint=nearest(kind, pictures.KINDS))
    # A flag that would be ignored is refused: the picture would not be what was asked for.
    if over and kind != "over":
        raise SpecError(f"--over says over which key to draw, and '{kind}' is over none", hint="draw `over`")
    results = open_results(sweep, workspace_of(ctx), everything=everything)
    picture = pictures.Picture(results, trial_views(results), phase.value if phase else None, at, over)
    path = out or Path(f"{results.name}-{kind}.png")
    style.save(pictures.KINDS[kind](picture), path)
    say(f"plot: {path}")
    report_left_out(results)
