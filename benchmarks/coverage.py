"""How often raysweep's 95 % intervals hold the true mean, simulated; beside what ±1.96 standard errors would hold.

    python -m benchmarks.coverage                     # the table of docs/results.md; some minutes
    python -m benchmarks.coverage --scale 0.1         # a tenth of the repetitions

Populations (each repetition draws its own true mean p, uniform between 0.05 and 0.95):

* A **0/1 value** is 1 where a uniform number is below its seed's mean. Uniform numbers of one record are alike under all seeds by
  the *consistency*: 0.2, 0.5 or 0.8 of their variance (on the normal scale) is the record's.
* A **share of tokens** is the mean of 1 to 5 such values of one record (30, 25, 20, 15, 10 % of the records).
* A **probability** is Beta distributed over records, with variance 0.3 p (1 - p): a mean of many such values.
* **Seeds**: a seed's mean is Beta distributed around p with the given standard deviation; 0 = seeds do not matter.
* A **difference** is between two arms on the same records: consistency between arms 0.2 or 0.8, the second arm's p equal to the
  first one's, or moved on the normal scale by a normal number with standard deviation 0.8. Seeds of the arms are independent.
* A **log-probability** is minus a Gamma number (shape 2: skewed); a **perplexity** is the exponential of a normal number
  (standard deviation 1).

Each row of the table averages over the cells of its population (consistency × standard deviation of seeds × gaps …), each with as
many repetitions as *repetitions* says; *lowest* and *highest* are over cells.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from raysweep import intervals
from raysweep.intervals import Interval
from raysweep.summarize import geo

Array = NDArray[np.float64]
Generator = np.random.Generator
Sample = tuple[Array, Array]  # values (repetitions, records, seeds); the true means (repetitions,)
TOKENS = (0.30, 0.25, 0.20, 0.15, 0.10)
CONSISTENCIES = (0.2, 0.5, 0.8)
COLUMNS = ("values", "records", "seeds", "seeds' sd", "coverage", "lowest", "highest", "±1.96 se", "width")


def true_means(rng: Generator, repetitions: int, low: float = 0.05, high: float = 0.95) -> Array:
    """Return *repetitions* true means, uniform between *low* and *high*."""
    return rng.uniform(low, high, repetitions)


def seed_means(rng: Generator, p: Array, seeds: int, sd: float) -> Array:
    """Return the mean of each seed, shape (repetitions, seeds): Beta distributed with mean *p* and standard deviation *sd*."""
    if sd == 0:
        return np.repeat(p[:, None], seeds, axis=1)
    size = p * (1 - p) / np.minimum(sd, 0.9 * np.sqrt(p * (1 - p))) ** 2 - 1
    return rng.beta((size * p)[:, None], (size * (1 - p))[:, None], (len(p), seeds))


def normal(rng: Generator, shape: tuple[int, ...], record: Array, consistency: float) -> Array:
    """Return normal numbers that share *consistency* of their variance with the *record*'s."""
    return np.sqrt(consistency) * record + np.sqrt(1 - consistency) * rng.standard_normal(shape)


def shares(
    rng: Generator, p: Array, records: int, seeds: int, *, sd: float = 0.0, consistency: float = 0.5,
    tokens: bool = False, record: Array | None = None,
) -> Array:  # fmt: skip
    """Return 0/1 values or shares of tokens, shape (repetitions, records, seeds); *record* is their records' normal number."""
    below = ndtri(seed_means(rng, p, seeds, sd))[:, None, :]
    shape = (len(p), records, seeds)
    if record is None:
        record = rng.standard_normal((len(p), records, 1))
    if not tokens:
        return (normal(rng, shape, record, consistency) < below).astype(np.float64)
    answer = normal(rng, shape, record, consistency)  # tokens of one answer are more alike than answers
    count = rng.choice(np.arange(1, 6), p=TOKENS, size=(len(p), records, 1))
    right = sum((normal(rng, shape, answer, 0.5) < below) * (i < count) for i in range(5))
    return np.asarray(right / count)


