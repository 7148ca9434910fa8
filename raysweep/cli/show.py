"""``raysweep show``: a sweep's results, arms × rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.leftout import left_out
from raysweep.cli.options import Options
from raysweep.cli.render import Cell, Format, render
from raysweep.lazy import lazy
from raysweep.results.tables import Sweep, open_sweep
from raysweep.results.views import MAIN, Line, lines, trial_views

NAMES = {"ppl": "PPL", "ppl_median": "PPL median", "ppl_expmean": "PPL exp-mean"}
SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Name of a sweep, or the folder or URI of its results.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
AllOption = Annotated[bool, typer.Option("--all", help="Also trials of earlier versions of the search space.")]


class By(StrEnum):
    """What a line is."""

    ARM = "arm"
    TRIAL = "trial"


class Phase(StrEnum):
    """When a record is measured: at the round, or right after it was written."""

    RETAINED = "retained"
    IMMEDIATE = "immediate"


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    at: Annotated[int | None, typer.Option("--at", help="Only this round; -1 = the last.")] = None,
    by: Annotated[By, typer.Option("--by", help="arm pools the seeds; trial does not.")] = By.ARM,
    phase: Annotated[Phase, typer.Option("--phase", help="When a record is measured.")] = Phase.RETAINED,
    format_: FormatOption = Format.TABLE,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw Rel, Gen, Loc, Avg over edits.")] = None,
    ppl: Annotated[bool, typer.Option("--ppl", help="Perplexity columns too (csv and json always have them).")] = False,
    everything: AllOption = False,
) -> None:
    """Show Rel, Gen, Loc, Port, Avg and Geo of each arm at each round, with standard errors, n, seeds, status and time.

    Round 0 is the unedited model. A time "+ … shared" was spent once, on edits that several trials took from one pass.

    Example:

        raysweep show demo
        raysweep show demo --at -1 --format markdown --plot demo.png
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    found = open_sweep(sweep, workspace, everything=everything)
    print(text(found, by=by.value, phase=phase.value, at=at, how=format_, ppl=ppl))
    for note in left_out(found.trials().to_pylist()):
        typer.echo(f"note: {note}", err=format_ is not Format.TABLE)
    if plot is not None:
        lazy("raysweep.cli.plot").draw(found, plot)
        if format_ is Format.TABLE:
            print(f"plot: {plot}")


def text(
    sweep: Sweep, *, by: str = "arm", phase: str = "retained", at: int | None = None, how: Format, ppl: bool = False
) -> str:
    """Return the arms × rounds table of *sweep* as text."""
    trials = trial_views(sweep)
    found = lines(trials, phase=phase, by=by, at=at)
    done = sum(t.row["status"] == "DONE" for t in trials)
    title = f"{sweep.name}: {phase}, mean ± standard error; {done} of {sweep.planned or len(trials)} trials done"
    if any(t.row["git_dirty"] for t in trials):
        title += "; code had uncommitted changes"
    return (
        render(rows(found, plain=how in (Format.CSV, Format.JSON), ppl=ppl), how, title=title)
        if found
        else f"{sweep.name}: nothing was measured yet"
    )


def rows(found: Sequence[Line], *, plain: bool = False, ppl: bool = False) -> list[dict[str, Cell]]:
    """Return *found* as rows of a table; views that no line has are left out; *plain* = for a program."""
    views = [v for v in (*MAIN, *(NAMES if ppl or plain else ())) if any(v in line.cells for line in found)]
    return [
        {
            "arm": line.label,
            "edits": line.step,
            **({"phase": line.phase} if plain else {}),
            **{NAMES.get(v, v.capitalize()): line.cells.get(v) for v in views},
            "n": line.n,
            "seeds": len(line.seeds),
            "status": line.status,
            **({"seconds_per_edit": line.per_edit} if plain else {"s/edit": line.per_edit}),
            **(
                {"seconds": line.seconds, "seconds_shared": line.shared}
                if plain
                else {"time": clock(line.seconds) + (f" + {clock(line.shared)} shared" if line.shared else "")}
            ),
        }
        for line in found
    ]


def clock(seconds: float) -> str:
    """Return seconds as ``1:02:03`` or ``12.3 s``.

    >>> clock(3723), clock(12.34)
    ('1:02:03', '12.3 s')
    """
    if math.isnan(seconds):
        return "–"
    whole = int(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
