"""Intervals: what they cover in simulation, and what they are where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from raysweep.intervals import difference, log_mean, median, of_shares, share, unbounded, variance_components
from raysweep.summarize import geo

MATTER = (0.05, 0.1)


@pytest.mark.parametrize(
    ("values", "records", "seeds", "sds", "gaps", "repetitions", "narrow"),
    [
        ("0/1", 5, 1, (0.0,), "", 8000, True),
        ("0/1", 20, 1, (0.0,), "", 8000, True),
        ("0/1", 200, 1, (0.0,), "", 4000, False),
        ("tokens", 5, 1, (0.0,), "", 6000, True),
        ("tokens", 20, 1, (0.0,), "", 6000, True),
        ("tokens", 200, 1, (0.0,), "", 2000, False),
        ("probabilities", 5, 1, (0.0,), "", 8000, True),
        ("0/1", 20, 3, (0.0, *MATTER), "", 2000, False),
        ("0/1", 1000, 3, MATTER, "", 250, True),
        ("0/1", 20, 10, (0.0, *MATTER), "", 1000, False),
        ("0/1", 1000, 10, MATTER, "", 160, False),
        ("tokens", 200, 3, MATTER, "superseded", 250, True),
        ("0/1", 200, 3, MATTER, "prefix", 400, True),
        ("difference of 0/1", 5, 1, (0.0,), "", 2000, True),
        ("difference of 0/1", 20, 1, (0.0,), "", 2000, False),
        ("difference of tokens", 5, 1, (0.0,), "", 2000, True),
        ("difference of tokens", 200, 1, (0.0,), "", 1000, False),
        ("difference of 0/1", 200, 3, MATTER, "", 300, True),
        ("log-probability", 20, 1, (0.0,), "", 4000, False),
        ("PPL exp-mean", 20, 1, (0.0,), "", 4000, False),
        ("PPL median", 20, 1, (0.0,), "", 1500, False),
        ("Geo", 20, 1, (0.0,), "", 300, False),
    ],
)
def test_95_percent_means_95_percent(
    values: str, records: int, seeds: int, sds: tuple[float, ...], gaps: str, repetitions: int, narrow: bool
) -> None:
    """Averaged over a population of true means, .93 to .97 of the intervals hold the truth; ±1.96 se does not where *narrow*."""
    rng = np.random.default_rng([records, seeds, len(values)])
    found = coverage.cells(rng, values, records, seeds, sds, gaps, repetitions=repetitions)
    assert 0.93 <= float(np.mean([c.coverage for c in found])) <= 0.97
    assert min(c.coverage for c in found) >= 0.90
    assert not narrow or np.mean([c.wald for c in found]) < 0.92


def test_the_coverage_of_few_records_jumps_but_not_far() -> None:
    """Wilson's interval is conservative at some p and not at others; nowhere between .05 and .95 is it below .91."""
    held = [c for n in (5, 20) for _, c in coverage.by_mean(n, 4000, np.random.default_rng(n))]
    assert min(held) >= 0.91
    assert max(held) <= 0.999


@pytest.mark.parametrize(("right", "records"), [(0, 5), (2, 5), (5, 5), (19, 20), (120, 200)])
def test_binary_values_of_one_seed_have_wilsons_interval(right: int, records: int) -> None:
    values = np.array([1.0] * right + [0.0] * (records - right))[:, None]
    wilson = stats.binomtest(right, records).proportion_ci(0.95, method="wilson")
    found = share(values)
    assert (float(found.low), float(found.high)) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    assert float(found.se) == pytest.approx(math.sqrt(right * (records - right) / records / records / (records - 1)))


def test_components_are_those_of_a_two_way_analysis_of_variance() -> None:
    values = np.random.default_rng(0).random((7, 4))
    rows, columns, grand = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    ms_r = 4 * ((rows - grand) ** 2).sum() / 6
    ms_s = 7 * ((columns - grand) ** 2).sum() / 3
    ms_rs = ((values - rows - columns + grand) ** 2).sum() / 18
    found = variance_components(values)
    assert float(found.records) == pytest.approx(ms_r / 28)
    assert float(found.seeds) == pytest.approx(ms_s / 28)
    assert float(found.residual) == pytest.approx(ms_rs / 28)
    assert (float(found.n_records), float(found.n_values)) == (pytest.approx(7), pytest.approx(28))


def test_one_seed_without_bounds_is_students_interval() -> None:
    values = np.random.default_rng(1).normal(-3, 2, 9)
    found = unbounded(values[:, None])
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (float(found.low), float(found.high)) == pytest.approx((wanted.low, wanted.high))
    assert float(unbounded(values[:, None], upper=-2.0).high) == -2.0
    logs = log_mean(np.exp(values)[:, None])
    assert [float(x) for x in (logs.mean, logs.low, logs.high)] == pytest.approx(
        np.exp([values.mean(), wanted.low, wanted.high])
    )