def with_gaps(rng: Generator, values: Array, how: str) -> Array:
    """Return *values* with NaN where a seed has no value: ``superseded`` (a tenth at random), ``prefix`` (each seed its half)."""
    if how == "superseded":
        return np.where(rng.random(values.shape) < 0.1, np.nan, values)
    if how == "prefix":
        return np.where(rng.random(values.shape).argsort(axis=1) < values.shape[1] / 2, values, np.nan)
    return values


def difference_of_shares(
    rng: Generator, p: Array, records: int, seeds: int, *, sd: float, alike: float, moved: bool, tokens: bool
) -> Sample:
    """Return the paired differences of two arms on the same records, and their true means."""
    other = ndtr(ndtri(p) + 0.8 * rng.standard_normal(len(p))) if moved else p
    record = rng.standard_normal((len(p), records, 1))
    arms = [shares(rng, q, records, seeds, sd=sd, consistency=alike, tokens=tokens, record=record) for q in (p, other)]
    return arms[1] - arms[0], other - p


def wald(values: Array) -> tuple[Array, Array]:
    """Return mean ± 1.96 standard errors as raysweep printed it before: the spreads of records and of seeds added."""
    records, seeds = values.shape[-2:]
    there = ~np.isnan(values)
    of_record = np.nansum(values, -1) / np.where(there.any(-1), there.sum(-1), np.nan)
    of_seed = np.nanmean(values, -2)
    variance = np.nanvar(of_record, -1, ddof=1) / records
    if seeds > 1:
        variance += np.var(of_seed, -1, ddof=1) / seeds
    half = 1.96 * np.sqrt(variance)
    return of_seed.mean(-1) - half, of_seed.mean(-1) + half


