"""``raysweep compare``: differences between configurations, paired by record and seed; or to published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from raysweep.cli.options import Options
from raysweep.cli.show import (
    AllOption,
    FormatOption,
    Phase,
    PhaseOption,
    WideOption,
    cell,
    first_non_finite,
    report_left_out,
    seeds,
)
from raysweep.errors import SpecError, nearest
from raysweep.reports import notes
from raysweep.reports.fit import terminal_width
from raysweep.reports.pairs import Entry, Pair, by_value, by_wrapper, contents, first_measured, to_one
from raysweep.reports.published import beside, measured
from raysweep.reports.published_numbers import open_published
from raysweep.reports.render import Cell, Difference, Format, render
from raysweep.reports.sweeps import Prefixed, opened
from raysweep.reports.views import Line, TrialView, groups, lines_of, paired, shared_values, trial_views
from raysweep.reports.wording import counted
from raysweep.results.tables import Sweep
from raysweep.workspace import Workspace

VIEWS = ("rel", "gen", "loc", "avg")


class Pairing(StrEnum):
    """What to set beside what."""

    WRAP = "wrap"


def command(
    ctx: typer.Context,
    sweeps: Annotated[list[str], typer.Argument(metavar="SWEEP…", help="One or more sweeps; the first leads.")],
    by: Annotated[str, typer.Option("--by", help="arm, or a swept key such as wrap.simie.lam.")] = "arm",
    to: Annotated[
        str, typer.Option("--to", metavar="ARM", help="The reference arm; with --by KEY, the reference value of KEY.")
    ] = "",
    pair: Annotated[
        Pairing | None, typer.Option("--pair", help="wrap: each wrapped editor beside the same editor without it.")
    ] = None,
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
    wide: WideOption = False,
) -> None:
    """Compare configurations with a reference: each difference is paired by record and seed, with its 95% interval.

    The reference is the first arm, or `--to ARM`. With `--by KEY` it is the same arm at the key's first value, or at the value
    that `--to` names. With `--pair wrap` it is the same editor, configured the same way, without its wrapper.

    With `--against`, compare with published numbers: ours with its 95% interval, theirs, the difference.

    Example:

        raysweep compare demo --at 100 --to memit
        raysweep compare demo --pair wrap
        raysweep compare demo other --by wrap.simie.lam --format latex
        raysweep compare simie_table1 --against simie-table1
        raysweep compare demo --against simie-table1 --loosely
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    plain, width = format_ in (Format.CSV, Format.JSON), terminal_width(wide=wide)
    opened_sweeps = opened(sweeps, workspace, everything=everything)
    if against:
        if by != "arm" or to or pair or phase not in (None, Phase.RETAINED):
            hint = "leave out --by and --phase, --to and --pair"
            raise SpecError("published numbers are compared arm by arm, with what is retained", hint=hint)
        numbers = open_published(against, workspace)
        table, told = beside(numbers, measured(opened_sweeps, workspace, at=at), loosely=loosely, plain=plain)
        print(render(table, format_, title=f"retained, mean [95% interval], against {against}", width=width))
        notes.tell(told, format_)
        report_left_out(*(sweep for sweep, _ in opened_sweeps))
        return
    if loosely:
        raise SpecError("--loosely says how to compare with published numbers", hint="add --against NAME")
    if pair and (to or by != "arm"):
        raise SpecError("--pair wrap has its own references", hint="leave out --to and --by")
    entries = compared_entries(opened_sweeps, by=by, phase=phase.value if phase else None, at=at)
    pairs = by_wrapper(entries) if pair else to_one(entries, to) if by == "arm" else by_value(entries, by, to)
    print(render(rows(pairs, plain=plain), format_, title=_title(pairs, by=by, to=to, pair=pair), width=width))
    changed = [note for sweep, _ in opened_sweeps for note in notes.outdated(sweep)]
    lines = _lines(pairs)
    about = [*alone(pairs, by=by, pair=pair), *unpaired(pairs), *notes.about_intervals(lines)]
    notes.tell([*notes.missing_rounds(lines), *about, *changed], format_)
    report_left_out(*(sweep for sweep, _ in opened_sweeps))


def _title(pairs: Sequence[Pair], *, by: str, to: str, pair: Pairing | None) -> str:
    """Return the title of the table: what stands in it, and what the differences are to."""
    first = next((line for line in _lines(pairs) if line.cells), None) or next(x for x in _lines(pairs) if x.trials)
    what = f"{first.phase} at {first.step} edits; mean [95% interval]; Δ = difference to"
    if pair:
        return f"{what} the same editor without the wrapper, paired"
    if by != "arm":
        return f"{what} {by} = {to} of the same arm, paired" if to else f"{what} the same arm's first {by}, paired"
    return f"{what} {next((p.reference.label for p in pairs if p.reference), first.label)}, paired"


def _lines(pairs: Sequence[Pair]) -> list[Line]:
    """Return every line of *pairs* once, references before those compared with them where they are not rows themselves."""
    known: dict[int, Line] = {id(pair.line): pair.line for pair in pairs}
    extra = {id(p.reference): p.reference for p in pairs if p.reference is not None and id(p.reference) not in known}
    return [*extra.values(), *known.values()]


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
    found = opened(sweeps, workspace, everything=everything)
    return [entry.line for entry in compared_entries(found, by=by, phase=phase, at=at)]


