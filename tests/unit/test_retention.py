"""Retention: what becomes of facts, by hand and beside reference values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raysweep.retention import NEVER, History, came_back, cohorts, collapse_step, held, lifetimes, survival

NAN = math.nan


def history() -> History:
    """Four facts, written at steps 1 to 4, asked at rounds 2, 4 and 8; the third was superseded at 6."""
    value = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [NAN, 1.0, NAN], [NAN, 0.0, 0.0]])
    superseded = np.array([NEVER, NEVER, 6, NEVER])
    return History(
        np.array(list("abcd")),
        np.array([1, 2, 3, 4]),
        superseded,
        np.array([2, 4, 8]),
        value,
        np.array([1.0, NAN, 1.0, 0.0]),
    )


def test_rows_become_a_history_in_the_order_of_edits() -> None:
    steps = np.array([0, 1, 2, 2, 4, 4, 4, 2, 4])
    edits = np.array([1, 1, 1, 2, 1, 2, 3, 3, 1])
    superseded = np.array([NEVER, NEVER, NEVER, 3, NEVER, 3, NEVER, NEVER, NEVER])
    values = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    records = np.array(["abc".index(letter) for letter in "bbbabaccb"])
    found = History.of_rows(records, list("abc"), steps, edits, superseded, values, rounds=[0, 2, 4], batch_size=1)
    assert (found.record.tolist(), found.edit_step.tolist()) == (["b", "a", "c"], [1, 2, 3])
    # the pristine row, the row before the third's edit and the row after the second was superseded do not count
    np.testing.assert_array_equal(found.value, [[1.0, 0.5], [1.0, NAN], [NAN, 1.0]])
    np.testing.assert_array_equal(found.immediate, [1.0, 1.0, NAN])
    np.testing.assert_array_equal(found.first, [1.0, 1.0, 1.0])


def test_cohorts_are_of_the_last_round() -> None:
    first, latest = cohorts(history(), 2)
    assert first.tolist() == [True, True, False, False]
    assert not latest.any(), "no fact was written at steps 7 and 8"
    assert cohorts(history(), 5)[1].tolist() == [False, False, False, True]


def test_the_area_is_over_a_facts_own_ages() -> None:
    # ages 0, 1, 3, 7 with values 1, 1, 1, 0: areas 1 + 2 + 2 of 7; ages 0, 2, 6 with 1, 0, 1: 1 + 2 of 6; age 0 and 1; age 0 and 4
    np.testing.assert_allclose(held(history()), [5 / 7, 3 / 6, 1.0, 0.0])


def test_a_fact_lives_until_it_is_first_seen_wrong() -> None:
    age, lost = lifetimes(history())
    assert age.tolist() == [7, 2, 1]
    assert lost.tolist() == [True, True, False], "the fourth was never right"
    assert came_back(history()) == (2, 1)


def test_survival_is_kaplan_and_meiers() -> None:
    """The remission times of 6-MP (Freireich et al. 1963), as every text book has them: S(6) = .857, S(10) = .753, S(23) = .448."""
    seen = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    found = survival(np.array(seen + censored), np.array([True] * 9 + [False] * 12))
    at = {int(a): (s, low, high) for a, s, low, high in zip(found.age, found.share, found.low, found.high, strict=True)}
    assert [round(at[a][0], 3) for a in (6, 7, 10, 13, 16, 22, 23)] == [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    # R: survfit(Surv(t, d) ~ 1, conf.type = "log-log"): .620 to .952 at 6, .188 to .680 at 23
    assert at[6][1:] == pytest.approx((0.620, 0.952), abs=0.001)
    assert at[23][1:] == pytest.approx((0.188, 0.680), abs=0.001)
    assert found.half_life() == (23.0, 13.0, math.inf)
    assert (found.n, found.lost) == (21, 9)


def test_nothing_lost_has_no_half_life_and_no_facts_have_no_curve() -> None:
    kept = survival(np.array([3, 5]), np.array([False, False]))
    assert kept.half_life() == (math.inf, math.inf, math.inf)
    assert survival(np.zeros(0, np.int64), np.zeros(0, bool)).n == 0


@pytest.mark.parametrize(
    ("means", "step"),
    [
        ([0.9, 0.8, 0.7], None),
        ([0.9, 0.4, 0.3], 20),
        ([0.2, 0.3, 0.1], 10),
        ([0.9, 0.3, 0.8], None),
        ([0.9, 0.7, NAN], 30),
    ],
)
def test_collapse_is_for_good(means: list[float], step: int | None) -> None:
    assert collapse_step([10, 20, 30], means, floor=0.5) == step
