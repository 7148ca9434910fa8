"""Arms × rounds: Rel, Gen, Loc, Port, Avg, Geo with 95 % interval and n, per seed or pooled over seeds.

Words: a *line* is one configuration (everything but the seed) at one round in one phase.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from raysweep.config.names import labels
from raysweep.config.space import Scalar
from raysweep.errors import SpecError, nearest
from raysweep.reports.measured import TrialView, trial_views
from raysweep.reports.rounds import Configuration, Labelled, chosen_round, measured_rounds, status
from raysweep.reports.values import PARTS, Floats, stacked, stacked_differences
from raysweep.rows import SHARED_PHASE_SUFFIX
from raysweep.summarize import VIEWS, Estimate, pooled, pooled_expmean, pooled_geo, pooled_median

MAIN_VIEWS = ("rel", "gen", "loc", "port", "port_any", "avg", "geo", "harmonic")
EARLIER = "(earlier plan)"


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One configuration at one round in one phase.

    Attributes:
        label: what to print: the arm, and whichever swept keys vary within it.
        arm: the arm's name.
        step: the round.
        phase: ``retained``, ``immediate`` or, at step 0, ``pristine``.
        seeds: the seeds that were measured there.
        cells: the estimate of each view.
        status: where the configuration's trials stand.
        seconds: mean seconds of a whole trial, without *shared*; nan if not measured.
        per_edit: mean seconds of one edit; nan if not measured.
        shared: seconds of what was done once for several trials.
        trials: the trials that were measured there; none where the configuration has no such round.
        undefined: views that are not in *cells* because a value of at least one trial is not a finite number.
        members: how many trials the configuration has, measured there or not.
    """

    label: str
    arm: str
    step: int
    phase: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Estimate]
    status: str
    seconds: float
    per_edit: float
    shared: float = 0.0
    trials: Sequence[TrialView] = field(default=(), repr=False)
    undefined: frozenset[str] = frozenset()
    members: int = 0

    @property
    def n(self) -> int:
        """How many records stand behind the line (the most of any cell)."""
        return max((c.n for c in self.cells.values()), default=0)


def summary_rows(
    trials: Sequence[TrialView], *, phase: str | None = None, by: str = "arm", at: int | None = None
) -> list[SummaryRow]:
    """Return the lines of *phase*, configurations in order of arm and point, rounds rising.

    Args:
        trials: what :func:`raysweep.reports.measured.trial_views` read.
        phase: ``retained`` or ``immediate``; None = the one that the trials' study shows; round 0 is ``pristine`` in both.
        by: ``arm`` pools the seeds of a configuration; ``trial`` gives each trial its lines.
        at: only this round; -1 = the last one that the configurations have in common
            (:func:`raysweep.reports.rounds.last_common`). Configurations without it have no line.

    Raises:
        SpecError: nothing was measured at *at*, or the study has no such phase.
    """
    every_row = rows_with_gaps(trials, phase=phase, by=by, at=at)
    return [line for line in every_row if line.trials or at is None]


def rows_with_gaps(
    trials: Sequence[TrialView], *, phase: str | None = None, by: str = "arm", at: int | None = None
) -> list[SummaryRow]:
    """Return what :func:`lines` does, and a line without cells for each configuration that has no round to show."""
    return rows_of_configurations(groups(trials, by=by), phase=phase, at=at)


def rows_of_configurations(
    configurations: Labelled, *, phase: str | None = None, at: int | None = None
) -> list[SummaryRow]:
    """Return what :func:`rows_with_gaps` does, of labelled *configurations*."""
    # −1 is resolved over all configurations together, so that one table holds one round.
    step = None if at is None else chosen_round(configurations, at)
    out = []
    for label, members in configurations:
        shown_phase = phase_of(members, phase)
        rounds = sorted(measured_rounds(members)) if step is None else [step]
        out += [_line(label, members, r, shown_phase if r else "pristine") for r in rounds or [0]]
    return out


def phase_of(members: Sequence[TrialView], phase: str | None) -> str:
    """Return *phase*, or the one that the study of *members* shows by default.

    Raises:
        SpecError: the study has no such phase.
    """
    study, known = str(members[0].row["study"]), members[0].phases
    if phase is not None and phase not in known:
        message = f"study '{study}' edits each record from the pristine model, so nothing is {phase}"
        raise SpecError(message, hint=f"leave out --phase, or use --phase {known[0]}")
    return phase or known[0]


def groups(trials: Sequence[TrialView], *, by: str = "arm") -> list[tuple[str, Configuration]]:
    """Return ``(label, trials)`` per configuration; no two have the same label.

    A label is the arm and whichever swept keys vary within it. Trials of no current plan are marked as such.
    """
    by_configuration: dict[tuple[object, ...], list[TrialView]] = {}
    for trial in trials:
        trial_alone = (trial.row["trial_key"],) if by == "trial" else ()
        by_configuration.setdefault((*trial.configuration, *trial_alone), []).append(trial)
    firsts = [members[0] for members in by_configuration.values()]
    texts = dict(zip(map(id, firsts), _labels(firsts, by), strict=True))
    arms = list(dict.fromkeys(t.row["arm"] for t in trials if t.row["planned"]))
    # Arms of earlier plans come behind those of the current one.
    arms += [arm for arm in dict.fromkeys(t.row["arm"] for t in trials) if arm not in arms]
    order = sorted(
        by_configuration.values(),
        key=lambda m: (not m[0].row["planned"], arms.index(m[0].row["arm"]), *_order(m[0], by)),
    )
    return [(texts[id(members[0])], members) for members in order]


