"""From probe rows to Rel, Gen, Loc, Avg, Geo with n and standard error. Pure numpy; used live and by every reader.

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

Columns = Mapping[str, Sequence[object] | NDArray[np.generic]]

# view name → (probe kind, metric)
VIEWS: dict[str, tuple[str, str]] = {
    "rel": ("efficacy", "token_match"),
    "gen": ("paraphrase", "token_match"),
    "loc": ("locality", "agreement"),
    "port": ("portability", "token_match"),
    "rel_exact": ("efficacy", "exact_match"),
    "gen_exact": ("paraphrase", "exact_match"),
    "rel_logprob": ("efficacy", "target_logprob"),
    "ppl": ("efficacy", "ppl"),
}
PHASES = ("retained", "immediate")  # of a round after an edit, in the order in which they are looked for
GEO_ALPHA = 2.0  # SimIE paper, Geo = exp(alpha (Loc - 1)) Rel Gen


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over records with its standard error (``nan`` where n = 1) and the number of records."""

    mean: float
    se: float
    n: int


def mean(values: Collection[float]) -> float:
    """Return the mean, rounded once, so that it does not depend on the order of *values*."""
    return math.fsum(values) / len(values)


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Return mean, standard error (ddof 1) and count of *values*.

    >>> estimate(np.array([0.0, 1.0]))
    Estimate(mean=0.5, se=0.5, n=2)
    """
    n = int(values.size)
    if n == 0:
        raise ValueError("no values to average")
    se = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(float(values.mean()), se, n)


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
    gone = np.array(
        [2**62 if s is None or s != s else int(str(s).partition(".")[0]) for s in columns["superseded_step"]],
        dtype=np.int64,
    )
    if step == 0:
        return {"pristine": steps == 0}
    return {
        "retained": (steps == step) & (edits <= step) & (gone > step),
        "immediate": (steps <= step) & (steps >= edits) & (steps - edits < batch_size),
    }


def record_values(columns: Columns, step: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Return ``{"retained/rel": {record_id: value}, …}`` at the round at *step*; empty and undefined views are left out.

    ``avg`` is the mean of rel, gen and loc of the records that have all three.
    """
    found: dict[str, dict[str, float]] = {}
    for phase, mask in phase_masks(columns, step, batch_size).items():
        for view in VIEWS:
            values = per_record(columns, mask, view)
            if values and all(map(math.isfinite, values.values())):
                found[f"{phase}/{view}"] = values
        average = averages(*(found.get(f"{phase}/{view}", {}) for view in ("rel", "gen", "loc")))
        if average:
            found[f"{phase}/avg"] = average
    return found


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
            out[f"{phase}/ppl_expmean"] = math.exp(mean(np.log(ppl).tolist()))
    return dict(sorted(out.items()))


def pooled(by_seed: Sequence[Mapping[str, float]]) -> Estimate:
    """Pool one view over seeds: *by_seed* holds ``{record_id: value}`` per seed.

    The mean is the mean over seeds of the means over records. The variance adds the spread between records (each averaged over
    its seeds) and the spread between seeds, which counts no source twice when the records are the same under every seed.
    """
    means = np.array([np.mean(list(v.values())) for v in by_seed], dtype=np.float64)
    records = sorted({r for v in by_seed for r in v})
    averaged = np.array([np.mean([v[r] for v in by_seed if r in v]) for r in records], dtype=np.float64)
    parts = [a.std(ddof=1) ** 2 / a.size for a in (averaged, means) if a.size > 1]
    return Estimate(float(means.mean()), math.sqrt(sum(parts)) if parts else math.nan, len(records))