def holds(low: Array, high: Array, truth: Array) -> float:
    """Return the share of intervals that hold *truth*; one that does not exist holds nothing."""
    return float(((low <= truth) & (truth <= high)).mean())


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one population at one size: how often each interval held the truth, and how wide ours were."""

    coverage: float
    wald: float
    width: float


def cell(sample: Sample, interval: Callable[[Array], Interval]) -> Cell:
    """Return what came of *sample*."""
    values, truth = sample
    limits = interval(values)
    return Cell(
        holds(limits.low, limits.high, truth), holds(*wald(values), truth), float(np.nanmean(limits.high - limits.low))
    )


def share_cells(
    rng: Generator, repetitions: int, records: int, seeds: int, sds: Sequence[float], *, tokens: bool = False, gaps: str = ""
) -> Iterator[Cell]:  # fmt: skip
    """Yield the cells of 0/1 values, or of shares of tokens."""
    for sd, consistency in itertools.product(sds, CONSISTENCIES if seeds > 1 else (0.5,)):
        p = true_means(rng, repetitions)
        values = shares(rng, p, records, seeds, sd=sd, consistency=consistency, tokens=tokens)
        yield cell((with_gaps(rng, values, gaps), p), intervals.share)


def probability_cells(rng: Generator, repetitions: int, records: int) -> Iterator[Cell]:
    """Yield the cell of probabilities under one seed."""
    p = true_means(rng, repetitions)
    size = 1 / 0.3 - 1
    values = rng.beta((size * p)[:, None], (size * (1 - p))[:, None], (repetitions, records))
    yield cell((values[:, :, None], p), intervals.share)


def difference_cells(
    rng: Generator, repetitions: int, records: int, seeds: int, sds: Sequence[float], *, tokens: bool = False, gaps: str = ""
) -> Iterator[Cell]:  # fmt: skip
    """Yield the cells of paired differences."""
    for sd, alike, moved in itertools.product(sds, (0.2, 0.8), (False, True)):
        p = true_means(rng, repetitions)
        values, truth = difference_of_shares(rng, p, records, seeds, sd=sd, alike=alike, moved=moved, tokens=tokens)
        yield cell((with_gaps(rng, values, gaps), truth), intervals.difference)


def logprob_cells(rng: Generator, repetitions: int, records: int, seeds: int) -> Iterator[Cell]:
    """Yield the cell of log-probabilities; a seed adds a normal number (standard deviation 0.2), a residual another (0.5)."""
    record = -rng.gamma(2.0, 1.0, (repetitions, records, 1))
    seed = 0.2 * rng.standard_normal((repetitions, 1, seeds)) if seeds > 1 else 0.0
    values = record + seed + 0.5 * rng.standard_normal((repetitions, records, seeds))
    yield cell((values, np.full(repetitions, -2.0)), lambda v: intervals.unbounded(v, upper=0.0))


def perplexity_cells(rng: Generator, repetitions: int, records: int, seeds: int, *, middle: bool) -> Iterator[Cell]:
    """Yield the cell of the median perplexity, or of the exponential of the mean log-perplexity; both are e² in truth."""
    values = np.exp(2.0 + rng.standard_normal((repetitions, records, 1)) + 0.3 * rng.standard_normal((repetitions, records, seeds))
                    + (0.2 * rng.standard_normal((repetitions, 1, seeds)) if seeds > 1 else 0.0))  # fmt: skip
    truth = np.full(repetitions, np.exp(2.0))
    result = cell((values, truth), one_by_one(intervals.median) if middle else intervals.log_mean)
    yield replace(result, wald=np.nan)  # the mean's standard error is of another quantity


def geo_cells(rng: Generator, repetitions: int, records: int, seeds: int, sds: Sequence[float]) -> Iterator[Cell]:
    """Yield the cells of Geo of three shares of tokens that lie together, or apart, in the same records."""
    for sd, alike in itertools.product(sds, (0.2, 0.8)):
        ps = [true_means(rng, repetitions, 0.3, 0.99) for _ in range(3)]
        record = rng.standard_normal((repetitions, records, 1))
        parts = [shares(rng, p, records, seeds, sd=sd, consistency=alike, tokens=True, record=record) for p in ps]
        results = [intervals.of_shares(geo, [part[i] for part in parts]) for i in range(repetitions)]
        truth = np.array([geo(*(float(p[i]) for p in ps)) for i in range(repetitions)])
        low, mean, se, high = (
            np.array([float(getattr(r, name)) for r in results]) for name in ("low", "mean", "se", "high")
        )
        yield Cell(
            holds(low, high, truth), holds(mean - 1.96 * se, mean + 1.96 * se, truth), float(np.mean(high - low))
        )


def one_by_one(function: Callable[[Array], Interval]) -> Callable[[Array], Interval]:
    """Return *function*, which takes values (records, seeds), for values (repetitions, records, seeds)."""

    def whole(values: Array) -> Interval:
        results = [function(v) for v in values]
        return Interval(*(np.array([float(r[k]) for r in results]) for k in range(4)))

    return whole


MATTER = (0.05, 0.1)
SIZES = ((5, 1), (20, 1), (200, 1), (200, 3), (200, 10))
ROWS: tuple[tuple[str, int, int, tuple[float, ...], str], ...] = (
    # values, records, seeds, standard deviations of seeds, gaps
    *(("0/1", n, 1, (0.0,), "") for n in (5, 10, 20, 200)),
    *(("tokens", n, 1, (0.0,), "") for n in (5, 10, 20, 200)),
    *(("probabilities", n, 1, (0.0,), "") for n in (5, 20, 200)),
    *(("0/1", n, s, sds, "") for s in (2, 3, 10) for n in (5, 20, 200, 1000) for sds in ((0.0,), MATTER)),
    *(("tokens", n, s, (0.0, *MATTER), "") for s in (3, 10) for n in (20, 200)),
    *(("0/1", n, s, (0.0, *MATTER), gaps) for gaps in ("superseded", "prefix") for n, s in ((20, 3), (200, 3), (200, 10))),
    *(("difference of 0/1", n, 1, (0.0,), "") for n in (5, 10, 20, 200)),
    *(("difference of tokens", n, 1, (0.0,), "") for n in (5, 10, 20, 200)),
    *(("difference of 0/1", n, s, sds, "") for s in (3, 10) for n in (20, 200, 1000) for sds in ((0.0,), MATTER)),
    ("difference of tokens", 200, 3, (0.0, *MATTER), "superseded"),
    *((v, n, s, (0.2 * (s > 1),), "") for v in ("log-probability", "PPL exp-mean", "PPL median") for n, s in SIZES),
    *(("Geo", n, s, (0.0, 0.05)[: 1 + (s > 1)], "") for n, s in SIZES),
)  # fmt: skip


def cells(
    rng: Generator, values: str, records: int, seeds: int, sds: Sequence[float], gaps: str = "", *, repetitions: int
) -> list[Cell]:
    """Return the cells of one row of the table.

    Raises:
        ValueError: no population is called *values*.
    """
    tokens = values.endswith("tokens")
    if values in ("0/1", "tokens"):
        return list(share_cells(rng, repetitions, records, seeds, sds, tokens=tokens, gaps=gaps))
    if values.startswith("difference"):
        return list(difference_cells(rng, repetitions, records, seeds, sds, tokens=tokens, gaps=gaps))
    if values == "probabilities":
        return list(probability_cells(rng, repetitions, records))
    if values == "log-probability":
        return list(logprob_cells(rng, repetitions, records, seeds))
    if values.startswith("PPL"):
        return list(perplexity_cells(rng, repetitions, records, seeds, middle=values.endswith("median")))
    if values == "Geo":
        return list(geo_cells(rng, min(repetitions, 1000), records, seeds, sds))
    raise ValueError(f"no population is called {values!r}")


def table(scale: float = 1.0, rows: Sequence[tuple[str, int, int, tuple[float, ...], str]] = ROWS) -> Iterator[str]:
    """Yield the lines of the table, in Markdown; *scale* multiplies the number of repetitions."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for number, (values, records, seeds, sds, gaps) in enumerate(rows):
        repetitions = max(int(scale * min(20_000, 6_000_000 / (records * seeds))), 20)
        results = cells(np.random.default_rng(number), values, records, seeds, sds, gaps, repetitions=repetitions)
        held = [c.coverage for c in results]
        name = f"{values}, {gaps}" if gaps else values
        about = [name, records, seeds, ", ".join(f"{sd:g}" for sd in sds) if seeds > 1 else "–"]
        numbers = [
            np.mean(held),
            min(held),
            max(held),
            np.mean([c.wald for c in results]),
            np.mean([c.width for c in results]),
        ]
        yield f"| {' | '.join([*map(str, about), *('–' if np.isnan(x) else f'{x:.3f}' for x in numbers)])} |"


def by_mean(records: int, repetitions: int, rng: Generator) -> list[tuple[float, float]]:
    """Return ``(p, coverage)`` of 0/1 values under one seed at single true means: Wilson's interval jumps with p."""
    held = []
    for p in np.arange(0.05, 0.96, 0.05):
        truth = np.full(repetitions, p)
        values = shares(rng, truth, records, 1)
        held.append((float(p), cell((values, truth), intervals.share).coverage))
    return held


def main(argv: list[str] | None = None) -> list[str]:
    """Print the table, and how coverage varies with p where there are few records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of repetitions")
    asked = parser.parse_args(argv)
    lines = []
    for line in table(asked.scale):
        print(line, flush=True)
        lines.append(line)
    for records in (5, 10, 20, 200):
        held = by_mean(records, max(int(asked.scale * 20_000), 20), np.random.default_rng(records))
        (p, lowest), (q, highest) = min(held, key=lambda x: x[1]), max(held, key=lambda x: x[1])
        lines.append(
            f"0/1, {records} records, p = .05, .10 … .95: from {lowest:.3f} (p = {p:.2f}) to {highest:.3f} (p = {q:.2f})"
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
