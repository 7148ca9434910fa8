"""``raysweep show``: a sweep's results, arms × rounds."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.errors import TRIALS_FAILED
from raysweep.cli.options import Options
from raysweep.cli.standing import left_out_lines
from raysweep.errors import SpecError
from raysweep.lazy import lazy
from raysweep.reports import notes
from raysweep.reports.fit import terminal_width
from raysweep.reports.left_out import left_out
from raysweep.reports.prose import say
from raysweep.reports.render import UNDEFINED, Cell, Format, render
from raysweep.reports.views import MAIN, Line, TrialView, all_lines, swept_values, trial_views
from raysweep.reports.wording import VIEW_NAMES, clock
from raysweep.results.tables import Sweep, open_results

SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Name of a sweep, or the folder or URI of its results.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
AllOption = Annotated[
    bool, typer.Option("--all", help="Also trials of earlier plans, under the names they were begun with.")
]
WideOption = Annotated[
    bool, typer.Option("--wide", help="Every column and interval, however narrow the terminal (csv, json … always).")
]


class By(StrEnum):
    """What a line is."""

    ARM = "arm"
    TRIAL = "trial"


class Phase(StrEnum):
    """When a record is measured: at the round, or right after it was written."""

    RETAINED = "retained"
    IMMEDIATE = "immediate"


PhaseOption = Annotated[
    Phase | None, typer.Option("--phase", help="When a record is measured; default: what the study is about.")
]


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    at: Annotated[int | None, typer.Option("--at", help="Only this round; -1 = the last one in common.")] = None,
    by: Annotated[By, typer.Option("--by", help="arm pools the seeds; trial does not.")] = By.ARM,
    phase: PhaseOption = None,
    format_: FormatOption = Format.TABLE,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Also draw Rel, Gen, Loc, Avg over edits, or over KEY."),
    ] = None,
    over: Annotated[
        str,
        typer.Option(
            "--over", metavar="KEY", help="With --plot: over a swept key, at one round (--at; default: last)."
        ),
    ] = "",
    ppl: Annotated[bool, typer.Option("--ppl", help="Perplexity columns too (csv and json always have them).")] = False,
    everything: AllOption = False,
    wide: WideOption = False,
) -> None:
    """Show Rel, Gen, Loc, Port, Avg and Geo of each arm at each round, with 95% intervals, n, seeds, status and time.

    Round 0 is the unedited model. A time "+ … shared" was spent once, on edits that several trials took from one pass.
    Arms have the names of the latest `raysweep run`. Trials whose files are damaged are named and have no numbers; the exit
    code is 3 then.

    Example:

        raysweep show demo
        raysweep show demo --at -1 --format markdown --plot demo.png
        raysweep show lambda_units --plot lambda.png --over wrap.simie.lam
    """
    if over and plot is None:
        raise SpecError("--over says over which key to draw", hint="add --plot FILE")
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    found = open_results(sweep, workspace, everything=everything)
    chosen = phase.value if phase else None
    trials = trial_views(found)
    shown = all_lines(trials, phase=chosen, by=by.value, at=at)
    if over:
        swept_values(trials, over)
    print(table(found, trials, shown, phase=chosen, how=format_, ppl=ppl, width=terminal_width(wide=wide)))
    missing = notes.missing_rounds(shown) if at is not None else []
    passed_over = left_out(found.trials().to_pylist())
    intervals = notes.about_intervals(shown, ppl=ppl)
    told = [*notes.non_finite(trials), *missing, *intervals, *passed_over, *notes.outdated(found)]
    notes.tell(told, format_)
    if plot is not None:
        draw = lazy("raysweep.reports.plot")
        if over:
            draw.draw_over(found, plot, over, phase=chosen, at=-1 if at is None else at, trials=trials)
        else:
            draw.draw(found, plot, phase=chosen, by=by.value, trials=trials)
        if format_ is Format.TABLE:
            say(f"plot: {plot}")
    report_left_out(found)


def report_left_out(*sweeps: Sweep) -> None:
    """Name the damaged trials of *sweeps* on stderr, and leave with exit code 3 if there are any."""
    lines = [line for sweep in sweeps for line in left_out_lines(sweep)]
    for line in lines:
        say(line, err=True)
    if lines:
        raise typer.Exit(TRIALS_FAILED)


def text(
    sweep: Sweep, *, by: str = "arm", phase: str | None = None, at: int | None = None, how: Format, ppl: bool = False,
    trials: Sequence[TrialView] | None = None, width: int | None = None,
) -> str:  # fmt: skip
    """Return the arms × rounds table of *sweep* as text; *trials* are its own, if they are read already."""
    trials = trial_views(sweep) if trials is None else trials
    found = all_lines(trials, phase=phase, by=by, at=at)
    return table(sweep, trials, found, phase=phase, how=how, ppl=ppl, width=width)


def table(
    sweep: Sweep, trials: Sequence[TrialView], found: Sequence[Line], *, phase: str | None, how: Format, ppl: bool,
    width: int | None = None,
) -> str:  # fmt: skip
    """Return the lines *found* of the *trials* of *sweep* as text; a table fits *width*, None = in full."""
    if not any(line.trials for line in found):
        return f"{sweep.name}: {'no undamaged trial has a round' if sweep.damaged else 'nothing was measured yet'}"
    done = len({t.row["trial_key"] for t in trials if t.row["status"] == "DONE"})
    count = len({t.row["trial_key"] for t in trials})
    phases = phase or " and ".join(dict.fromkeys(t.phases[0] for t in trials))
    title = f"{sweep.name}: {phases}, mean [95% interval]; {done} of {count} trials done"
    if any(t.row["git_dirty"] for t in trials):
        title += "; code had uncommitted changes"
    return render(rows(found, plain=how in (Format.CSV, Format.JSON), ppl=ppl), how, title=title, width=width)


def rows(found: Sequence[Line], *, plain: bool = False, ppl: bool = False) -> list[dict[str, Cell]]:
    """Return *found* as rows of a table; views that no line has are left out; *plain* = for a program."""
    views = [
        v for v in (*MAIN, *(VIEW_NAMES if ppl or plain else ())) if any(v in (*x.cells, *x.undefined) for x in found)
    ]
    return [
        {
            "arm": line.label,
            "edits": line.step if line.trials else None,
            **({"phase": line.phase} if plain else {}),
            **{VIEW_NAMES.get(v, v.capitalize()): cell(line, v, plain=plain) for v in views},
            "n": line.n if line.cells else None,
            **seeds(line, plain=plain),
            "status": line.status,
            **({"non_finite_step": first_non_finite(line)} if plain else {}),
            **({"seconds_per_edit": line.per_edit} if plain else {"s/edit": line.per_edit}),
            **(
                {"seconds": line.seconds, "seconds_shared": line.shared}
                if plain
                else {"time": clock(line.seconds) + (f" + {clock(line.shared)} shared" if line.shared else "")}
            ),
        }
        for line in found
    ]


def cell(line: Line, view: str, *, plain: bool = False) -> Cell:
    """Return the estimate of *view*; ``undefined``, or nothing for a program, where it is; nothing where there is none."""
    return UNDEFINED if view in line.undefined and not plain else line.cells.get(view)


def seeds(line: Line, *, plain: bool = False) -> dict[str, Cell]:
    """Return how many seeds were measured, and of how many."""
    measured = len(line.trials)
    if plain:
        return {"seeds": measured, "seeds_planned": line.members}
    return {"seeds": measured if measured == line.members else f"{measured} of {line.members}"}


def first_non_finite(line: Line) -> int | None:
    """Return the first step at which a trial of *line* was not finite, or None."""
    return min((t.row["non_finite_step"] for t in line.trials if t.row["non_finite_step"] is not None), default=None)
