"""Our lines beside published numbers: the table and the notes of ``raysweep compare --against``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from raysweep.config.schema import TrialSpec
from raysweep.errors import SpecError
from raysweep.reports import published_numbers
from raysweep.reports.published_numbers import Number, Ours
from raysweep.reports.render import Cell
from raysweep.reports.sweep_table import NAMES
from raysweep.reports.sweeps import LabelledSweep, open_labelled
from raysweep.reports.views import MAIN_VIEWS, summary_rows, trial_views
from raysweep.summarize import VIEWS
from raysweep.workspace import Workspace

RETAINED = "retained"


def measured(
    sweeps: Sequence[str | LabelledSweep], workspace: Workspace, *, at: int = -1, everything: bool = False
) -> list[Ours]:
    """Return what *sweeps* retained, configuration by configuration, at every round, or at the round *at* if it is not -1.

    Raises:
        SpecError: nothing was measured, or nothing is retained in the study of a sweep.
    """
    out = []
    for sweep, prefix in open_labelled(sweeps, workspace, everything=everything):
        trials = trial_views(sweep)
        without = next((t.row["study"] for t in trials if RETAINED not in t.phases), None)
        if without is not None:
            message = f"published numbers are of what is retained; study '{without}' of '{sweep.name}' retains nothing"
            raise SpecError(message, hint="name a sweep of a lifelong study")
        for line in summary_rows(trials, phase=RETAINED, at=None if at < 0 else at):
            if line.step and line.trials:
                trial = TrialSpec.read_back(sweep.store.about(line.trials[0].row["trial_key"]).trial)
                out.append(Ours(replace(line, label=f"{prefix}{line.label}"), trial))
    if not out:
        raise SpecError("nothing was measured after an edit", hint="`raysweep show SWEEP` lists the rounds")
    return out


def beside(
    numbers: Sequence[Number], ours: Sequence[Ours], *, loosely: bool, plain: bool
) -> tuple[list[dict[str, Cell]], list[str]]:
    """Return rows and notes of *ours* beside the published *numbers*; *plain* = for a program.

    Raises:
        SpecError: no published number is of one of our lines; the message says why.
    """
    matches = published_numbers.beside(numbers, ours, loosely=loosely)
    if not matches:
        why = published_numbers.unlike(numbers, ours)
        hint = "--loosely sets the arms they have in common side by side all the same"
        in_common = not loosely and any(published_numbers.same_arm(n, o.trial) for n in numbers for o in ours)
        raise SpecError(f"nothing was measured as published; {why}", hint=hint if in_common else "")
    table = [_row(one, number, plain=plain, loosely=loosely) for one, number in matches]
    return table, [*_notes(matches, loosely=loosely), *_left_out(matches, ours), *_states(ours)]


def _row(one: Ours, number: Number, *, plain: bool, loosely: bool) -> dict[str, Cell]:
    """Return one row: *one* of our lines, one published *number*, and ours minus theirs."""
    cell = one.line.cells[number.view]
    # A bound has no difference.
    difference = None if number.sign == ">" else cell.mean - number.value
    model, data, edits = one.trial.model.name, one.trial.data.name, one.line.step
    row: dict[str, Cell] = {"arm": one.line.label}
    if plain or loosely:
        row |= {
            "model": model,
            "data": data,
            "edits": edits,
            **({"lam": one.lam if one.lam is not None else one.lam_text or None} if plain else {}),
        }
        row |= {"published arm": number.arm, "their model": number.model, "their data": number.dataset}
        row |= {"their edits": number.edits, **({"their lam": number.lam} if plain else {})}
    else:
        row |= {"published arm": number.arm, "model": model, "data": data, "edits": edits}
    row |= {"metric": number.metric, "ours": cell}
    if plain:
        row |= {"theirs": number.value, "their sign": number.sign, "their uncertainty": number.uncertainty}
    else:
        row["theirs"] = _printed(number)
    return row | {"difference": difference if plain or difference is None else f"{difference:+.3f}", "n": cell.n}


def _printed(number: Number) -> str:
    """Return the published value with the digits it was given with."""
    # Half a unit of the last digit is what the file holds; 1e-9 keeps rounding from adding a digit.
    digits = max(0, math.ceil(-math.log10(2 * number.uncertainty) - 1e-9)) if number.uncertainty else 0
    return f"{number.sign}{number.value:.{digits}f}"


def _notes(matches: Sequence[tuple[Ours, Number]], *, loosely: bool) -> list[str]:
    """Return what a reader must know of both sides: sources, precision, what was measured how."""
    notes = ["model, data, edits and λ need not be the same here: the differences mix all of them"] if loosely else []
    notes += [f"theirs: {source}" for source in dict.fromkeys(n.source for _, n in matches)]
    exact = {(n.sign, n.uncertainty) for _, n in matches if n.uncertainty}
    read_off = ", ".join(f"{'read off a figure ' if s else ''}to ±{u:g}" for s, u in sorted(exact))
    notes.append(
        f"theirs is given without a standard error, {read_off}" if read_off else "theirs has no standard error"
    )
    for _, number in {(n.metric, n.measured, n.view): (o, n) for o, n in matches}.values():
        kind, metric = VIEWS.get(number.view, ("", ""))
        our_view = f"{NAMES.get(number.view, number.view.capitalize())}, retained" + (
            f" ({kind}/{metric})" if kind else ""
        )
        notes.append(f"their {number.metric}: {number.measured}. Ours: {our_view}")
    for one, number in {(o.line.label, n.asking): (o, n) for o, n in matches}.values():
        asking = one.trial.protocol.asking
        if number.asking and number.asking != asking:
            notes.append(f"{one.line.label}: theirs asks by {number.asking}, ours by {asking} (protocol.asking)")
    notes += _lambdas(matches)
    if any(o.line.cells[n.view].n < o.line.step for o, n in matches):
        notes.append("where n is below edits, ours leaves out superseded records, and those without such a probe")
    if any(o.trial.data.order != "file" or o.trial.data.skip for o, _ in matches):
        notes.append("ours are not the file's first records in its order (data.order, data.skip)")
    return notes


def _lambdas(matches: Sequence[tuple[Ours, Number]]) -> list[str]:
    """Return a note per configuration of ours whose λ is not the published one."""
    theirs: dict[tuple[str, str], dict[str, None]] = {}
    for one, number in matches:
        if one.lam_text and (one.lam is None or number.lam != one.lam):
            their_lam = "not published" if number.lam is None else f"{number.lam:g}"
            known = theirs.setdefault((one.line.label, one.lam_text), {})
            known[f"{their_lam} ({number.model}, {number.dataset})"] = None
    return [f"{label}: our λ is {lam}, theirs {', '.join(their_lam)}" for (label, lam), their_lam in theirs.items()]


def _left_out(matches: Sequence[tuple[Ours, Number]], ours: Sequence[Ours]) -> list[str]:
    """Return a note on our configurations that have no published counterpart."""
    accounted_for = {o.line.label for o, _ in matches} | {o.line.label for o in ours if o.line.undefined}
    left = [label for label in dict.fromkeys(o.line.label for o in ours) if label not in accounted_for]
    return [f"without a published counterpart: {', '.join(left)}"] if left else []


def _states(ours: Sequence[Ours]) -> list[str]:
    """Return a note per configuration of ours that is not done under every seed, or not in finite numbers."""
    states = {o.line.label: o.line for o in ours}
    about = []
    for label, line in states.items():
        views = sorted(
            {
                NAMES.get(v, v.capitalize())
                for o in ours
                if o.line.label == label
                for v in o.line.undefined & {*MAIN_VIEWS}
            }
        )
        if line.status != "done":
            about.append(f"{label}: {line.status}{'; undefined: ' + ', '.join(views) if views else ''}")
    return about
