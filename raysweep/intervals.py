"""95 % intervals for means over records and seeds, and for their paired differences. Pure numpy; scipy is loaded when called.

Every function takes values of shape (…, records, seeds), NaN where a seed has no value of a record, and works on each leading
index by itself. The model is a crossed random-effects one, because most records are the same under every seed:

    value_rs = mean + record_r + seed_s + residual_rs

The estimate is the mean over seeds of the means over records. :func:`variance_components` gives its variance; with no gaps it is
(MS_r + MS_s - MS_rs) / (R S) from the mean squares of a two-way analysis of variance. The square of an interval's half-length is
the sum of two: a t quantile for what differs between records, and one with S - 1 degrees of freedom for what differs between
seeds (as Cochran & Cox 1957, §4.14, weight two variances). One number of degrees of freedom for the sum (Satterthwaite 1946) is
too large whenever three seeds happen to agree, and covered .91 to .94 where this covers .93 to .96.

* :func:`share`: means of values in [0, 1]. Wilson's score interval (1927) with an effective number of records, as Korn & Graubard
  (1998) and Dean & Pagano (2015) do for surveys. For 0/1 values and one seed it is Wilson's own.
* :func:`difference`: means of paired differences in [-1, 1], with pseudo-records in the manner of Agresti & Min (2005) and
  Bonett & Price (2012).
* :func:`unbounded`: a t interval; :func:`log_mean` is the same on the scale of logarithms.
* :func:`median`: inverts the interval of the share of values below it (Woodruff 1952).
* :func:`of_shares`: a function of several shares, from the shares' own intervals (MOVER; Zou & Donner 2008).

With one seed an interval says what other records would give, not other seeds. One record gives none (NaN): there is nothing to
judge its spread by. ``benchmarks/coverage.py`` simulates how often each holds the true mean; docs/results.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UPPER_TAIL = 0.975
PRIOR_RECORDS = 0.1
"""Weight, in records, of the prior guess at a share's variance between records. Simulation chose it, as it did the next one."""
PSEUDO_RECORDS = 0.5
"""Weight, in records, of the two pseudo-records that widen a difference's interval."""
ALIKE_RECORDS = 4.0
"""Weight, in records, of the guess that shares rise and fall together; few records say little of how they do."""
QUANTILE_OF_P = 0.2
"""Of the residual's distribution: what is taken off the seeds' spread for a p. Simulation chose it (benchmarks/verdicts.py)."""
TINY = 1e-12


class Interval(NamedTuple):
    """A mean, its standard error and its 95 % interval; ``low`` and ``high`` are NaN where the values give none."""

    mean: Array
    se: Array
    low: Array
    high: Array


class Components(NamedTuple):
    """The parts of a grand mean's variance.

    Attributes:
        mean: the mean over seeds of the means over records.
        records: the part of records and of the residual; MS_r / (R S) if no value is missing.
        seeds: the sample variance of the seeds' means over their number; MS_s / (R S). 0 if there is one seed.
        residual: what ``seeds`` would be on average if seeds had no effect; MS_rs / (R S).
        n_records: how many records the mean rests on: the number of records where each has the same weight.
        n_values: likewise, if no two values of a record were alike.
        df_records: the degrees of freedom of ``records``.
        n_seeds: how many seeds have values.
        enough: there are two records or more.
    """

    mean: Array
    records: Array
    seeds: Array
    residual: Array
    n_records: Array
    n_values: Array
    df_records: Array
    n_seeds: Array
    enough: NDArray[np.bool_]

    @property
    def variance(self) -> Array:
        """The variance of the mean; never below the part of records."""
        return self.records + np.maximum(self.seeds - self.residual, 0.0)


