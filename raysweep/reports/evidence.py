"""What paired differences of a table show: a verdict for each, corrected for the others of its column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raysweep.intervals import Array
from raysweep.reports.pairs import Pair
from raysweep.reports.render import Cell, Difference
from raysweep.reports.values import PARTS, stacked
from raysweep.reports.views import shared_values
from raysweep.summarize import GEO_ALPHA
from raysweep.verdicts import Verdict, bca_interval, record_means, verdicts

LEADING = ("avg", "rel")
"""Views in the order in which a table looks for the one that its word is about."""
COLUMNS = ("bca_low", "bca_high", "p", "p_holm", "verdict", "detectable", "n_needed", "seeds_needed")
MOST_RESAMPLED = 5000  # records; the bootstrap's own acceleration needs all of them but one, once for each


def of_pairs(pairs: Sequence[Pair], views: Sequence[str]) -> dict[str, Mapping[int, Verdict]]:
    """Return the verdicts on the differences of *pairs*, by view and ``id`` of the pair; each view is a family of its own."""
    return {view: _family(pairs, view) for view in views}


def _family(pairs: Sequence[Pair], view: str) -> dict[int, Verdict]:
    found = []
    for pair in pairs:
        if pair.reference is None:
            continue
        values = shared_values(pair.reference, pair.line, view)
        if values.size and not np.isinf(values).any():
            found.append((id(pair), values))
    words = verdicts([values for _, values in found])
    return {key: word for (key, _), word in zip(found, words, strict=True) if word is not None}


def evidence(pair: Pair, view: str, verdict: Verdict | None) -> dict[str, Cell]:
    """Return the columns that say, for a program, what the difference of *view* shows and why; all None where there is none."""
    values: tuple[Cell, ...] = (None,) * len(COLUMNS)
    if verdict is not None and pair.reference is not None:
        of_record = record_means(shared_values(pair.reference, pair.line, view))
        few = len(of_record) <= MOST_RESAMPLED
        low, high = bca_interval([of_record], np.mean) if few else (None, None)
        values = (
            low, high, verdict.p, verdict.p_holm, str(verdict.word), verdict.detectable, verdict.records, verdict.seeds,
        )  # fmt: skip
    return {f"delta_{view}_{column}": value for column, value in zip(COLUMNS, values, strict=True)}


def geo_difference(pair: Pair) -> Difference | None:
    """Return the difference of Geo, with the BCa bootstrap's interval over the records that both have; None where there is none.

    Geo is a function of means, so it has no value of a record: records are drawn anew, and with them all three means of both arms.
    Its star says that the interval leaves 0 out; no correction is made for other rows.
    """
    first, line = pair.reference, pair.line
    if (
        first is None
        or (first.step, first.phase) != (line.step, line.phase)
        or {*PARTS} & (first.undefined | line.undefined)
    ):
        return None
    # As in `shared_values`: pairs need equal seeds and the same data.
    of = {t.seed: t for t in first.trials}
    pairs = [
        (of[t.seed], t) for t in line.trials if t.seed in of and of[t.seed].row["data_digest"] == t.row["data_digest"]
    ]
    if not pairs:
        return None
    trials = [trial.measured for side in zip(*pairs, strict=True) for trial in side]
    # By seed six arrays [records]: Rel, Gen and Loc of the reference, then of the line.
    views = stacked(trials, (line.phase, line.step), *PARTS)
    samples = [view[:, side * len(pairs) + seed] for seed in range(len(pairs)) for side in (0, 1) for view in views]
    known = ~np.isnan(np.stack(samples)).any(axis=0)
    samples = [sample[known] for sample in samples]
    if not 1 < len(samples[0]) <= MOST_RESAMPLED:
        return None
    low, high = bca_interval(samples, _geo_difference)
    mean = float(_geo_difference(*samples, axis=0))
    return Difference(mean, math.nan, len(samples[0]), low, high, shown=low > 0.0 or high < 0.0)


def _geo_difference(*samples: Array, axis: int) -> Array:
    """Return the mean over seeds of the difference of Geo; *samples* are six for each seed."""
    means = [np.mean(sample, axis=axis) for sample in samples]
    geo = [np.exp(GEO_ALPHA * (loc - 1.0)) * rel * gen for rel, gen, loc in zip(*[iter(means)] * 3, strict=True)]
    difference: Array = np.mean([line - first for first, line in zip(geo[::2], geo[1::2], strict=True)], axis=0)
    return difference
