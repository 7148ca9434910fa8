"""Where a trial's numbers stop being numbers: the first step with a NaN or an infinity in its weights or its logits."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from raysweep.results.fragments import read_fragments
from raysweep.results.schema import PROBES, STATS
from raysweep.results.store import ResultStore
from raysweep.rows import NON_FINITE_STAT, ProbeRow, StatRow

STAT_COLUMNS = ("step", "name", "value")
# Norms of the change of a weight: NaN where an entry is. Infinite also where only the squares overflow, which tells nothing.
DRIFT = "drift/"


def first_non_finite(rows: Iterable[ProbeRow], stats: Iterable[StatRow]) -> int | None:
    """Return the lowest step of a row that tells of something not finite, or None.

    Such are a probe whose value is NaN (its logits were not finite), a count of entries of a weight that are not, and a drift
    that is NaN.
    """
    steps = [row.step for row in rows if row.value is not None and math.isnan(row.value)]
    steps += [row.step for row in stats if _tells(row.name, row.value)]
    return min(steps, default=None)


def _tells(name: str, value: float) -> bool:
    return name.startswith(NON_FINITE_STAT) or (name.startswith(DRIFT) and math.isnan(value))


def non_finite_step(store: ResultStore, key: str) -> int | None:
    """Return the first non-finite step of the trial *key* by its stored rows, or None."""
    probes = read_fragments(store, PROBES, store.fragments(PROBES, key), columns=("step", "value"))
    stats = read_fragments(store, STATS, store.fragments(STATS, key), columns=STAT_COLUMNS)
    return first_non_finite_of(probes, stats)


def first_non_finite_of(probes: pa.Table, stats: pa.Table) -> int | None:
    """Return what :func:`first_non_finite` does, of the stored columns ``step`` and ``value``, and ``STAT_COLUMNS``."""
    undefined = probes.filter(pc.is_nan(probes["value"]))["step"]
    named = pc.or_(
        pc.starts_with(stats["name"], NON_FINITE_STAT),
        pc.and_(pc.starts_with(stats["name"], DRIFT), pc.is_nan(stats["value"])),
    )
    steps = [pc.min(column).as_py() for column in (undefined, stats.filter(named)["step"]) if len(column)]
    return min(steps, default=None)
