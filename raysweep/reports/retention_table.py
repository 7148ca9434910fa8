"""What each arm keeps of what it wrote: at first and at last, the oldest and the youngest facts, half-life, collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysweep.errors import DamagedError, NewerFormatError, SpecError
from raysweep.measures import PHASES, VIEWS
from raysweep.reports.measured import TrialView, read_trial
from raysweep.reports.prose import counted
from raysweep.reports.render import Cell
from raysweep.reports.values import codes
from raysweep.reports.views import groups
from raysweep.results.tables import Sweep
from raysweep.retention import (
    NEVER,
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


def retentions(sweep: Sweep, trials: Sequence[TrialView], *, floor: float = FLOOR) -> list[Retention]:
    """Return the retention of each configuration of *trials*, the views of *sweep*, that was measured after an edit.

    Raises:
        SpecError: nothing was, or the study retains nothing.
    """
    if trials and all(PHASES[0] not in trial.phases for trial in trials):
        raise SpecError("this study edits each record from the pristine model, so nothing is retained")
    out = [
        found for label, members in groups(trials) if (found := _retention(sweep, label, members, floor)) is not None
    ]
    if not out:
        raise SpecError(
            "no trial was measured after an edit", hint="run the sweep first; `raysweep show` has its state"
        )
    return out


def _retention(sweep: Sweep, label: str, members: Sequence[TrialView], floor: float) -> Retention | None:
    read = []
    for trial in members:
        if trial.rounds and trial.rounds[-1] > 0 and trial.row["trial_key"] not in sweep.damaged:
            try:
                tables = read_trial(sweep, str(trial.row["trial_key"]))
            except (DamagedError, NewerFormatError):
                continue  # `trial_views` has noted why
            read.append((tables.probes, [r for r in trial.rounds if r > 0], tables.batch_size))
    if not read:
        return None
    # Seeds that have not come so far are looked at up to where they all are.
    end = min(rounds[-1] for _, rounds, _ in read)
    rel, exact = (
        [_history(probes, view, [r for r in rounds if r <= end], batch) for probes, rounds, batch in read]
        for view in ("rel", "rel_exact")
    )
    exact = [history for history in exact if len(history.record)]
    count = max(1, end * YOUNGEST // 100)
    ages = [lifetimes(history) for history in exact]
    none = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    return Retention(
        label, end, rel, exact, _estimates(rel, count), count,
        survival(*(np.concatenate(part) for part in zip(*(ages or [none]), strict=True))),
        [_collapse(history, floor) for history in rel],
    )  # fmt: skip


def _history(probes: pa.Table, view: str, rounds: Sequence[int], batch_size: int) -> History:
    kind, metric = VIEWS[view]
    mask = pc.and_(pc.equal(probes["probe_kind"], kind), pc.equal(probes["metric"], metric))
    rows = probes.filter(pc.and_(mask, pc.is_valid(probes["value"])))
    return History.of_rows(
        *codes(rows["record_id"]),
        rows["step"].to_numpy(),
        rows["edit_step"].to_numpy(),
        pc.fill_null(rows["superseded_step"], NEVER).to_numpy(),
        rows["value"].to_numpy(),
        rounds=rounds,
        batch_size=batch_size,
    )


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
                "half-life": _age(half, low, high, one.end) if one.exact else None,
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
    counts = {one.count for one in found}
    first = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    lost, back = (sum(p) for p in zip(*(came_back(h) for one in found for h in one.exact), strict=True)) if any(
        one.exact for one in found
    ) else (0, 0)  # fmt: skip
    lines = [
        f"Rel after the edit and at the end; First, Latest: of the {first} facts written first and last; Held: mean since the edit",
        f"collapse: the round from which on Rel is below {floor:g}; over seeds the middle one and the spread",
    ]
    if lost:
        facts = counted(lost, "fact", "facts")
        lines.append(
            f"half-life: Kaplan-Meier over exact answers; {back} of {facts} that were lost were right at the end"
        )
    return lines
