"""What becomes of facts after they were written: cohorts, survival, half-life, the step of collapse. Pure numpy; scipy when called.

Shape legend: ``F`` facts of one trial, ``K`` rounds after its first edit. A fact's *age* at a round is the number of records that
were edited since it was written. A fact is *lost* at the first round at which it is not answered exactly, though it was right after
its edit; until then it may be superseded, or the trial may end, and then it is censored. Lost facts hardly ever come back
(:func:`came_back` counts them), which is what makes this a survival time. Between two rounds nobody looks, so an age of loss is the
age at the later one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
NEVER = 2**62  # a step beyond all


@dataclass(frozen=True, slots=True)
class History:
    """One trial's facts over its rounds.

    Attributes:
        record: the id of each fact's record, [F].
        edit_step: step at which each fact was written, [F].
        superseded_step: step at which a later one took its place, [F]; ``NEVER`` where none did.
        rounds: steps of the rounds, rising, [K].
        value: what was measured of each fact at each round, [F, K]; NaN before its edit, once it is superseded, or where it was
            not asked.
        immediate: what was measured right after its edit, [F]; NaN where nothing was.
    """

    record: NDArray[np.str_]
    edit_step: Ints
    superseded_step: Ints
    rounds: Ints
    value: Array
    immediate: Array

    @classmethod
    def of_rows(
        cls,
        record: Ints,
        names: Sequence[str],
        step: Ints,
        edit_step: Ints,
        superseded_step: Ints,
        value: Array,
        *,
        rounds: Sequence[int],
        batch_size: int,
    ) -> History:
        """Return the history in rows of one metric of one kind of probe, each of shape [n]; a fact's probes are averaged.

        Args:
            record: number of the record.
            names: the records' ids by number.
            step: records edited when it was measured.
            edit_step: step at which the record was written.
            superseded_step: ``NEVER`` where no later one took its place.
            value: what was measured.
            rounds: the protocol's rounds.
            batch_size: records that are written at once, and first measured after it.
        """
        numbers, first, fact = np.unique(record, return_index=True, return_inverse=True)
        written, gone = edit_step[first], superseded_step[first]
        columns = np.array(sorted({int(r) for r in rounds} - {0}), np.int64)
        asked = (step >= edit_step) & (step < superseded_step)
        fresh = asked & (step - edit_step < batch_size)
        at = np.searchsorted(columns, step)
        known = asked & (at < len(columns)) & (columns[np.minimum(at, len(columns) - 1)] == step)
        table = _means(fact[known] * len(columns) + at[known], value[known], len(first) * len(columns))
        history = cls(
            np.asarray(names, dtype=str)[numbers], written, gone, columns, table.reshape(len(first), len(columns)),
            _means(fact[fresh], value[fresh], len(first)),
        )  # fmt: skip
        return history._by_step()

    def _by_step(self) -> History:
        order = np.argsort(self.edit_step, kind="stable")
        return History(
            self.record[order],
            self.edit_step[order],
            self.superseded_step[order],
            self.rounds,
            self.value[order],
            self.immediate[order],
        )

    @property
    def first(self) -> Array:
        """What was first measured of each fact, [F]: right after its edit, or else at the first round that asked it."""
        asked = ~np.isnan(self.value)
        at = asked.argmax(1)
        seen = np.where(asked.any(1), self.value[np.arange(len(at)), at], np.nan)
        return np.where(np.isnan(self.immediate), seen, self.immediate)

    @property
    def last(self) -> Array:
        """What was measured at the last round, [F]; NaN of facts that were superseded or not asked."""
        return self.value[:, -1] if len(self.rounds) else np.full(len(self.edit_step), np.nan)


def _means(group: Ints, value: Array, count: int) -> Array:
    """Return the mean of the values of each of *count* groups; NaN where there is none."""
    known = np.bincount(group, minlength=count)
    return np.where(known > 0, np.bincount(group, value, count) / np.maximum(known, 1), np.nan)


def cohorts(history: History, count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which facts, [F], are among the *count* that were written first, and which among the *count* written last."""
    end = int(history.rounds[-1]) if len(history.rounds) else 0
    return history.edit_step <= count, (history.edit_step > end - count) & (history.edit_step <= end)


