"""From probe rows to Rel, Gen, Loc, Avg, Geo with n, standard error and 95 % interval; used live and by every reader.

Words: *retained* = measured at a round on every record written so far and not superseded; *immediate* = measured while
``step - edit_step < batch_size``, over all records written up to the round. Both are differences of columns, not code paths.

A view is *undefined* in a phase where one of its values is not a finite number (NaN: the logits were not finite; infinity: a
perplexity that fp64 cannot hold). It then has no mean: the mean of the others would flatter the editor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysweep import intervals
from raysweep.intervals import Interval
from raysweep.measures import PHASES as PHASES
from raysweep.measures import VIEWS as VIEWS

Columns = Mapping[str, Sequence[object] | NDArray[np.generic]]

GEO_ALPHA = 2.0  # SimIE paper, Geo = exp(alpha (Loc - 1)) Rel Gen


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over records and seeds.

    Attributes:
        mean: the mean over seeds of the means over records.
        se: its standard error; nan where n = 1.
        n: how many different records there are.
        low, high: the 95 % interval (:mod:`raysweep.intervals`); nan where there is none.
    """

    mean: float
    se: float
    n: int
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


def mean(values: Collection[float]) -> float:
    """Return the mean, rounded once, so that it does not depend on the order of *values*."""
    return math.fsum(values) / len(values)


