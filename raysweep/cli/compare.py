"""``raysweep compare``: differences between configurations, paired by record and seed; or to published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from raysweep.cli import notes
from raysweep.cli.against import beside, measured
from raysweep.cli.options import Options
from raysweep.cli.plan import counted
from raysweep.cli.render import Cell, Format, render, with_interval
from raysweep.cli.show import (
    AllOption,
    FormatOption,
    Phase,
    PhaseOption,
    cell,
    first_non_finite,
    report_left_out,
    seeds,
)
from raysweep.cli.sweeps import Prefixed, opened
from raysweep.errors import SpecError, nearest
from raysweep.results.published import open_published
from raysweep.results.views import Line, TrialView, groups, lines_of, paired, shared_values, trial_views
from raysweep.summarize import Estimate
from raysweep.workspace import Workspace

VIEWS = ("rel", "gen", "loc", "avg")


def command(
    ctx: typer.Context,
    sweeps: Annotated[list[str], typer.Argument(metavar="SWEEP…", help="One or more sweeps; the first leads.")],
    by: Annotated[str, typer.Option("--by", help="arm, or a swept key such as wrap.simie.lam.")] = "arm",
    at: Annotated[int, typer.Option("--at", help="The round; -1 = the last one in common (with --against: all).")] = -1,
    phase: PhaseOption = None,
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

    With `--against`, compare with published numbers: ours with its 95% interval, theirs, the difference.

    Example:

        raysweep compare demo --by arm --at 100
        raysweep compare demo other --by wrap.simie.lam --format latex
        raysweep compare simie_table1 --against simie-table1
        raysweep compare demo --against simie-table1 --loosely
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    plain = format_ in (Format.CSV, Format.JSON)
    pairs = opened(sweeps, workspace, everything=everything)
    if against:
        if by != "arm" or phase not in (None, Phase.RETAINED):
            hint = "leave out --by and --phase"
            raise SpecError("published numbers are compared arm by arm, with what is retained", hint=hint)
        numbers = open_published(against, workspace)
        table, told = beside(numbers, measured(pairs, workspace, at=at), loosely=loosely, plain=plain)
        print(render(table, format_, title=f"retained, mean [95% interval], against {against}"))
        notes.tell(told, format_)
        report_left_out(*(sweep for sweep, _ in pairs))
        return
    if loosely:
        raise SpecError("--loosely says how to compare with published numbers", hint="add --against NAME")
    found = compared(pairs, workspace, by=by, phase=phase.value if phase else None, at=at)
    first = reference(found)
    what = f"{first.phase} at {first.step} edits; mean [95% interval]"
    title = f"{what}; Δ = difference to {first.label}, paired"
    print(render(rows(found, plain=plain), format_, title=title))
    changed = [note for sweep, _ in pairs for note in notes.outdated(sweep)]
    notes.tell([*notes.missing_rounds(found), *unpaired(found), *notes.about_intervals(found), *changed], format_)
    report_left_out(*(sweep for sweep, _ in pairs))


def compared(
    sweeps: Sequence[str | Prefixed],
    workspace: Workspace,
    *,
    by: str,
    phase: str | None,
    at: int,
    everything: bool = False,
) -> list[Line]:
    """Return the lines to compare, all of one round and one phase, ordered by the values of *by*, then by configuration.

    A configuration that was not measured at that round has a line without cells.

    Raises:
        SpecError: no trial has the swept key *by*, nothing was measured at *at*, or the sweeps' studies show other phases.
    """
    found: list[tuple[tuple[bool, str | float], tuple[str, Sequence[TrialView]]]] = []
    known: set[str] = set()
    for sweep, prefix in opened(sweeps, workspace, everything=everything):
        for label, members in groups(trial_views(sweep)):
            known |= set(members[0].point)
            if by == "arm" or by in members[0].point:
                found.append((_rank(members[0], by), (f"{prefix}{label}", members)))
    if by != "arm":
        if by not in known:
            raise SpecError(f"no trial sweeps '{by}'", hint=nearest(by, {"arm", *known}))
        found.sort(key=lambda item: item[0])
    shown = lines_of([named for _, named in found], phase=phase, at=at)
    phases = {line.phase: line.label for line in shown if line.trials}
    if len(phases) > 1:
        each = ", ".join(f"{phase} ({label})" for phase, label in phases.items())
        raise SpecError(f"these show different phases: {each}", hint="choose one with --phase")
    return shown


def _rank(trial: TrialView, by: str) -> tuple[bool, str | float]:
    value = trial.point.get(by)
    return (True, value) if isinstance(value, str) else (False, float(value or 0))


def reference(found: Sequence[Line]) -> Line:
    """Return the line that the others are compared with: the first with a defined value, else the first that was measured."""
    return next((line for line in found if line.cells), None) or next(line for line in found if line.trials)


def rows(found: Sequence[Line], *, plain: bool = False) -> list[dict[str, Cell]]:
    """Return the lines beside their differences to the :func:`reference`; *plain* = for a program."""
    first = reference(found)
    out: list[dict[str, Cell]] = []
    for line in found:
        row: dict[str, Cell] = {"arm": line.label, "edits": line.step if line.trials else None}
        for view in (v for v in VIEWS if any(v in (*x.cells, *x.undefined) for x in found)):
            name = view.capitalize()
            row[name] = cell(line, view, plain=plain)
            difference = _difference(None if line is first else paired(first, line, view), plain=plain)
            row[f"delta_{view}" if plain else f"Δ{name}"] = difference
        row |= {"n": line.n if line.cells else None, **seeds(line, plain=plain), "status": line.status}
        if plain:
            row["non_finite_step"] = first_non_finite(line)
        out.append(row)
    return out


def unpaired(found: Sequence[Line]) -> list[str]:
    """Return a note for each line whose differences do not cover all of its records and seeds, or all of the first line's."""
    first, told = reference(found), []
    for line in (x for x in found if x.trials and x is not first):
        view = next((v for v in VIEWS if v in line.cells and v in first.cells), None)
        if view is None:
            continue
        shared = shared_values(first, line, view)
        records = len({record for values in shared for record in values})
        if records < max(line.cells[view].n, first.cells[view].n) or len(shared) < max(
            len(line.seeds), len(first.seeds)
        ):
            what = (
                f"{counted(records, 'record', 'records')} and {counted(len(shared), 'seed', 'seeds')}"
                if shared
                else "nothing"
            )
            told.append(f"{line.label} and {first.label} have {what} in common{'; Δ is over those' if shared else ''}")
    return told


def _difference(found: Estimate | None, *, plain: bool) -> Cell:
    """Return a difference with its sign; the numbers themselves if *plain*."""
    if plain or found is None:
        return found if plain else "–"
    return with_interval(found, sign="+")
