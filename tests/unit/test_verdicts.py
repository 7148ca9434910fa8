"""Verdicts: p values beside their references, Holm's correction, and how often they are wrong over simulated sweeps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.verdicts import Population, rates
from raysweep.intervals import difference, p_of_difference
from raysweep.verdicts import Verdict, Word, bca_interval, holm, record_means, sign_flip_p, verdicts


def test_p_and_interval_say_the_same_of_one_seed() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([-1.0, 0.0, 0.0, 1.0], (400, 30, 1), p=[0.1, 0.3, 0.3, 0.3])
    found, p = difference(values), p_of_difference(values)
    assert ((p <= 0.05) == ((found.low > 0) | (found.high < 0))).all()
    assert 0.2 < (p <= 0.05).mean() < 0.9, "both answers occur"


def test_no_difference_is_shown_whose_interval_holds_zero() -> None:
    rng = np.random.default_rng(2)
    values = 0.1 * rng.standard_normal((400, 20, 3)) + 0.05 * rng.standard_normal((400, 1, 3)) + 0.08
    found, p = difference(values), p_of_difference(values)
    apart = (found.low > 0) | (found.high < 0)
    assert apart[p <= 0.05].all()
    assert (p <= 0.05).any()


def test_p_of_many_small_differences_is_that_of_a_t_test() -> None:
    values = 0.005 + 0.1 * np.random.default_rng(3).standard_normal((2000, 1))
    assert math.isclose(float(p_of_difference(values)), stats.ttest_1samp(values[:, 0], 0.0).pvalue, rel_tol=0.02)


def test_one_record_has_no_p_and_no_verdict() -> None:
    assert np.isnan(p_of_difference(np.array([[0.5, 0.4]])))
    assert verdicts([np.array([[0.5]]), np.array([[0.5], [0.4], [0.6], [0.5], [0.5]])])[0] is None


def test_holm_is_as_in_the_book() -> None:
    """The example of Holm's procedure: sorted p times how many are left, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_flipped_signs_are_counted_exactly_where_they_are_few() -> None:
    values = np.array([0.3, 0.1, -0.05, 0.2, 0.15, 0.0, 0.25])
    differing = values[values != 0.0]
    sums = [
        abs(sum(s * v for s, v in zip(signs, differing, strict=True))) for signs in itertools.product((1, -1), repeat=6)
    ]
    seen = abs(differing.sum())
    want = np.mean([1.0 if s > seen + 1e-9 else 0.5 if s > seen - 1e-9 else 0.0 for s in sums])
    assert sign_flip_p(values) == pytest.approx(want)
    assert sign_flip_p(np.array([0.0, 0.7, 0.0])) == 1.0
    assert sign_flip_p(np.ones(201)) is None


def test_sampled_flips_agree_with_the_binomial_distribution() -> None:
    """Of differences of one size the sum of flipped signs is binomial: 18 of 24 up, both tails."""
    values = np.array([1.0] * 18 + [-1.0] * 6)
    up = stats.binom(24, 0.5)
    want = 2 * (up.sf(18) + up.pmf(18) / 2)
    found = sign_flip_p(values)
    assert found is not None
    assert abs(found - want) < 4 * math.sqrt(want / 1999)


def test_few_records_that_differ_need_signs_that_agree() -> None:
    """Of five records that differ, all one way, one of 32 flips is as good: no interval makes that a verdict."""
    values = np.array([1.0] * 5 + [0.0] * 5)[:, None]
    assert float(difference(values).low) > 0
    (verdict,) = verdicts([values])
    assert verdict is not None
    assert verdict.p == pytest.approx(1 / 32)
    first, _ = verdicts([values, values])
    assert first is not None
    assert (first.word, first.p_holm) == (Word.NOT_SHOWN, pytest.approx(1 / 16))


def test_the_bootstrap_covers_a_skewed_mean_and_is_itself_again() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(120):
        low, high = bca_interval([rng.exponential(1.0, 40)], np.mean, resamples=499)
        held += low <= 1.0 <= high
    assert 0.87 <= held / 120 <= 0.99
    values = rng.exponential(1.0, 40)
    assert bca_interval([values], np.mean) == bca_interval([values], np.mean)
    assert all(map(math.isnan, bca_interval([np.ones(9)], np.mean)))


def test_means_over_seeds_leave_out_gaps() -> None:
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]])
    assert record_means(values).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("population", "least"),
    [
        (Population(1, 100, 1, 0.0, tokens=True), 0.02),
        (Population(4, 100, 1, 0.0, tokens=True), 0.015),
        (Population(4, 100, 3, 0.05), 0.01),
        (Population(4, 20, 1, 0.0), 0.0),
    ],
)
def test_where_there_is_no_difference_one_family_in_twenty_shows_one(population: Population, least: float) -> None:
    """At most, and three binomial standard errors; and not hardly ever, where values are not few and coarse."""
    sweeps = 400
    found = rates(np.random.default_rng(7), population, sweeps)
    assert least <= found.false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sweeps)


def test_what_is_called_detectable_is_detected_in_four_of_five() -> None:
    rng = np.random.default_rng(5)
    spread = rng.uniform(-0.5, 0.5, (200, 60, 1))
    (first,) = verdicts([spread[0]])
    assert first is not None
    found = [verdicts([values + first.detectable])[0] for values in spread]
    assert 0.72 <= np.mean([v is not None and v.word is Word.BETTER for v in found]) <= 0.88


def test_a_difference_that_is_not_shown_says_what_would_show_it() -> None:
    rng = np.random.default_rng(6)
    values = np.sign(rng.uniform(-0.45, 0.55, (60, 1)))
    (verdict,) = verdicts([values])
    assert verdict is not None
    assert verdict.word is Word.NOT_SHOWN
    assert verdict.records is not None
    assert str(verdict) == f"not shown (n ≈ {verdict.records:,} would)"
    more = [np.resize(rng.permutation(values[:, 0]), verdict.records)[:, None] for _ in range(3)]
    assert all(v is not None and v.word is not Word.NOT_SHOWN for (v,) in map(verdicts, ([m] for m in more)))


def test_where_seeds_differ_more_records_do_not_help() -> None:
    values = np.array([0.3, -0.1, 0.2])[None, :] + 0.01 * np.random.default_rng(8).standard_normal((50, 3))
    (verdict,) = verdicts([values])
    assert verdict is not None
    assert (verdict.word, verdict.records) == (Word.NOT_SHOWN, None)
    assert str(verdict) == f"not shown ({verdict.seeds} seeds would)"


def test_lower_may_be_better() -> None:
    values = -0.3 + 0.05 * np.random.default_rng(9).standard_normal((40, 1))
    found = [verdicts([values], higher_is_better=up)[0] for up in (True, False)]
    assert [isinstance(v, Verdict) and str(v) for v in found] == ["worse", "better"]
