"""What each arm keeps of what it wrote: at first and at last, the oldest and the youngest facts, half-life, collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.errors import SpecError
from raysweep.measures import PHASES
from raysweep.reports.measured import TrialView
from raysweep.reports.prose import counted
from raysweep.reports.render import Cell
from raysweep.reports.values import Measurements
from raysweep.reports.views import groups
from raysweep.retention import (
    Array,
    History,
    Survival,
    came_back,
    cohorts,
    collapse_step,
    held,
    lifetimes,
    survival,
)
from raysweep.summarize import Estimate, pooled

FLOOR = 0.5
"""Rel below which, for good, an arm has collapsed."""
YOUNGEST = 10  # in a hundred facts, the first and the latest that are looked at


@dataclass(frozen=True, slots=True)
class Retention:
    """What one configuration keeps.

    Attributes:
        label: the configuration.
        end: the last round of all its trials.
        rel: one history for each of its trials, of the share of right tokens, by seed.
        exact: likewise, of exact answers; empty where these were not measured.
        pooled: estimates by name: ``immediate``, ``final``, ``first``, ``latest``, ``held``.
        count: how many facts ``first`` and ``latest`` are over.
        kept: the survival of the facts of all trials together.
        collapse: for each trial the step from which on its Rel is below ``FLOOR``; None = it is not, at the end.
    """

    label: str
    end: int
    rel: Sequence[History]
    exact: Sequence[History]
    pooled: Mapping[str, Estimate]
    count: int
    kept: Survival
    collapse: Sequence[int | None]


def retentions(trials: Sequence[TrialView], *, floor: float = FLOOR) -> list[Retention]:
    """Return the retention of each configuration of *trials* that was measured after an edit.

    Raises:
        SpecError: nothing was, or the study retains nothing.
    """
    if trials and all(PHASES[0] not in trial.phases for trial in trials):
        raise SpecError("this study edits each record from the pristine model, so nothing is retained")
    out = [found for label, members in groups(trials) if (found := _retention(label, members, floor)) is not None]
    if not out:
        raise SpecError(
            "no trial was measured after an edit", hint="run the sweep first; `raysweep show` has its state"
        )
    return out


def _retention(label: str, members: Sequence[TrialView], floor: float) -> Retention | None:
    begun = [trial for trial in members if trial.rounds and trial.rounds[-1] > 0]
    if not begun:
        return None
    # Seeds that have not come so far are looked at up to where they all are.
    end = min(trial.rounds[-1] for trial in begun)
    rel, exact = (
        [history(trial.measured, view, end) for trial in begun if isinstance(trial.measured, Measurements)]
        for view in ("rel", "rel_exact")
    )
    exact = [one for one in exact if not np.isnan(one.first).all()]
    count = max(1, end * YOUNGEST // 100)
    ages = [lifetimes(one) for one in exact]
    none = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    return Retention(
        label, end, rel, exact, _estimates(rel, count), count,
        survival(*(np.concatenate(part) for part in zip(*(ages or [none]), strict=True))),
        [_collapse(one, floor) for one in rel],
    )  # fmt: skip


def history(measured: Measurements, view: str, end: int) -> History:
    """Return what became of one trial's facts by *view*, at its rounds up to *end*.

    Values at a round where the view is undefined count as not measured.
    """
    facts = measured.facts
    rounds = [step for phase, step in measured if phase == PHASES[0] and step <= end]

    def column(where: tuple[str, int]) -> Array:
        out = np.full(len(facts.record), np.nan)
        found = measured.arrays(where, view) if where in measured else None
        if found is not None:
            out[np.searchsorted(facts.record, found[0])] = found[1]
        return out

    value = np.stack([column((PHASES[0], step)) for step in rounds], axis=1)
    order = np.argsort(facts.edit_step, kind="stable")
    return History(
        np.asarray(measured.records.names, dtype=str)[facts.record[order]], facts.edit_step[order],
        facts.superseded_step[order], np.asarray(rounds, np.int64), value[order], column((PHASES[1], rounds[-1]))[order],
    )  # fmt: skip


def _estimates(histories: Sequence[History], count: int) -> dict[str, Estimate]:
    """Return the estimates by name; a name without a value is left out."""
    written = [history.edit_step <= history.rounds[-1] for history in histories]
    first, latest = zip(*(cohorts(history, count) for history in histories), strict=True)
    parts = {
        "immediate": [h.first for h in histories],
        "final": [h.last for h in histories],
        "first": [np.where(mask, h.last, np.nan) for h, mask in zip(histories, first, strict=True)],
        "latest": [np.where(mask, h.last, np.nan) for h, mask in zip(histories, latest, strict=True)],
        "held": [held(h) for h in histories],
    }
    named = {
        name: [_by_record(h, np.where(mask, v, np.nan)) for h, mask, v in zip(histories, written, values, strict=True)]
        for name, values in parts.items()
    }
    return {name: pooled(filled) for name, by_seed in named.items() if (filled := [v for v in by_seed if v])}


def _by_record(history: History, values: Array) -> dict[str, float]:
    known = ~np.isnan(values)
    return dict(zip(history.record[known].tolist(), values[known].tolist(), strict=True))


def _collapse(history: History, floor: float) -> int | None:
    with np.errstate(all="ignore"):
        asked = ~np.isnan(history.value)
        means = np.where(asked, history.value, 0.0).sum(0) / asked.sum(0)
    return collapse_step(history.rounds.tolist(), means.tolist(), floor=floor)


def rows(found: Sequence[Retention], *, plain: bool = False) -> list[dict[str, Cell]]:
    """Return a row for each of *found*; *plain* = for a program."""
    out: list[dict[str, Cell]] = []
    for one in found:
        row: dict[str, Cell] = {"arm": one.label, "edits": one.end}
        titles = {"immediate": "Immediate", "final": "Final", "first": "First", "latest": "Latest", "held": "Held"}
        row |= {name if plain else title: one.pooled.get(name) for name, title in titles.items()}
        lost, back = (sum(part) for part in zip(*map(came_back, one.exact), strict=True)) if one.exact else (0, 0)
        half, low, high = one.kept.half_life()
        if plain:
            row |= {"cohort": one.count, "facts": one.kept.n, "lost": lost, "came_back": back}
            row |= {"half_life": half, "half_life_low": low, "half_life_high": high}
            row |= {"collapse": "; ".join("" if step is None else str(step) for step in one.collapse)}
        else:
            row |= {
                "lost": f"{lost} of {one.kept.n}" if one.exact else None,
                "half-life": _age(half, low, high, one.end) if one.kept.n else None,
                "collapse": _steps(one.collapse),
            }
        out.append(row | {"seeds": len(one.rel)})
    return out


def _age(half: float, low: float, high: float, end: int) -> str:
    """Return an age with its limits.

    >>> _age(120.0, 90.0, math.inf, 250), _age(math.inf, math.inf, math.inf, 250)
    ('120 [90, –]', '> 250')
    """
    if math.isinf(half):
        return f"> {end}" if math.isinf(low) else f"> {end} [{low:.0f}, –]"
    return f"{half:.0f} [{low:.0f}, {'–' if math.isinf(high) else f'{high:.0f}'}]"


def _steps(steps: Sequence[int | None]) -> str:
    """Return the middle of the steps of collapse, with the spread over seeds.

    >>> _steps([150, None, 100]), _steps([None, None]), _steps([100, 150, 150])
    ('100–150 (2 of 3)', 'none', '150 (100–150)')
    """
    seen = sorted(step for step in steps if step is not None)
    if not seen:
        return "none"
    spread = f"{seen[0]}–{seen[-1]}" if seen[0] != seen[-1] else f"{seen[0]}"
    if len(seen) < len(steps):
        return f"{spread} ({len(seen)} of {len(steps)})"
    middle = seen[len(seen) // 2]
    return f"{middle} ({spread})" if seen[0] != seen[-1] else spread


def about(found: Sequence[Retention], *, floor: float = FLOOR) -> list[str]:
    """Return what a reader must know of the table of *found*."""
    least, most = min(one.count for one in found), max(one.count for one in found)
    first = counted(most, "fact", "facts") if least == most else f"{least} to {most} facts"
    lost, back = (sum(p) for p in zip(*(came_back(h) for one in found for h in one.exact), strict=True)) if any(
        one.exact for one in found
    ) else (0, 0)  # fmt: skip
    lines = [
        f"Rel after the edit and at the end; First, Latest: of the {first} written first and last; Held: mean since the edit",
        f"collapse: the round from which on Rel is below {floor:g}; over seeds the middle one and the spread",
    ]
    if lost:
        facts = counted(lost, "fact", "facts")
        lines.append(
            f"half-life: Kaplan-Meier over exact answers; {back} of {facts} that were lost were right at the end"
        )
    return lines