def test_seeds_alone_have_the_t_interval_of_their_means() -> None:
    """Where every record says the same, three seeds are three numbers."""
    of_seed = np.array([-1.0, 0.5, 2.0])
    found = unbounded(np.tile(of_seed, (50, 1)))
    wanted = stats.ttest_1samp(of_seed, 0.0).confidence_interval(0.95)
    assert (float(found.low), float(found.high)) == pytest.approx((wanted.low, wanted.high))
    several = share(np.tile([0.4, 0.5, 0.6], (1000, 1)))
    assert float(several.high - several.low) > 2 * 1.96 * 0.1 / math.sqrt(3)


def test_records_that_differ_between_seeds_are_more_records() -> None:
    """The same 0/1 values: 20 records under both seeds say less than 40 records under one seed each."""
    rng = np.random.default_rng(3)
    values = rng.permutation(np.repeat([0.0, 1.0], 10))
    same = variance_components(np.stack([values, values], axis=1))
    apart = np.full((40, 2), np.nan)
    apart[:20, 0] = apart[20:, 1] = values
    other = variance_components(apart)
    assert (float(same.n_records), float(other.n_records)) == (pytest.approx(20), pytest.approx(40))
    assert float(other.records) == pytest.approx(float(same.records) / 2, rel=1e-9)


@pytest.mark.parametrize("function", [share, difference])
@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(2, 1), (5, 1), (5, 3), (200, 1)])
def test_no_interval_has_zero_width_or_leaves_the_range(function: object, value: float, shape: tuple[int, int]) -> None:
    found = function(np.full(shape, value))  # type: ignore[operator]
    assert found.low < found.high
    assert float(found.low) <= value + 1e-12
    assert float(found.high) >= value - 1e-12
    assert found.low >= -1.0
    assert found.high <= 1.0


@pytest.mark.parametrize("function", [share, difference, unbounded, log_mean, median])
def test_one_record_has_no_interval(function: object) -> None:
    for values in (np.array([[0.5]]), np.array([[0.5, 0.75, 0.25]]), np.array([[0.5, 0.25], [np.nan, np.nan]])):
        found = function(values)  # type: ignore[operator]
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        wanted = np.exp(np.nanmean(np.log(values))) if function is log_mean else np.nanmean(values)
        assert float(found.mean) == pytest.approx(wanted)


def test_equal_values_without_bounds_have_no_interval() -> None:
    assert math.isnan(unbounded(np.full((5, 2), -0.1)).low)
    assert math.isnan(log_mean(np.full((5, 1), 3.0)).high)


def test_the_median_s_interval_is_that_of_order_statistics() -> None:
    values = np.random.default_rng(4).permutation(np.arange(1.0, 21.0))
    found = median(values[:, None])
    assert [float(x) for x in (found.low, found.mean, found.high)] == [6.0, 10.5, 15.0]  # P(6 <= B(20, ½) < 15) = .96
    assert [float(x) for x in median(np.arange(5.0)[:, None])[2:]] == [0.0, 4.0]
    assert math.isnan(median(np.arange(4.0)[:, None]).low)
    two = median(np.array([[1.0, 2.0], [3.0, 8.0], [5.0, 4.0]]))
    assert float(two.mean) == (3.0 + 4.0) / 2


def test_a_function_of_shares_is_exact_where_it_is_one_of_them() -> None:
    rng = np.random.default_rng(5)
    values, ones = rng.integers(0, 2, (30, 2)).astype(float), np.ones((30, 2))
    alone, found = share(values), of_shares(lambda a, b: a * b, [values, ones])
    assert float(found.mean) == pytest.approx(float(alone.mean))
    assert float(found.se) == pytest.approx(float(alone.se), rel=1e-6)
    assert float(found.high) == pytest.approx(float(alone.high))
    assert float(found.low) < float(alone.low), "the other share may be below 1, too"
    every = of_shares(geo, [np.ones((20, 1))] * 3)
    assert 0.2 < float(every.low) < 0.7
    assert float(every.high) == 1.0


@pytest.mark.parametrize("function", [share, difference, unbounded])
def test_many_at_once_is_each_alone_and_order_does_not_matter(function: object) -> None:
    rng = np.random.default_rng(6)
    values = rng.random((4, 9, 3))
    values[rng.random(values.shape) < 0.2] = np.nan
    together = function(values)  # type: ignore[operator]
    for i, one in enumerate(values):
        for alone in (one, one[::-1], one[:, [2, 0, 1]]):
            assert [float(x) for x in function(alone)] == pytest.approx([float(x[i]) for x in together])  # type: ignore[operator]


def test_few_seeds_that_differ_widen_the_interval() -> None:
    """1,000 records under three seeds: were all values taken as one sample, the interval would be 0.06 wide."""
    rng = np.random.default_rng(7)
    values = (rng.random((1000, 3)) < [0.6, 0.7, 0.8]).astype(float)
    found = share(values)
    assert 0.3 < float(found.high - found.low) < 0.6
