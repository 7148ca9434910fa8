"""What paired differences of a table show: a verdict for each, corrected for the others of its column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raysweep.reports.pairs import Pair
from raysweep.reports.render import Cell
from raysweep.reports.views import shared_values
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