def variance_components(values: Array) -> Components:
    """Return the parts of the variance of the mean of *values*, shape (…, records, seeds).

    With gaps, the variance within seeds and the variance left within records once seeds are centred give the variances of
    records and of the residual; expectations use the weights that the mean gives to each value.
    """
    defined = ~np.isnan(values)
    # Arrays are [..., R, S]: R records, S seeds, NaN where a record is not under a seed; sums run over the rest.
    filled = np.where(defined, values, 0.0)
    # n_s [..., S] records of a seed, n_r [..., R] seeds of a record.
    in_seed, in_record = defined.sum(-2), defined.sum(-1)
    n_seeds, n_records, n_values = (in_seed > 0).sum(-1), (in_record > 0).sum(-1), defined.sum((-2, -1))
    # mean = (1/S) Σ_s x̄_s: every seed counts alike, however many records it has.
    seed_means = filled.sum(-2) / np.maximum(in_seed, 1)
    mean = seed_means.sum(-1) / n_seeds

    # w_rs = 1 / (n_s S), so mean = Σ_rs w_rs x_rs. With x_rs = μ + a_r + b_s + e_rs,
    # Var(mean) = σ_a² Σ_r (Σ_s w_rs)² + σ_b² / S + σ_e² Σ_rs w_rs².
    weights = defined / np.maximum(in_seed, 1)[..., None, :] / n_seeds[..., None, None]
    same = (weights.sum(-1) ** 2).sum(-1)  # multiplies the variance of records in that of the mean
    apart = (weights**2).sum((-2, -1))  # multiplies the variance of the residual

    # Centred within its seed, a value no longer holds b_s; what is left varies by a_r + e_rs.
    centred = np.where(defined, filled - seed_means[..., None, :], 0.0)
    total = (centred**2).sum((-2, -1)) / np.maximum(n_values - n_seeds, 1)  # of records and residual together
    # What is left within a record, once its own mean is taken off, is e_rs alone.
    record_means = centred.sum(-1) / np.maximum(in_record, 1)
    within = (np.where(defined, centred - record_means[..., None], 0.0) ** 2).sum((-2, -1))
    df_within = (n_values - n_records) * (1.0 - n_seeds / n_values)
    # Where no record is under two seeds the two cannot be told apart, and need not be: their multipliers are then equal.
    residual = np.where(df_within > 0, within / np.where(df_within > 0, df_within, 1.0), total / 2)
    residual = np.clip(residual, 0.0, total)
    # σ_a² = (σ_a² + σ_e²) − σ_e², both estimated; the clip above keeps it from being negative.
    of_records = total - residual

    seed_square = np.where(in_seed > 0, (seed_means - mean[..., None]) ** 2, 0.0).sum(-1)
    others = np.maximum(n_seeds - 1, 1)
    return Components(
        mean=mean,
        records=same * of_records + apart * residual,
        seeds=seed_square / others / n_seeds,
        # seeds that saw different records differ by that, too: n_seeds apart - same is 0 if they saw the same ones
        residual=np.where(n_seeds > 1, apart * residual + (n_seeds * apart - same) / others * of_records, 0.0),
        n_records=1.0 / same,
        n_values=1.0 / apart,
        df_records=np.maximum(np.minimum(1.0 / same - 1.0, n_values - n_seeds), 1.0),
        n_seeds=n_seeds.astype(np.float64),
        enough=n_records > 1,
    )