def swept_values(trials: Sequence[TrialView], key: str) -> list[Scalar]:
    """Return the values of the swept *key*, each once: numbers in order, then all others.

    Raises:
        SpecError: no trial has the key.
    """
    by_text = {repr(t.point[key]): t.point[key] for t in trials if key in t.point}
    if not by_text:
        known = {name for t in trials for name in t.point}
        raise SpecError(f"no trial sweeps '{key}'", hint=nearest(key, known))
    return sorted(by_text.values(), key=lambda v: (not is_number(v), v if is_number(v) else 0.0, str(v)))


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a swept value is a number, which truth values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(trials: Sequence[TrialView], by: str) -> list[str]:
    """Return a label for each of *trials*, one of each configuration; a hash tells apart what names do not."""
    out = [""] * len(trials)
    for planned in (True, False):
        which = [i for i, t in enumerate(trials) if t.row["planned"] is planned]
        places = [(str(trials[i].row["arm"]), trials[i].point) for i in which]
        for i, label in zip(which, labels(places), strict=True):
            seed = f" seed={trials[i].seed}" if by == "trial" else ""
            out[i] = f"{label}{seed}" if planned else f"{label}{seed} {EARLIER}"
    # Two contents under one name happen with trials of earlier plans only; a piece of the hash tells them apart.
    often = Counter(out)
    for i, trial in enumerate(trials):
        if often[out[i]] > 1:
            content = trial.row["trial_key"] if by == "trial" else trial.row["group"] or trial.row["trial_key"]
            out[i] = f"{out[i]} {content[:8]}"
    return out


def _order(trial: TrialView, by: str) -> tuple[tuple[tuple[str, bool, str | float], ...], int]:
    point = tuple(
        (k, isinstance(v, str), v if isinstance(v, str) else float(v or 0)) for k, v in sorted(trial.point.items())
    )
    return (point, (trial.seed or 0) if by == "trial" else 0)


def _line(label: str, members: Sequence[TrialView], step: int, phase: str) -> SummaryRow:
    where = (phase, step)
    # Trials that have not come so far do not count: a mean over fewer seeds is honest, a gap as 0 is not.
    measured = [t for t in members if where in t.measured]
    # One value that is no number makes the view undefined for the configuration; leaving it out would flatter it.
    undefined = frozenset[str]().union(*(t.undefined.get(where, frozenset()) for t in measured))
    cells = {}
    for view in (v for v in (*VIEWS, "avg") if v not in undefined):
        having = [t.measured for t in measured if view in t.measured[where]]
        if having:
            (values,) = stacked(having, where, view)
            cells[view] = pooled(values, view)
            if view == "ppl":
                cells |= {"ppl_median": pooled_median(values), "ppl_expmean": pooled_expmean(values)}
    # Geo is taken of the means, seed by seed, not of single records.
    if all(v in cells for v in PARTS):
        cells["geo"] = pooled_geo(stacked([t.measured for t in measured], where, *PARTS))
    edit = [
        t.seconds[p] for t in members for p in ("edit", f"edit{SHARED_PHASE_SUFFIX}") if t.seconds.get(p, (0, 0))[1]
    ]
    totals = [[_total(t, shared=False), _total(t, shared=True)] for t in members if t.seconds]
    unshared, shared = np.mean(totals, axis=0) if totals else (math.nan, 0.0)
    return SummaryRow(
        label=label, arm=members[0].row["arm"], step=step, phase=phase,
        seeds=tuple(sorted({t.seed or 0 for t in measured})), cells=cells, status=status(members),
        seconds=float(unshared), shared=float(shared),
        per_edit=sum(s for s, _ in edit) / sum(c for _, c in edit) if edit else math.nan, trials=measured,
        undefined=undefined, members=len(members),
    )  # fmt: skip


def _total(trial: TrialView, *, shared: bool) -> float:
    """Return the seconds of the phases that were (not) *shared* with other trials."""
    return sum(
        seconds for phase, (seconds, _) in trial.seconds.items() if phase.endswith(SHARED_PHASE_SUFFIX) is shared
    )


def shared_values(first: SummaryRow, other: SummaryRow, view: str) -> Floats:
    """Return *other* − *first* per record, [records, seeds]: a column for each seed that both have, NaN where one lacks a record.

    Only like is taken from like: nothing where the lines are of different rounds or phases, where *view* is undefined in
    one, or between trials whose records come from different data.
    """
    if (first.step, first.phase) != (other.step, other.phase) or view in first.undefined | other.undefined:
        return np.zeros((0, 0))
    # Pairs need equal seeds: then records, their order and every draw are the same.
    of = {t.seed: t for t in first.trials}
    pairs = []
    for trial in other.trials:
        against = of.get(trial.seed)
        # Records of other data may have the same ids.
        if against is not None and against.row["data_digest"] == trial.row["data_digest"]:
            pairs.append((against.measured, trial.measured))
    return stacked_differences(pairs, (first.phase, first.step), view)


def paired(first: SummaryRow, other: SummaryRow, view: str) -> Estimate | None:
    """Return *other* − *first*, paired by record and seed, or None where they share nothing.

    Geo is a function of means, so its difference is not paired by record and is left out.
    """
    differences = shared_values(first, other, view)
    return pooled(differences, view, difference=True) if differences.size else None


__all__ = [
    "SummaryRow",
    "TrialView",
    "groups",
    "is_number",
    "paired",
    "rows_with_gaps",
    "shared_values",
    "summary_rows",
    "swept_values",
    "trial_views",
]
