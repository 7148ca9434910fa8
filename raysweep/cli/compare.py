"""``raysweep compare``: differences between configurations, paired by record and seed; or to published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from raysweep.cli.against import beside, measured
from raysweep.cli.options import Options
from raysweep.cli.render import Cell, Format, render
from raysweep.cli.show import AllOption, FormatOption, Phase, report_left_out
from raysweep.errors import SpecError, nearest
from raysweep.results.published import open_published
from raysweep.results.tables import Sweep, open_sweep
from raysweep.results.views import Z95, Line, TrialView, lines, paired, trial_views
from raysweep.summarize import Estimate
from raysweep.workspace import Workspace

VIEWS = ("rel", "gen", "loc", "avg")


def command(
    ctx: typer.Context,
    sweeps: Annotated[list[str], typer.Argument(metavar="SWEEP…", help="One or more sweeps; the first leads.")],
    by: Annotated[str, typer.Option("--by", help="arm, or a swept key such as wrap.simie.lam.")] = "arm",
    at: Annotated[int, typer.Option("--at", help="The round; -1 = the last (with --against: all).")] = -1,
    phase: Annotated[Phase, typer.Option("--phase", help="When a record is measured.")] = Phase.RETAINED,
    format_: FormatOption = Format.TABLE,
    against: Annotated[
        str, typer.Option("--against", metavar="NAME", help="Published numbers instead: see `raysweep ls published`.")
    ] = "",
    loosely: Annotated[
        bool, typer.Option("--loosely", help="With --against: same arms, whatever the model, data, edits and λ.")
    ] = False,
    everything: AllOption = False,
) -> None:
    """Compare configurations with the first one: each difference is paired by record and seed, with its 95% interval.

    With `--against`, compare with published numbers: ours ± standard error, theirs, the difference.

    Example:

        raysweep compare demo --by arm --at 100
        raysweep compare demo other --by wrap.simie.lam --format latex
        raysweep compare simie_table1 --against simie-table1
        raysweep compare demo --against simie-table1 --loosely
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    opened = [open_sweep(name, workspace, everything=everything) for name in sweeps]
    if against:
        if by != "arm" or phase is not Phase.RETAINED:
            hint = "leave out --by and --phase"
            raise SpecError("published numbers are compared arm by arm, with what is retained", hint=hint)
        numbers = open_published(against, workspace)
        ours = measured(opened, workspace, at=at)
        table, notes = beside(numbers, ours, loosely=loosely, plain=format_ in (Format.CSV, Format.JSON))
        print(render(table, format_, title=f"retained, mean ± standard error, against {against}"))
        for note in notes:
            typer.echo(f"note: {note}", err=format_ is not Format.TABLE)
        report_left_out(*opened)
        return
    if loosely:
        raise SpecError("--loosely says how to compare with published numbers", hint="add --against NAME")
    found = compared(opened, workspace, by=by, phase=phase.value, at=at)
    if not found:
        raise SpecError(f"nothing was measured at {at} edits", hint="`raysweep show SWEEP` lists the rounds")
    title = f"{phase.value}; mean ± standard error; Δ = difference to the first row, paired, with 95% interval"
    print(render(rows(found), format_, title=title))
    report_left_out(*opened)


def compared(
    sweeps: Sequence[str | Sweep], workspace: Workspace, *, by: str, phase: str, at: int, everything: bool = False
) -> list[Line]:
    """Return the lines to compare, ordered by the values of *by*, then by configuration.

    Raises:
        SpecError: no trial has the swept key *by*.
    """
    out: list[tuple[int, tuple[bool, str | float], Line]] = []
    known: set[str] = set()
    for number, name in enumerate(sweeps):
        sweep = name if isinstance(name, Sweep) else open_sweep(name, workspace, everything=everything)
        trials = trial_views(sweep)
        known |= {key for t in trials for key in t.point}
        for line in lines(trials, phase=phase, at=at):
            if not line.trials or (by != "arm" and by not in line.trials[0].point):
                continue
            label = line.label if len(sweeps) == 1 else f"{sweep.name}: {line.label}"
            out.append((number, _rank(line.trials[0], by), replace(line, label=label)))
    if by != "arm" and by not in known:
        raise SpecError(f"no trial sweeps '{by}'", hint=nearest(by, {"arm", *known}))
    if by == "arm":
        return [line for _, _, line in out]
    return [line for _, _, line in sorted(out, key=lambda item: (item[1], item[0]))]


def _rank(trial: TrialView, by: str) -> tuple[bool, str | float]:
    value = trial.point.get(by)
    return (True, value) if isinstance(value, str) else (False, float(value or 0))


def rows(found: list[Line]) -> list[dict[str, Cell]]:
    """Return the lines beside their differences to the first."""
    first = found[0]
    out: list[dict[str, Cell]] = []
    for line in found:
        row: dict[str, Cell] = {"arm": line.label, "edits": line.step}
        for view in (v for v in VIEWS if any(v in x.cells for x in found)):
            name = view.capitalize()
            row[name] = line.cells.get(view)
            difference = None if line is first else paired(first, line, view)
            row[f"Δ{name}"] = _signed(difference)
        row["n"], row["seeds"] = line.n, len(line.seeds)
        out.append(row)
    return out


def _signed(difference: Estimate | None) -> str:
    if difference is None:
        return "–"
    low, high = difference.mean - Z95 * difference.se, difference.mean + Z95 * difference.se
    return f"{difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"
