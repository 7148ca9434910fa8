"""``raysweep show``: a sweep's results, arms × rounds."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.errors import TRIALS_FAILED
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say, tell
from raysweep.errors import SpecError
from raysweep.lazy import lazy
from raysweep.reports import asked, notes
from raysweep.reports.fit import terminal_width
from raysweep.reports.left_out import left_out
from raysweep.reports.render import Format
from raysweep.reports.standing import left_out_lines
from raysweep.reports.sweep_table import table
from raysweep.reports.views import rows_with_gaps, swept_values, trial_views
from raysweep.results.tables import Sweep, open_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

PLOT_HELP = "Also draw Rel, Gen, Loc, Avg over edits, or over KEY."
OVER_HELP = "With --plot: over a swept key, at one round (--at; default: last)."
ProtocolOption = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar="ID[:PROMPT][+NUMBER]",
        help="Of protocol.also, such as wild-mirage:qa_inst or localft+whole_match.",
    ),
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
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help=PLOT_HELP)] = None,
    over: Annotated[str, typer.Option("--over", metavar="KEY", help=OVER_HELP)] = "",
    ppl: Annotated[bool, typer.Option("--ppl", help="Perplexity columns too (csv and json always have them).")] = False,
    everything: AllOption = False,
    wide: WideOption = False,
    protocol: ProtocolOption = "",
) -> None:
    """Show Rel, Gen, Loc, Port, Avg and Geo of each arm at each round, with 95% intervals, n, seeds, status and time.

    Round 0 is the unedited model. A time "+ … shared" was spent once, on what the trials of an edit group share.
    With `--protocol`, Rel, Gen and Loc are what another protocol made of the same probes (docs/protocols.md).
    Arms have the names of the latest `raysweep run`. Trials whose files are damaged are named and have no numbers; the exit
    code is 3 then.

    Example:

        raysweep show demo
        raysweep show demo --at -1 --format markdown --plot demo.png
        raysweep show demo --protocol wild-mirage+whole_match
        raysweep show lambda_units --plot lambda.png --over wrap.simie.lam
    """
    # Refused rather than ignored, as it changes nothing that is printed.
    if over and plot is None:
        raise SpecError("--over says over which key to draw", hint="add --plot FILE")
    workspace = workspace_of(ctx)
    results = open_results(sweep, workspace, everything=everything)
    chosen = phase.value if phase else None
    selection = asked.chosen(protocol, [results])
    asked.refuse_immediate(chosen, selection)
    trials = trial_views(results, partial(asked.renamed, sweep=results, selection=selection) if selection else None)
    lines = rows_with_gaps(trials, phase=chosen, by=by.value, at=at)
    if selection:
        lines = asked.with_harmonic(lines, selection)
    if over:
        # For its error alone: a key that nothing sweeps is refused before the table is printed.
        swept_values(trials, over)
    under, width = selection.text if selection else "", terminal_width(wide=wide)
    print(table(results, trials, lines, phase=chosen, how=format_, ppl=ppl, width=width, asked=under))
    missing = notes.missing_rounds(lines) if at is not None else []
    passed_over = left_out(results.trials().to_pylist())
    intervals = notes.about_intervals(lines, ppl=ppl)
    answers = asked.notes(results, selection) if selection else []
    below = [*answers, *notes.non_finite(trials), *missing, *intervals, *passed_over, *notes.outdated(results)]
    tell(below, format_)
    if plot is not None:
        pictures = lazy("raysweep.reports.plot")
        if over:
            figure = pictures.over_key(results, trials, over, phase=chosen, at=-1 if at is None else at)
        else:
            figure = pictures.over_edits(results, trials, phase=chosen, by=by.value)
        _save(figure, plot, quiet=format_ is not Format.TABLE)
    report_left_out(results)


def _save(figure: Figure, path: Path, *, quiet: bool) -> None:
    lazy("raysweep.reports.plot_style").save(figure, path)
    # A program that reads the table gets nothing else.
    if not quiet:
        say(f"plot: {path}")


def report_left_out(*sweeps: Sweep) -> None:
    """Name the damaged trials of *sweeps* on stderr, and leave with exit code 3 if there are any."""
    # Last of all: the table of what can be read is printed first.
    lines = [line for sweep in sweeps for line in left_out_lines(sweep)]
    for line in lines:
        say(line, err=True)
    if lines:
        raise typer.Exit(TRIALS_FAILED)
