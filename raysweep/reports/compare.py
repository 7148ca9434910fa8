"""Configurations beside what they are compared with: rows with paired differences, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from raysweep.errors import SpecError, nearest
from raysweep.protocols import Selection
from raysweep.reports import notes
from raysweep.reports.asked import renamed
from raysweep.reports.evidence import LEADING, evidence, geo_difference, of_pairs
from raysweep.reports.pairs import Entry, Pair, contents, first_measured
from raysweep.reports.prose import counted
from raysweep.reports.render import Cell, Difference
from raysweep.reports.sweep_table import cell, first_non_finite, seeds
from raysweep.reports.sweeps import LabelledSweep, open_labelled
from raysweep.reports.views import (
    SummaryRow,
    TrialView,
    groups,
    paired,
    rows_of_configurations,
    shared_values,
    trial_views,
)
from raysweep.results.tables import Sweep
from raysweep.verdicts import Verdict, Word
from raysweep.workspace import Workspace

VIEWS = ("rel", "gen", "loc", "avg")


def compared_rows(
    sweeps: Sequence[str | LabelledSweep],
    workspace: Workspace,
    *,
    by: str,
    phase: str | None,
    at: int,
    everything: bool = False,
) -> list[SummaryRow]:
    """Return the lines to compare, all of one round and one phase, ordered by the values of *by*, then by configuration.

    A configuration that was not measured at that round has a line without cells.

    Raises:
        SpecError: no trial has the swept key *by*, nothing was measured at *at*, or the sweeps' studies show other phases.
    """
    opened = open_labelled(sweeps, workspace, everything=everything)
    return [entry.line for entry in compared_entries(opened, by=by, phase=phase, at=at)]


def compared_entries(
    sweeps: Sequence[tuple[Sweep, str]], *, by: str, phase: str | None, at: int, asked: Selection | None = None
) -> list[Entry]:
    """Return what :func:`compared` does of opened *sweeps* with their prefixes, each line with its trial's content.

    *asked* names the protocol whose numbers are compared; None = the main asking's.
    """
    configurations: list[tuple[str, str, Sequence[TrialView]]] = []
    known: set[str] = set()
    content: dict[str, dict[str, dict[str, object]]] = {}
    for sweep, prefix in sweeps:
        trials = trial_views(
            sweep, partial(renamed, sweep=sweep, selection=asked) if asked else None
        )  # before the rows, which then are there without another look at the files
        content[prefix] = contents(sweep)
        # All keys are collected, for the hint below, before arms without the key are passed over.
        for label, members in groups(trials):
            known |= set(members[0].point)
            if by == "arm" or by in members[0].point:
                configurations.append((prefix, f"{prefix}{label}", members))
    if by != "arm":
        if by not in known:
            raise SpecError(f"no trial sweeps '{by}'", hint=nearest(by, {"arm", *known}))
        configurations.sort(key=lambda item: _rank(item[2][0], by))
    lines = rows_of_configurations([(label, members) for _, label, members in configurations], phase=phase, at=at)
    # Retained and immediate values are different quantities, whatever their names in a table.
    phases = {line.phase: line.label for line in lines if line.trials}
    if len(phases) > 1:
        each = ", ".join(f"{phase} ({label})" for phase, label in phases.items())
        raise SpecError(f"these show different phases: {each}", hint="choose one with --phase")
    entries = []
    for line, (prefix, _, members) in zip(lines, configurations, strict=True):
        # A trial that has not begun has no content yet; another seed of it tells the same.
        begun = next((t for t in members if t.row["trial_key"] in content[prefix]), members[0])
        entries.append(Entry(line, prefix, begun, content[prefix].get(str(begun.row["trial_key"]), {})))
    return entries


def _rank(trial: TrialView, by: str) -> tuple[bool, str | float]:
    value = trial.point.get(by)
    # Numbers before words: a text and a number cannot be compared.
    return (True, value) if isinstance(value, str) else (False, float(value or 0))


def reference(rows: Sequence[SummaryRow]) -> SummaryRow:
    """Return the line that the others are compared with by default: the first with a defined value, else the first measured."""
    line = first_measured(rows)
    if line is None:
        raise SpecError("nothing was measured yet")
    return line


def rows(compared: Sequence[SummaryRow | Pair], *, plain: bool = False) -> list[dict[str, Cell]]:
    """Return a row per pair: the line, and its difference to its reference; *plain* = for a program.

    Lines without a pair are compared with their :func:`reference`. Where rows have several references, or for a program, each
    row names its own.
    """
    pairs = _with_references(compared)
    # One reference for all rows stands in the title; several need a column.
    several = len({id(pair.reference) for pair in pairs if pair.reference is not None}) > 1
    # By identity: equal rows of two sweeps are two rows.
    listed = {id(pair.line) for pair in pairs}
    several |= any(pair.reference is not None and id(pair.reference) not in listed for pair in pairs)
    words = of_pairs(pairs, VIEWS)
    views = [v for v in VIEWS if any(v in (*p.line.cells, *p.line.undefined) for p in pairs)]
    out: list[dict[str, Cell]] = []
    for pair in pairs:
        line = pair.line
        row: dict[str, Cell] = {"arm": line.label, **({"to": _name(pair)} if plain or several else {})}
        row["edits"] = line.step if line.trials else None
        for view in views:
            row[view.capitalize()] = cell(line, view, plain=plain)
            difference = _difference(pair, view, words[view].get(id(pair)))
            row[f"delta_{view}" if plain else f"Δ{view.capitalize()}"] = difference if plain else difference or "–"
            if plain:
                row |= evidence(pair, view, words[view].get(id(pair)))
        if plain:
            row |= {"geo": cell(line, "geo", plain=True), "delta_geo": geo_difference(pair)}
        row |= {"n": line.n if line.cells else None, **seeds(line, plain=plain), "status": line.status}
        if not plain and (leading := next((v for v in LEADING if words[v]), None)):
            # One word in a row: of the measure that sums the others up, where there is one.
            row[f"{leading.capitalize()} is"] = str(words[leading].get(id(pair)) or "–")
        if plain:
            row["non_finite_step"] = first_non_finite(line)
        out.append(row)
    return out


def _with_references(listed: Sequence[SummaryRow | Pair]) -> list[Pair]:
    lines = [one for one in listed if isinstance(one, SummaryRow)]
    first = reference(lines) if lines else None
    return [one if isinstance(one, Pair) else Pair(one, None if one is first else first) for one in listed]


def _name(pair: Pair) -> str | None:
    return None if pair.reference is None else pair.reference.label


def _difference(pair: Pair, view: str, verdict: Verdict | None) -> Difference | None:
    found = None if pair.reference is None else paired(pair.reference, pair.line, view)
    if found is None:
        return None
    shown = verdict is not None and verdict.word is not Word.NOT_SHOWN
    return Difference(found.mean, found.se, found.n, found.low, found.high, shown)


def caption(pairs: Sequence[Pair], headline: str, *, under: str = "") -> str:
    """Return what stands with a table of *pairs* in a paper: the *headline*, n, seeds, protocol, version, what the marks mean.

    *under* is the protocol's label, where that is not the main asking.
    """
    lines = [line for line in every_row(pairs) if line.trials]
    records, seeds = sorted({f"{x.n:,}" for x in lines}), sorted({str(len(x.trials)) for x in lines})
    rows = [trial.row for line in lines for trial in line.trials]
    asked = sorted({f"{row.get('spec.protocol.asking')} (version {row.get('spec.versions.protocol')})" for row in rows})
    versions = sorted({str(row["raysweep"]) for row in rows})
    compared_pairs = sum(pair.reference is not None for pair in pairs)
    parts = [
        headline,
        f"n = {' or '.join(records)} records, seeds: {' or '.join(seeds)}",
        f"protocol: {under or ', '.join(asked)}",
    ]
    parts += [f"raysweep {', '.join(versions)}", "bold: the highest mean"]
    if compared_pairs:
        parts.append(
            "† not shown at 5 %" + (f", Holm-corrected for {compared_pairs} differences" if compared_pairs > 1 else "")
        )
    return "; ".join(parts) + "."


def comparison_notes(
    sweeps: Sequence[LabelledSweep], pairs: Sequence[Pair], *, by: str, pair: str | None, paper: bool = False
) -> list[str]:
    """Return what a reader must know of the table of *pairs* of *sweeps*; less for a *paper*, whose caption has the rest."""
    lines = every_row(pairs)
    about = [*notes.missing_rounds(lines), *alone(pairs, by=by, pair=pair), *unpaired(pairs)]
    count = sum(pair.reference is not None for pair in pairs)
    if count and not paper:
        of = "" if count == 1 else f", Holm-corrected for the {count} differences of a column"
        about.append(
            f"*, better, worse: beyond chance (5 %{of}); n or seeds that would: if the true difference is the one seen"
        )
    return [*about, *notes.about_intervals(lines), *(note for sweep, _ in sweeps for note in notes.outdated(sweep))]


def alone(pairs: Sequence[Pair], *, by: str, pair: str | None) -> list[str]:
    """Return a note on lines that were measured and have nothing to be compared with."""
    # A reference has no partner either, and needs no note.
    references = {id(p.reference) for p in pairs}
    left = [p.line.label for p in pairs if p.reference is None and p.line.trials and id(p.line) not in references]
    if not left or (by == "arm" and not pair):
        return []
    why = "the same editor without the wrapper" if pair else f"the reference value of {by} in the same arm"
    return [f"nothing to compare with ({why} was not measured): {', '.join(left)}"]


def unpaired(listed: Sequence[SummaryRow | Pair]) -> list[str]:
    """Return a note for each line whose differences do not cover all of its records and seeds, or all of its reference's."""
    about = []
    pairs = [(pair.line, pair.reference) for pair in _with_references(listed)]
    for line, first in pairs:
        if first is None or not line.trials:
            continue
        # One view is enough to count with: which records and seeds two rows share hardly depends on it.
        view = next((v for v in VIEWS if v in line.cells and v in first.cells), None)
        if view is None:
            continue
        records, in_common = shared_values(first, line, view).shape
        if records < max(line.cells[view].n, first.cells[view].n) or in_common < max(len(line.seeds), len(first.seeds)):
            what = (
                f"{counted(records, 'record', 'records')} and {counted(in_common, 'seed', 'seeds')}"
                if in_common
                else "nothing"
            )
            about.append(
                f"{line.label} and {first.label} have {what} in common{'; Δ is over those' if in_common else ''}"
            )
    return about


def title(pairs: Sequence[Pair], *, by: str, to: str, pair: str | None) -> str:
    """Return the title of the table: what stands in it, and what the differences are to."""
    first = next((line for line in every_row(pairs) if line.cells), None) or next(
        x for x in every_row(pairs) if x.trials
    )
    what = f"{first.phase} at {first.step} edits; mean [95% interval]; Δ = difference to"
    if pair:
        return f"{what} the same editor without the wrapper, paired"
    if by != "arm":
        return f"{what} {by} = {to} of the same arm, paired" if to else f"{what} the same arm's first {by}, paired"
    return f"{what} {next((p.reference.label for p in pairs if p.reference), first.label)}, paired"


def every_row(pairs: Sequence[Pair]) -> list[SummaryRow]:
    """Return every line of *pairs* once, references before those compared with them where they are not rows themselves."""
    known: dict[int, SummaryRow] = {id(pair.line): pair.line for pair in pairs}
    extra = {id(p.reference): p.reference for p in pairs if p.reference is not None and id(p.reference) not in known}
    return [*extra.values(), *known.values()]