def share(values: Array) -> Interval:
    """Return the interval of a mean of *values* in [0, 1], shape (…, records, seeds).

    The variance between records is pulled a little towards that of 0/1 values with the same mean: by a tenth of a record, against
    as many records as say something of it (few, where the mean is near 0 or 1). The mean of 0/1 values says all there is to know
    of their variance, so the degrees of freedom rise without limit as the values come near to that. If all are 0, or all 1, each
    record counts as one 0/1 value.
    """
    c = variance_components(values)
    # p (1 − p), from the mean alone; it is short of the variance of one value by the variance of the mean.
    outcome = np.maximum(c.mean * (1.0 - c.mean), 0.0)
    spread = outcome + c.variance  # estimates p (1 - p) without bias: the variance of one 0/1 value
    informed = (c.n_records - 1.0) * np.minimum(4.0 * spread, 1.0)
    prior = spread * (1.0 / c.n_records + 1.0 / c.n_values) / 2.0
    records = (PRIOR_RECORDS * prior + informed * c.records) / (PRIOR_RECORDS + informed)
    binary = np.minimum(records * c.n_records / np.maximum(spread, TINY), 1.0)
    df = (c.df_records + PRIOR_RECORDS) / np.maximum(1.0 - binary, TINY) ** 2
    variance = records + np.maximum(c.seeds - c.residual, 0.0)
    # t² over the effective number of 0/1 values, 1 + p (1 - p) / variance
    ratio = _half_square(c, records, df) / np.maximum(outcome + variance, TINY)
    ratio = np.where(outcome > TINY, ratio, _t(np.inf) ** 2 / c.n_records)
    # Wilson: the p with (p̂ − p)² = ratio · p (1 − p), a quadratic equation; its roots are middle ± half.
    middle = (c.mean + ratio / 2.0) / (1.0 + ratio)
    half = np.sqrt(ratio * (outcome + ratio / 4.0)) / (1.0 + ratio)
    low = np.where(outcome > TINY, np.maximum(middle - half, 0.0), np.minimum(middle - half, c.mean))
    high = np.where(outcome > TINY, np.minimum(middle + half, 1.0), np.maximum(middle + half, c.mean))
    return _interval(c, np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))


def difference(values: Array) -> Interval:
    """Return the interval of a mean of paired differences in [-1, 1], shape (…, records, seeds).

    Two pseudo-records, a quarter of a record each, lie on both sides of the mean, as far away as a record that differs from the
    others does (from the median; where none does, as the values are from 0; where they are 0, by 1). So differences that are all
    equal have an interval, too. Of differences that are -1, 0 or 1 the variance is known better, as in :func:`share`.
    """
    c, records, df = _of_difference(values)
    half = np.sqrt(_half_square(c, records, df))
    return _interval(c, np.maximum(c.mean - half, -1.0), np.minimum(c.mean + half, 1.0))


def p_of_difference(values: Array) -> Array:
    """Return the two-sided p of the hypothesis that the mean of paired differences, shape (…, records, seeds), is 0.

    It is the largest α at which the interval of level 1 - α, made as :func:`difference` makes that of 95 %, holds 0; but less is
    taken off the seeds' spread for the residual: few seeds seem alike by chance more often than a small α allows. So p ≤ .05 means
    that the printed interval leaves 0 out; of one seed the converse holds, too. NaN where there is no interval.
    """
    from scipy.special import stdtrit

    c, records, df = _of_difference(values)
    others, seeds = _seeds_beyond_residual(c, QUANTILE_OF_P)
    low, high = np.full(np.shape(c.mean), -700.0), np.full(np.shape(c.mean), np.log(0.5))
    for _ in range(60):
        tail = np.exp((low + high) / 2.0)  # bisected on logarithms: a small p needs as many digits as a large one
        square = stdtrit(np.minimum(df, 1e9), tail) ** 2 * records + stdtrit(others, tail) ** 2 * seeds
        holds = square >= c.mean**2
        # An interval that holds 0 can be made narrower: α rises.
        low, high = np.where(holds, (low + high) / 2.0, low), np.where(holds, high, (low + high) / 2.0)
    return np.where(c.enough, np.minimum(2.0 * np.exp(high), 1.0), np.nan)


def _of_difference(values: Array) -> tuple[Components, Array, Array]:
    """Return the components of paired differences, with the variance of records and its degrees of freedom as widened."""
    c = variance_components(values)
    of_record = _mean_or_nan(values)
    step = _typical(of_record - _median(of_record)[..., None], otherwise=_typical(of_record, otherwise=1.0))
    others = c.n_records - 1.0
    records = (others * c.records + PSEUDO_RECORDS * step**2 / c.n_records) / (others + PSEUDO_RECORDS)
    return c, records, (c.df_records + PSEUDO_RECORDS) / np.maximum(1.0 - step, TINY)


