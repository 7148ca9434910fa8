"""The arms × rounds table of a sweep, as text."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.reports.prose import clock
from raysweep.reports.render import UNDEFINED, Cell, Format, render
from raysweep.reports.views import MAIN_VIEWS, SummaryRow, TrialView, rows_with_gaps, trial_views
from raysweep.results.tables import Sweep

NAMES = {"ppl": "PPL", "ppl_median": "PPL median", "ppl_expmean": "PPL exp-mean"}


def text(
    sweep: Sweep, *, by: str = "arm", phase: str | None = None, at: int | None = None, how: Format, ppl: bool = False,
    trials: Sequence[TrialView] | None = None, width: int | None = None,
) -> str:  # fmt: skip
    """Return the arms × rounds table of *sweep* as text; *trials* are its own, if they are read already."""
    trials = trial_views(sweep) if trials is None else trials
    rows_shown = rows_with_gaps(trials, phase=phase, by=by, at=at)
    return table(sweep, trials, rows_shown, phase=phase, how=how, ppl=ppl, width=width)


def table(
    sweep: Sweep, trials: Sequence[TrialView], rows_shown: Sequence[SummaryRow], *, phase: str | None, how: Format, ppl: bool,
    width: int | None = None, asked: str = "",
) -> str:  # fmt: skip
    """Return the lines *rows_shown* of the *trials* of *sweep* as text; a table fits *width*, None = in full.

    *asked* says under which protocol, where that is not the main asking.
    """
    if not any(line.trials for line in rows_shown):
        return f"{sweep.name}: {'no undamaged trial has a round' if sweep.damaged else 'nothing was measured yet'}"
    done = len({t.row["trial_key"] for t in trials if t.row["status"] == "DONE"})
    count = len({t.row["trial_key"] for t in trials})
    phases = phase or " and ".join(dict.fromkeys(t.phases[0] for t in trials))
    title = f"{sweep.name}: {phases}, {asked + ', ' if asked else ''}mean [95% interval]; {done} of {count} trials done"
    if any(t.row["git_dirty"] for t in trials):
        title += "; code had uncommitted changes"
    return render(rows(rows_shown, plain=how in (Format.CSV, Format.JSON), ppl=ppl), how, title=title, width=width)


def rows(rows_shown: Sequence[SummaryRow], *, plain: bool = False, ppl: bool = False) -> list[dict[str, Cell]]:
    """Return *rows_shown* as rows of a table; views that no line has are left out; *plain* = for a program."""
    views = [
        v
        for v in (*MAIN_VIEWS, *(NAMES if ppl or plain else ()))
        if any(v in (*x.cells, *x.undefined) for x in rows_shown)
    ]
    return [
        {
            "arm": line.label,
            "edits": line.step if line.trials else None,
            **({"phase": line.phase} if plain else {}),
            **{NAMES.get(v, v.capitalize()): cell(line, v, plain=plain) for v in views},
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
        for line in rows_shown
    ]


def cell(line: SummaryRow, view: str, *, plain: bool = False) -> Cell:
    """Return the estimate of *view*; ``undefined``, or nothing for a program, where it is; nothing where there is none."""
    return UNDEFINED if view in line.undefined and not plain else line.cells.get(view)


def seeds(line: SummaryRow, *, plain: bool = False) -> dict[str, Cell]:
    """Return how many seeds were measured, and of how many."""
    measured = len(line.trials)
    if plain:
        return {"seeds": measured, "seeds_planned": line.members}
    return {"seeds": measured if measured == line.members else f"{measured} of {line.members}"}


def first_non_finite(line: SummaryRow) -> int | None:
    """Return the first step at which a trial of *line* was not finite, or None."""
    return min((t.row["non_finite_step"] for t in line.trials if t.row["non_finite_step"] is not None), default=None)