def compared_entries(sweeps: Sequence[tuple[Sweep, str]], *, by: str, phase: str | None, at: int) -> list[Entry]:
    """Return what :func:`compared` does of opened *sweeps* with their prefixes, each line with its trial's content."""
    found: list[tuple[str, str, Sequence[TrialView]]] = []
    known: set[str] = set()
    content: dict[str, dict[str, dict[str, object]]] = {}
    for sweep, prefix in sweeps:
        trials = trial_views(sweep)  # before the rows, which then are there without another look at the files
        content[prefix] = contents(sweep)
        for label, members in groups(trials):
            known |= set(members[0].point)
            if by == "arm" or by in members[0].point:
                found.append((prefix, f"{prefix}{label}", members))
    if by != "arm":
        if by not in known:
            raise SpecError(f"no trial sweeps '{by}'", hint=nearest(by, {"arm", *known}))
        found.sort(key=lambda item: _rank(item[2][0], by))
    shown = lines_of([(label, members) for _, label, members in found], phase=phase, at=at)
    phases = {line.phase: line.label for line in shown if line.trials}
    if len(phases) > 1:
        each = ", ".join(f"{phase} ({label})" for phase, label in phases.items())
        raise SpecError(f"these show different phases: {each}", hint="choose one with --phase")
    entries = []
    for line, (prefix, _, members) in zip(shown, found, strict=True):
        begun = next((t for t in members if t.row["trial_key"] in content[prefix]), members[0])
        entries.append(Entry(line, prefix, begun, content[prefix].get(str(begun.row["trial_key"]), {})))
    return entries


def _rank(trial: TrialView, by: str) -> tuple[bool, str | float]:
    value = trial.point.get(by)
    return (True, value) if isinstance(value, str) else (False, float(value or 0))


def reference(found: Sequence[Line]) -> Line:
    """Return the line that the others are compared with by default: the first with a defined value, else the first measured."""
    line = first_measured(found)
    if line is None:
        raise SpecError("nothing was measured yet")
    return line


def rows(found: Sequence[Line | Pair], *, plain: bool = False) -> list[dict[str, Cell]]:
    """Return a row per pair: the line, and its difference to its reference; *plain* = for a program.

    Lines without a pair are compared with their :func:`reference`. Where rows have several references, or for a program, each
    row names its own.
    """
    pairs = _with_references(found)
    several = len({id(pair.reference) for pair in pairs if pair.reference is not None}) > 1
    listed = {id(pair.line) for pair in pairs}
    several |= any(pair.reference is not None and id(pair.reference) not in listed for pair in pairs)
    views = [v for v in VIEWS if any(v in (*p.line.cells, *p.line.undefined) for p in pairs)]
    out: list[dict[str, Cell]] = []
    for pair in pairs:
        line = pair.line
        row: dict[str, Cell] = {"arm": line.label, **({"to": _name(pair)} if plain or several else {})}
        row["edits"] = line.step if line.trials else None
        for view in views:
            row[view.capitalize()] = cell(line, view, plain=plain)
            difference = _difference(pair, view)
            row[f"delta_{view}" if plain else f"Δ{view.capitalize()}"] = difference if plain else difference or "–"
        row |= {"n": line.n if line.cells else None, **seeds(line, plain=plain), "status": line.status}
        if plain:
            row["non_finite_step"] = first_non_finite(line)
        out.append(row)
    return out


def _with_references(found: Sequence[Line | Pair]) -> list[Pair]:
    lines = [one for one in found if isinstance(one, Line)]
    first = reference(lines) if lines else None
    return [one if isinstance(one, Pair) else Pair(one, None if one is first else first) for one in found]


def _name(pair: Pair) -> str | None:
    return None if pair.reference is None else pair.reference.label


def _difference(pair: Pair, view: str) -> Difference | None:
    found = None if pair.reference is None else paired(pair.reference, pair.line, view)
    return None if found is None else Difference(found.mean, found.se, found.n, found.low, found.high)


def alone(pairs: Sequence[Pair], *, by: str, pair: Pairing | None) -> list[str]:
    """Return a note on lines that were measured and have nothing to be compared with."""
    references = {id(p.reference) for p in pairs}
    left = [p.line.label for p in pairs if p.reference is None and p.line.trials and id(p.line) not in references]
    if not left or (by == "arm" and not pair):
        return []
    why = "the same editor without the wrapper" if pair else f"the reference value of {by} in the same arm"
    return [f"nothing to compare with ({why} was not measured): {', '.join(left)}"]


def unpaired(found: Sequence[Line | Pair]) -> list[str]:
    """Return a note for each line whose differences do not cover all of its records and seeds, or all of its reference's."""
    told = []
    pairs = [(pair.line, pair.reference) for pair in _with_references(found)]
    for line, first in pairs:
        if first is None or not line.trials:
            continue
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