def unbounded(values: Array, *, upper: float = np.inf) -> Interval:
    """Return the t interval of a mean of *values*, shape (…, records, seeds); none where all are equal.

    ``upper`` is the highest value that the mean can have.
    """
    c = variance_components(values)
    half = np.sqrt(_half_square(c, c.records, c.df_records))
    half = np.where(half > TINY * np.maximum(np.abs(c.mean), 1.0), half, np.nan)
    return _interval(c, c.mean - half, np.minimum(c.mean + half, upper))


def log_mean(values: Array) -> Interval:
    """Return the interval of the geometric mean of positive *values*: the exponential of the t interval of their logarithms."""
    logs = unbounded(np.log(values))
    mean = np.exp(logs.mean)
    return Interval(mean, mean * logs.se, np.exp(logs.low), np.exp(logs.high))


def median(values: Array) -> Interval:
    """Return the mean over seeds of the medians of *values*, shape (records, seeds), with an interval; its ``se`` is NaN.

    The interval holds the values of which the share below cannot be told from a half, whatever their distribution. It is none
    where that holds of every value: of fewer than five, or where seeds are few and differ.
    """
    c = variance_components(values)
    known = ~np.isnan(values)
    weights = (known / np.maximum(known.sum(-2), 1) / c.n_seeds)[known]
    order = np.argsort(values[known], kind="stable")
    ranked, rank = values[known][order], np.cumsum(weights[order])
    last = len(ranked) - 1

    def at(share: float, side: Literal["left", "right"]) -> Array:
        return np.asarray(ranked[min(int(np.searchsorted(rank, share, side=side)), last)])

    middle = (at(0.5 - TINY, "left") + at(0.5 + TINY, "right")) / 2.0
    below = variance_components(np.where(known, (values < middle) + 0.5 * (values == middle), np.nan))
    half = float(np.sqrt(_half_square(below, below.records, np.inf)))
    mean = _mean_or_nan(_median(values.T))
    nan = np.asarray(np.nan)
    if not c.enough or half >= 0.5 - TINY:
        return Interval(mean, nan, nan, nan)
    low, high = at(0.5 - half + TINY, "right"), at(0.5 + half - TINY, "left")
    return Interval(mean, nan, np.minimum(low, mean), np.maximum(high, mean))


def of_shares(function: Callable[..., float], shares: Sequence[Array]) -> Interval:
    """Return the mean over seeds of a *function* of the means of several *shares*, each of shape (records, seeds).

    The function rises with each share. By how much it falls when one share is at its lower limit is combined over shares with the
    correlations of their means, pulled towards 1 by the weight of four records (and 1 where a share has no variance); so for
    upper limits.
    """
    parts = [share(values) for values in shares]
    means = [float(part.mean) for part in parts]
    by_seed = [[float(m) for m in _mean_or_nan(values.T)] for values in shares]
    mean = np.mean([function(*of_seed) for of_seed in zip(*by_seed, strict=True)])
    sizes = [float(variance_components(values).variance) for values in shares]
    # Parts of one measure share records, so their means are correlated: Var(a + b) = Var a + Var b + 2 Cov.
    correlation, slope = np.ones((len(shares), len(shares))), np.zeros(len(shares))
    for i in range(len(shares)):
        # df/dp_i by central differences.
        slope[i] = (function(*_moved(means, i, means[i] + 1e-5)) - function(*_moved(means, i, means[i] - 1e-5))) / 2e-5
        for j in range(i):
            both = float(variance_components(shares[i] + shares[j]).variance)
            scale = 2.0 * np.sqrt(sizes[i] * sizes[j])
            covariance = both - sizes[i] - sizes[j]
            correlation[i, j] = correlation[j, i] = np.clip(covariance / scale, -1.0, 1.0) if scale > TINY else 1.0
    scaled = slope * np.sqrt(sizes)
    # Delta method: Var f ≈ gᵀ Σ g with g = ∂f/∂p.
    se = np.sqrt(np.maximum(scaled @ correlation @ scaled, 0.0))
    correlation += (1.0 - correlation) * min(ALIKE_RECORDS / float(variance_components(shares[0]).n_records), 1.0)
    base = function(*means)
    # MOVER (Zou & Donner): each part moved to its own limit, so that the limits of f inherit their asymmetry.
    down = np.array([base - function(*_moved(means, i, float(part.low))) for i, part in enumerate(parts)])
    up = np.array([function(*_moved(means, i, float(part.high))) - base for i, part in enumerate(parts)])
    lowest, highest = function(*[0.0] * len(shares)), function(*[1.0] * len(shares))
    return Interval(
        np.asarray(mean),
        se,
        np.maximum(mean - np.sqrt(np.maximum(down @ correlation @ down, 0.0)), lowest),
        np.minimum(mean + np.sqrt(np.maximum(up @ correlation @ up, 0.0)), highest),
    )