def held(history: History) -> Array:
    """Return, for each fact, the mean of its values over the edits since it was written, [F]: the area under its retention.

    Between two rounds values are joined by a line. A fact that was only measured once has that value.
    """
    # A column for the edit itself, age 0, then one for each round; a line joins what was measured to what was measured next.
    ages = np.concatenate(
        [np.zeros((len(history.edit_step), 1)), history.rounds[None] - history.edit_step[:, None]], axis=1
    )
    values = np.concatenate([history.immediate[:, None], history.value], axis=1)
    known = ~np.isnan(values)
    area, last_age, last = (np.full(len(values), part) for part in (0.0, np.nan, np.nan))
    begin = np.full(len(values), np.nan)
    for column in range(values.shape[1]):
        now, age, value = known[:, column], ages[:, column], values[:, column]
        begin = np.where(now & np.isnan(begin), age, begin)
        area = np.where(now & ~np.isnan(last), area + (age - last_age) * (value + last) / 2.0, area)
        last_age, last = np.where(now, age, last_age), np.where(now, value, last)
    length = last_age - begin
    return np.where(length > 0, area / np.where(length > 0, length, 1.0), last)


def lifetimes(history: History) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the age at which each fact that was right at first was lost, or last seen, and whether it was lost.

    Facts that were never right, and those that no round asked about, are left out.
    """
    asked = ~np.isnan(history.value)
    use = (history.first >= 1.0) & asked.any(1)
    wrong = asked & (history.value < 1.0)
    lost = np.asarray(wrong.any(1))
    # The first wrong round; else the last round that asked.
    at = np.where(lost, wrong.argmax(1), asked.shape[1] - 1 - asked[:, ::-1].argmax(1))
    age = (history.rounds[at] if len(history.rounds) else np.zeros(len(at), np.int64)) - history.edit_step
    return age[use], lost[use]


def came_back(history: History) -> tuple[int, int]:
    """Return how many facts were lost, and how many of these were right at the last round that asked about them."""
    asked = ~np.isnan(history.value)
    lost = (history.first >= 1.0) & (asked & (history.value < 1.0)).any(1)
    last = asked.shape[1] - 1 - asked[:, ::-1].argmax(1)
    right: NDArray[np.bool_] = history.value[np.arange(len(last)), last] >= 1.0
    return int(lost.sum()), int((lost & right).sum())


@dataclass(frozen=True, slots=True)
class Survival:
    """A Kaplan-Meier curve with its 95 % band; all arrays have one entry for each age at which a fact was lost or last seen.

    Attributes:
        age: in edits, rising.
        share: of facts that are kept beyond that age.
        low, high: the band of each point (Greenwood's variance on the log-log scale); NaN where the share is 0 or 1.
        n: facts.
        lost: how many of them were lost.
    """

    age: Array
    share: Array
    low: Array
    high: Array
    n: int
    lost: int

    def half_life(self) -> tuple[float, float, float]:
        """Return the age at which half of the facts are lost, and its 95 % limits (Brookmeyer & Crowley 1982); infinite: beyond."""
        return _first_age(self.age, self.share), _first_age(self.age, self.low), _first_age(self.age, self.high)


def _first_age(age: Array, share: Array) -> float:
    below = np.flatnonzero(np.nan_to_num(share, nan=1.0) <= 0.5)
    return float(age[below[0]]) if len(below) else float("inf")


def survival(age: Ints, lost: NDArray[np.bool_]) -> Survival:
    """Return the survival curve (Kaplan & Meier 1958) of facts of *age*, [n], of which some are *lost* and the others censored.

    The band takes facts as independent; those of one run share its fate, so look at the runs, too.
    """
    # Imported here: scipy is slow to import, and only this needs it.
    from scipy.stats import CensoredData, ecdf

    if not len(age):
        none = np.zeros(0)
        return Survival(none, none, none, none, 0, 0)
    function = ecdf(CensoredData(uncensored=age[lost], right=age[~lost])).sf
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a share of 0 or 1 has no logarithm of a logarithm, and so no band
        band = function.confidence_interval(method="log-log")
    return Survival(
        np.asarray(function.quantiles, float), np.asarray(function.probabilities, float),
        np.asarray(band.low.probabilities, float), np.asarray(band.high.probabilities, float),
        len(age), int(lost.sum()),
    )  # fmt: skip


def collapse_step(rounds: Sequence[int], means: Sequence[float], *, floor: float) -> int | None:
    """Return the first round from which on every mean is below *floor* (or no number); None: the last one is not.

    >>> collapse_step([10, 20, 30, 40], [0.9, 0.4, 0.6, 0.2], floor=0.5)
    40
    """
    step = None
    for r, mean in sorted(zip(rounds, means, strict=True), reverse=True):
        if mean >= floor:
            break
        step = r
    return step