def matrix(by_seed: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Return the values of ``{record_id: value}`` per seed as an array (records, seeds), NaN where a seed lacks a record."""
    records = {r: i for i, r in enumerate(sorted({r for values in by_seed for r in values}))}
    out = np.full((len(records), len(by_seed)), math.nan)
    for j, values in enumerate(by_seed):
        for record, value in values.items():
            out[records[record], j] = value
    return out


def estimate(interval: Interval, n: int) -> Estimate:
    """Return *interval*, of one mean over *n* records, as plain numbers."""
    se = float(interval.se) if n > 1 else math.nan
    return Estimate(float(interval.mean), se, n, float(interval.low), float(interval.high))


def per_record(columns: Columns, mask: NDArray[np.bool_], view: str) -> dict[str, float]:
    """Return the mean over a record's probes of *view*, for each record in *mask* (missing values left out).

    It is not finite where a value is not.
    """
    kind, metric = VIEWS[view]
    kinds = np.asarray(columns["probe_kind"], dtype=object)
    metrics = np.asarray(columns["metric"], dtype=object)
    missing = np.array([v is None for v in columns["value"]], dtype=bool)
    values = np.array([math.nan if v is None else float(v) for v in columns["value"]], dtype=np.float64)  # type: ignore[arg-type]
    keep = mask & (kinds == kind) & (metrics == metric) & ~missing
    records = np.asarray(columns["record_id"], dtype=object)[keep]
    sums: dict[str, list[float]] = {}
    for record, value in zip(records, values[keep], strict=True):
        sums.setdefault(str(record), []).append(float(value))
    return {record: mean(sums[record]) for record in sorted(sums)}


def phase_masks(columns: Columns, step: int, batch_size: int) -> dict[str, NDArray[np.bool_]]:
    """Return the row masks of ``retained``, ``immediate`` and (at step 0) ``pristine`` for the round at *step*."""
    steps = np.asarray(columns["step"], dtype=np.int64)
    edits = np.asarray(columns["edit_step"], dtype=np.int64)
    # No later record overwrites it = never gone; NaN comes from Arrow's nulls.
    gone = np.array(
        [2**62 if s is None or s != s else int(str(s).partition(".")[0]) for s in columns["superseded_step"]],
        dtype=np.int64,
    )
    if step == 0:
        return {"pristine": steps == 0}
    return {
        "retained": (steps == step) & (edits <= step) & (gone > step),
        # A batch is measured when it is written, so step − edit_step is below the batch size only then.
        "immediate": (steps <= step) & (steps >= edits) & (steps - edits < batch_size),
    }


def record_values(columns: Columns, step: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Return ``{"retained/rel": {record_id: value}, …}`` at the round at *step*; empty and undefined views are left out.

    ``avg`` is the mean of rel, gen and loc of the records that have all three.
    """
    values_by_view: dict[str, dict[str, float]] = {}
    for phase, mask in phase_masks(columns, step, batch_size).items():
        for view in VIEWS:
            values = per_record(columns, mask, view)
            if values and all(map(math.isfinite, values.values())):
                values_by_view[f"{phase}/{view}"] = values
        # Record by record, so that avg has an interval of its own: its parts share their records.
        average = averages(*(values_by_view.get(f"{phase}/{view}", {}) for view in ("rel", "gen", "loc")))
        if average:
            values_by_view[f"{phase}/avg"] = average
    return values_by_view


def averages(rel: Mapping[str, float], gen: Mapping[str, float], loc: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of the three values of each record that has all of them."""
    return {r: sum(part[r] for part in (rel, gen, loc)) / 3 for r in rel if r in gen and r in loc}


def geo(rel: float, gen: float, loc: float) -> float:
    """Return ``exp(2 (Loc - 1)) Rel Gen`` (SimIE paper, Table 5)."""
    return math.exp(GEO_ALPHA * (loc - 1.0)) * rel * gen


def summary(columns: Columns, step: int, batch_size: int, *, phases: Collection[str] = PHASES) -> dict[str, float]:
    """Return ``{"retained/rel": mean, …}`` at one round, with ``geo``, and median and exp-mean-nll beside a mean PPL.

    Args:
        columns: the trial's probe rows, column by column.
        step: of the round.
        batch_size: records per call of the editor.
        phases: those that the trial's study has (``raysweep.studies.phases``).
    """
    values = record_values(columns, step, batch_size)
    values = {name: v for name, v in values.items() if name.partition("/")[0] in {*phases, "pristine"}}
    out = {name: mean(v.values()) for name, v in values.items()}
    for phase in ("retained", "immediate", "pristine"):
        if all(f"{phase}/{v}" in out for v in ("rel", "gen", "loc")):
            out[f"{phase}/geo"] = geo(*(out[f"{phase}/{v}"] for v in ("rel", "gen", "loc")))
        if f"{phase}/ppl" in values:
            ppl = np.array(list(values[f"{phase}/ppl"].values()))
            out[f"{phase}/ppl_median"] = float(np.median(ppl))
            # exp(mean log ppl): the perplexity of the mean loss, which one bad record does not rule.
            out[f"{phase}/ppl_expmean"] = math.exp(mean(np.log(ppl).tolist()))
    return dict(sorted(out.items()))


BySeed = Sequence[Mapping[str, float]] | NDArray[np.float64]
"""Values of a view: ``{record_id: value}`` for each seed, or an array (records, seeds), NaN where a seed lacks a record."""


def _as_matrix(by_seed: BySeed) -> NDArray[np.float64]:
    return by_seed if isinstance(by_seed, np.ndarray) else matrix(by_seed)


def _finite(by_seed: BySeed) -> bool:
    """Tell whether every value is a finite number; in an array, NaN is none."""
    if isinstance(by_seed, np.ndarray):
        return not np.isinf(by_seed).any()
    return all(math.isfinite(v) for by_record in by_seed for v in by_record.values())


def pooled(by_seed: BySeed, view: str = "rel", *, difference: bool = False) -> Estimate:
    """Pool one *view* over seeds; *by_seed* holds its values, or paired differences of them.

    All is NaN where a value is not finite.
    A mean of perplexities has no interval: few of them make up most of it, so nothing that holds can be said from a sample.
    :func:`pooled_median` and :func:`pooled_expmean` have one.
    """
    values = _as_matrix(by_seed)
    if not _finite(by_seed):
        return Estimate(math.nan, math.nan, len(values))
    if view == "ppl":
        parts = intervals.variance_components(values)
        none = np.asarray(math.nan)
        return estimate(Interval(parts.mean, np.sqrt(parts.variance), none, none), len(values))
    # Log-probabilities are at most 0, differences of them anything.
    if view == "rel_logprob":
        interval = intervals.unbounded(values) if difference else intervals.unbounded(values, upper=0.0)
    else:
        interval = intervals.difference(values) if difference else intervals.share(values)
    return estimate(interval, len(values))


def pooled_median(by_seed: BySeed) -> Estimate:
    """Return the mean over seeds of the medians over records; it has no standard error."""
    values = _as_matrix(by_seed)
    return estimate(intervals.median(values), len(values))


def pooled_expmean(by_seed: BySeed) -> Estimate:
    """Return the exponential of the mean logarithm, over seeds and records: of a perplexity, that of the mean loss."""
    values = _as_matrix(by_seed)
    return estimate(intervals.log_mean(values), len(values))


def pooled_geo(shares: Sequence[NDArray[np.float64]]) -> Estimate:
    """Return the mean over seeds of Geo, which is a function of a seed's means; *shares* are those of Rel, Gen and Loc.

    Each is an array (records, seeds), NaN where a seed lacks a record; all have the same records, of which some may be NaN.
    """
    return estimate(intervals.of_shares(geo, shares), len(shares[0]))