def _moved(means: list[float], index: int, value: float) -> list[float]:
    return [*means[:index], value, *means[index + 1 :]]


def _half_square(c: Components, records: Array, df: Array | float) -> Array:
    """Return the square of the half-length: t² × variance for records (*records*, *df*), and for seeds beyond the residual.

    What is taken off for the residual is the median of its distribution, not its mean: few seeds are below the mean of a skewed
    one so often that the interval would be too narrow when they do matter.
    """
    others, seeds = _seeds_beyond_residual(c)
    square: Array = _t(df) ** 2 * records + _t(others) ** 2 * seeds
    return square


def _seeds_beyond_residual(c: Components, quantile: float = 0.5) -> tuple[Array, Array]:
    """Return the degrees of freedom of seeds, and the part of the variance that is theirs; *quantile* of the residual is not."""
    # Imported here: scipy is slow to import, and most commands print no interval.
    from scipy.special import chdtri

    others = np.maximum(c.n_seeds - 1.0, 1.0)
    typical = chdtri(others, 1.0 - quantile) / others  # a chi-square variable's quantile over its mean
    return others, np.where(c.n_seeds > 1, np.maximum(c.seeds - typical * c.residual, 0.0), 0.0)


def _t(df: Array | float) -> Array:
    from scipy.special import stdtrit

    quantile: Array = stdtrit(np.minimum(df, 1e9), UPPER_TAIL)
    return quantile


def _interval(c: Components, low: Array, high: Array) -> Interval:
    return Interval(c.mean, np.sqrt(c.variance), np.where(c.enough, low, np.nan), np.where(c.enough, high, np.nan))


def _typical(distances: Array, *, otherwise: Array | float) -> Array:
    """Return sum(d²) / sum(|d|) over the last axis: the size of those that are not 0; *otherwise* where all are."""
    sizes = np.abs(np.nan_to_num(distances))
    total = sizes.sum(-1)
    apart = total > TINY
    return np.where(apart, (sizes**2).sum(-1) / np.where(apart, total, 1.0), otherwise)


def _mean_or_nan(values: Array) -> Array:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(-1)
    return np.where(count > 0, np.where(defined, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def _median(values: Array) -> Array:
    """Return the median over the last axis of what is not NaN; NaN where nothing is."""
    ranked = np.sort(values, axis=-1)  # NaN comes last
    count = (~np.isnan(values)).sum(-1, keepdims=True)
    low, high = (np.take_along_axis(ranked, np.maximum(i, 0), -1)[..., 0] for i in ((count - 1) // 2, count // 2))
    return (low + high) / 2.0
