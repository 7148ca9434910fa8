"""Whether a paired difference is shown: its p value, Holm's correction over a family, and what would have shown it.

A family is what one table compares in one column. Differences have shape (records, seeds), NaN where a seed lacks a record.

* The p of a difference is that of its 95 % interval (:func:`raysweep.intervals.p_of_difference`), which knows of records and of
  seeds. Where the interval leaves 0 out and few records differ, the sign-flip test (Fisher 1935, §21) of the records' means has to
  agree: the larger of both p counts. It assumes nothing of the distribution but that a difference and its opposite are
  equally likely where there is no effect.
* :func:`holm` (Holm 1979) holds the share of families with any false verdict at 5 %, whatever the dependence between arms, all of
  which share their reference.
* :func:`bca_interval` is the bias-corrected and accelerated bootstrap over records (Efron 1987), for what has no other interval.

Simulated rates: ``benchmarks/verdicts.py``; docs/results.md has the table.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from raysweep import intervals
from raysweep.intervals import Array

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 1999
FEW = 200
"""Up to so many records that differ, their signs are flipped. Beyond, the sum of so many flipped signs is normal, and flips would
say again what the interval says."""
SEED = 20_250_711  # of resampling: a table is the same each time that it is printed


class Word(StrEnum):
    """What a difference shows at a family-wise level of 5 %."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one difference of a family shows.

    Attributes:
        word: better, worse, or neither shown.
        p: of this difference alone, two-sided.
        p_holm: corrected for all differences of the family; the word rests on it.
        detectable: the smallest true difference that this many records and seeds show in four of five samples, at the level that
            Holm's correction begins with.
        records: about how many records, under as many seeds, would show the difference that was seen in four of five samples;
            None where no number would, or where it is shown.
        seeds: about how many seeds would, on the same records; likewise.
    """

    word: Word
    p: float
    p_holm: float
    detectable: float
    records: int | None
    seeds: int | None

    def __str__(self) -> str:
        """Return it for a table: what was not shown, with what would show it."""
        if self.word is not Word.NOT_SHOWN:
            return str(self.word)
        # The smaller effort is the advice; a number in millions is none.
        if self.records is not None and self.records < 1_000_000:
            return f"{self.word} (n ≈ {self.records:,} would)"
        if self.seeds is not None and self.seeds <= 1000:
            return f"{self.word} ({self.seeds:,} seeds would)"
        return str(self.word)


def verdicts(differences: Sequence[Array], *, higher_is_better: bool = True) -> list[Verdict | None]:
    """Return the verdict on each of *differences*, which are one family; None where a difference has no interval."""
    found = [_p(values) for values in differences]
    corrected = iter(holm([p for p in found if not math.isnan(p)]))
    tests = sum(not math.isnan(p) for p in found)
    return [
        None if math.isnan(p) else _verdict(values, p, next(corrected), tests, higher_is_better=higher_is_better)
        for values, p in zip(differences, found, strict=True)
    ]


def _p(values: Array) -> float:
    p = float(intervals.p_of_difference(values))
    if not p <= ALPHA:
        return p  # not shown whatever the signs say; NaN where there is no interval
    flipped = sign_flip_p(record_means(values))
    # A sample of flips cannot tell p below one in all of them; there the interval's p stands.
    return p if flipped is None or flipped <= 0.5 / (RESAMPLES + 1) else max(p, flipped)


def _verdict(values: Array, p: float, p_holm: float, tests: int, *, higher_is_better: bool) -> Verdict:
    c = intervals.variance_components(values)
    mean = float(c.mean)
    word = Word.NOT_SHOWN if p_holm > ALPHA else Word.BETTER if (mean > 0) is higher_is_better else Word.WORSE
    of_records, of_seeds = float(c.records), max(float(c.seeds - c.residual), 0.0)
    # A sum of normal quantiles: one for the level, one for the power.
    reach = _normal(1.0 - ALPHA / tests / 2.0) + _normal(POWER)
    detectable = reach * math.sqrt(of_records + of_seeds)
    # Variances fall with the number of records and of seeds, each its own part: solve for the number that leaves (mean / reach)².
    allowed = (mean / reach) ** 2
    more = word is Word.NOT_SHOWN
    records = _needed(float(c.n_records), of_records, allowed - of_seeds) if more else None
    seeds = _needed(float(c.n_seeds), of_seeds, allowed - of_records) if more else None
    return Verdict(word, p, p_holm, detectable, records, seeds)


def _needed(count: float, variance: float, left: float) -> int | None:
    """Return how many there must be for their part of a *variance*, made with *count*, to be *left*; None: no number helps."""
    return math.ceil(count * variance / left) if left > intervals.TINY and variance > 0.0 else None


def holm(p: Sequence[float]) -> list[float]:
    """Return the p values corrected for each other by Holm's step-down method, in their order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        # Never below that of a smaller p: what is shown first may not be lost by what follows.
        least = max(least, min((len(p) - rank) * p[i], 1.0))
        corrected[i] = least
    return corrected


def record_means(values: Array) -> Array:
    """Return each record's mean over its seeds, shape (records,), of *values* (records, seeds), without records that have none."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    means: Array = np.where(known, values, 0.0).sum(-1)[count > 0] / count[count > 0]
    return means


def sign_flip_p(of_record: Array) -> float | None:
    """Return the two-sided mid-p (Lancaster 1961) of the sign-flip test of the mean of *of_record*, shape (records,).

    Differences of 0 have no sign and do not count. Exact where all flips are no more than ``RESAMPLES``, else by so many of them.
    Flips that give the mean that was seen count by half: of 0/1 values so many do that p would be too large by far.

    Returns:
        p, at least .5 / (``RESAMPLES`` + 1); None where more than ``FEW`` records differ.
    """
    # Imported here: scipy is slow to import, and most commands compare nothing.
    from scipy.stats import permutation_test

    differing = of_record[np.abs(of_record) > intervals.TINY]
    if len(differing) > FEW:
        return None
    if len(differing) < 2:
        return 1.0  # a single sign is as likely as its opposite
    result = permutation_test(
        (differing,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(SEED),
    )
    # scipy's p counts the sample itself among the flips, which keeps a sampled p above 0; so is it here.
    flips, seen = np.abs(result.null_distribution), abs(float(differing.mean()))
    exact = 2 ** len(differing) <= RESAMPLES
    beyond, equal = (flips > seen + intervals.TINY).sum(), (np.abs(flips - seen) <= intervals.TINY).sum()
    return float((beyond + (equal + (not exact)) / 2) / (len(flips) + (not exact)))


def bca_interval(
    samples: Sequence[Array], statistic: Callable[..., Array], *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % BCa interval of a *statistic* of *samples*, each of shape (records,), paired by record.

    Args:
        samples: what is resampled, by record.
        statistic: of the samples, vectorised over leading axes: it takes ``axis``.
        resamples: how many.

    Returns:
        The limits; NaN where every resample gives the same.
    """
    from scipy.stats import bootstrap

    if all(np.ptp(sample) <= intervals.TINY for sample in samples):
        return math.nan, math.nan  # one record, or all alike
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of a statistic that is the same in every resample: its limits are NaN, which says it
        found = bootstrap(
            tuple(samples), statistic, paired=True, vectorized=True, n_resamples=resamples,
            batch=max(1, 2_000_000 // len(samples[0])), rng=np.random.default_rng(SEED),
        ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def _mean(values: Array, axis: int) -> Array:
    mean: Array = np.mean(values, axis=axis)
    return mean


def _normal(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))
