"""Arms × rounds: Rel, Gen, Loc, Port, Avg, Geo with standard error and n, per seed or pooled over seeds.

Words: a *line* is one configuration (everything but the seed) at one round in one phase; intervals are ±1.96 standard
errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysweep.errors import DamagedError, NewerFormatError
from raysweep.results.schema import PROBES, TIMING
from raysweep.results.tables import Sweep, read_fragments, seconds_by_phase
from raysweep.rows import SHARED
from raysweep.summarize import VIEWS, Estimate, geo, pooled

Z95 = 1.96
MAIN = ("rel", "gen", "loc", "port", "avg", "geo")
PHASES = ("retained", "immediate", "pristine")
OF = {(kind, metric): view for view, (kind, metric) in VIEWS.items()}
Values = dict[str, dict[str, float]]  # view → record → value


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial as measured: its row of the trials table and, per (phase, step), ``{view: {record: value}}``."""

    row: Mapping[str, Any]
    rounds: tuple[int, ...]
    measured: Mapping[tuple[str, int], Values]
    seconds: Mapping[str, tuple[float, int]]

    @property
    def seed(self) -> int:
        """The trial's seed."""
        return int(self.row["seed"])

    @property
    def point(self) -> dict[str, Any]:
        """The swept keys and their values, without the seed."""
        return {k: v for k, v in json.loads(self.row["point"]).items() if k != "seed"}


@dataclass(frozen=True, slots=True)
class Line:
    """One configuration at one round in one phase.

    ``cells`` maps a view to its estimate; ``per_edit`` is the mean seconds of one edit and ``seconds`` those of a whole
    trial (nan if not measured) without ``shared``: those of what was done once for several trials.
    """

    label: str
    arm: str
    step: int
    phase: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Estimate]
    status: str
    seconds: float
    per_edit: float
    shared: float = 0.0
    trials: Sequence[TrialView] = field(default=(), repr=False)

    @property
    def n(self) -> int:
        """How many records stand behind the line (the most of any cell)."""
        return max((c.n for c in self.cells.values()), default=0)


def trial_views(sweep: Sweep) -> list[TrialView]:
    """Return every trial of *sweep* as measured, in the order of the plan, else by arm.

    A trial whose tables are damaged is left out, and its reason put into ``sweep.damaged``.
    """
    found = []
    table = {row["trial_key"]: row for row in sweep.trials().to_pylist()}
    for key in sweep.keys if sweep.planned and len(table) <= sweep.planned else table:
        row = table[key]
        store = sweep.store
        try:
            probes = read_fragments(store, PROBES, store.fragments(PROBES, key))
            timing = read_fragments(store, TIMING, store.fragments(TIMING, key))
        except (DamagedError, NewerFormatError) as error:
            sweep.damaged[key] = error.message
            continue
        rounds = tuple(json.loads(row["spec.protocol.rounds"]))
        measured = measure(probes, rounds, int(row["batch_size"]))
        seen = tuple(r for r in rounds if any(step == r for _, step in measured))
        found.append(TrialView(row, seen, measured, seconds_by_phase(timing).get(key, {})))
    return found


def measure(probes: pa.Table, rounds: Sequence[int], batch_size: int) -> dict[tuple[str, int], Values]:
    """Return one trial's values per (phase, step), as :func:`raysweep.summarize.record_values` defines them."""
    probes = probes.filter(pc.invert(pc.is_null(probes["value"], nan_is_null=True)))
    step, edit = probes["step"], probes["edit_step"]
    gone = pc.fill_null(probes["superseded_step"], 2**62)
    at_round = pc.is_in(step, pa.array(list(rounds), pa.int64()))
    kept = _all(at_round, pc.less_equal(edit, step), pc.greater(gone, step), pc.greater(step, 0))
    fresh = _all(pc.greater_equal(step, edit), pc.less(pc.subtract(step, edit), batch_size), pc.greater(step, 0))
    found: dict[tuple[str, int], Values] = {}
    for row in _means(probes.filter(kept)):
        _put(found, ("retained", row["step_min"]), row)
    for row in _means(probes.filter(pc.equal(step, 0))):
        _put(found, ("pristine", 0), row)
    reached = [r for r in rounds if ("retained", r) in found]
    for row in _means(probes.filter(fresh), by_step=False):
        for r in reached:
            if row["step_min"] <= r:
                _put(found, ("immediate", r), row)
    for values in found.values():
        _add_avg(values)
    return found


def _all(*masks: Any) -> Any:
    return reduce(pc.and_, masks)


def _means(probes: pa.Table, *, by_step: bool = True) -> list[dict[str, Any]]:
    keys = ["record_id", "probe_kind", "metric"]
    keyed = probes.append_column("at", probes["step"] if by_step else pa.array(np.zeros(len(probes), np.int64)))
    grouped = keyed.group_by([*keys, "at"], use_threads=False).aggregate([("value", "mean"), ("step", "min")])
    rows: list[dict[str, Any]] = grouped.to_pylist()
    return rows


def _put(found: dict[tuple[str, int], Values], where: tuple[str, int], row: Mapping[str, Any]) -> None:
    view = OF.get((row["probe_kind"], row["metric"]))
    if view is not None:
        found.setdefault(where, {}).setdefault(view, {})[row["record_id"]] = row["value_mean"]


def _add_avg(values: Values) -> None:
    parts = [values.get(view, {}) for view in ("rel", "gen", "loc")]
    both = [r for r in parts[0] if r in parts[1] and r in parts[2]]
    if both:
        values["avg"] = {r: sum(p[r] for p in parts) / 3 for r in both}


def lines(
    trials: Sequence[TrialView], *, phase: str = "retained", by: str = "arm", at: int | None = None
) -> list[Line]:
    """Return the lines of *phase*, configurations in order of arm and point, rounds rising.

    Args:
        trials: what :func:`trial_views` found.
        phase: ``retained`` or ``immediate``; round 0 is ``pristine`` in both.
        by: ``arm`` pools the seeds of a configuration; ``trial`` gives each trial its lines.
        at: only this round; -1 = each configuration's last.
    """
    out = []
    for label, members in groups(trials, by=by):
        rounds = sorted({r for t in members for r in t.rounds})
        if at is not None:
            rounds = rounds[-1:] if at < 0 else [r for r in rounds if r == at]
        out += [_line(label, members, step, phase if step else "pristine") for step in rounds]
        if not rounds and at is None:
            out.append(_line(label, members, 0, "pristine"))
    return out


def groups(trials: Sequence[TrialView], *, by: str = "arm") -> list[tuple[str, list[TrialView]]]:
    """Return ``(label, trials)`` per configuration: the arm and whichever swept keys vary within it."""
    found: dict[tuple[str, str], list[TrialView]] = {}
    for trial in trials:
        own = trial.row["trial_key"] if by == "trial" else trial.row["group"]
        found.setdefault((trial.row["arm"], own), []).append(trial)
    named = [(_label(m[0], trials, by), m) for m in found.values()]
    arms = list(dict.fromkeys(t.row["arm"] for t in trials))
    return sorted(named, key=lambda item: (arms.index(item[1][0].row["arm"]), *_order(item[1][0], by)))


def _label(trial: TrialView, trials: Sequence[TrialView], by: str) -> str:
    arm = trial.row["arm"]
    points = [t.point for t in trials if t.row["arm"] == arm]
    varying = sorted({k for p in points for k in p if len({repr(q.get(k)) for q in points}) > 1})
    parts = [f"{k.rpartition('.')[2]}={_short(trial.point[k])}" for k in varying if k in trial.point]
    if by == "trial":
        parts.append(f"seed={trial.seed}")
    return " ".join([arm, *parts])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _order(trial: TrialView, by: str) -> tuple[Any, ...]:
    point = tuple(
        (k, isinstance(v, str), v if isinstance(v, str) else float(v or 0)) for k, v in sorted(trial.point.items())
    )
    return (point, trial.seed if by == "trial" else 0)


def _line(label: str, members: Sequence[TrialView], step: int, phase: str) -> Line:
    there = [t for t in members if (phase, step) in t.measured]
    cells = {}
    for view in (*VIEWS, "avg"):
        by_seed = [t.measured[phase, step][view] for t in there if view in t.measured[phase, step]]
        if by_seed:
            cells[view] = pooled(by_seed)
    values = [t.measured[phase, step] for t in there]
    if all(v in cells for v in ("rel", "gen", "loc")):
        cells["geo"] = geo_estimate(values)
    if "ppl" in cells:
        ppl = [v["ppl"] for v in values if "ppl" in v]
        cells["ppl_median"] = _over(ppl, np.median)
        cells["ppl_expmean"] = _over(ppl, lambda x: np.exp(np.mean(np.log(x))))
    edit = [t.seconds[p] for t in members for p in ("edit", f"edit{SHARED}") if t.seconds.get(p, (0, 0))[1]]
    totals = [[_total(t, shared=False), _total(t, shared=True)] for t in members if t.seconds]
    own, shared = np.mean(totals, axis=0) if totals else (math.nan, 0.0)
    return Line(
        label=label, arm=members[0].row["arm"], step=step, phase=phase, seeds=tuple(sorted({t.seed for t in there})),
        cells=cells, status=_status(members), seconds=float(own), shared=float(shared),
        per_edit=sum(s for s, _ in edit) / sum(c for _, c in edit) if edit else math.nan, trials=there,
    )  # fmt: skip


def _total(trial: TrialView, *, shared: bool) -> float:
    """Return the seconds of the phases that were (not) *shared* with other trials."""
    return sum(seconds for phase, (seconds, _) in trial.seconds.items() if phase.endswith(SHARED) is shared)


def _status(members: Sequence[TrialView]) -> str:
    """``done``, or how many trials are in which state."""
    states = [str(t.row["status"]).lower() for t in members]
    if len(members) == 1 or set(states) == {"done"}:
        return states[0] if len(set(states)) == 1 else "mixed"
    return ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))


def _over(by_seed: Sequence[Mapping[str, float]], statistic: Callable[[Any], Any]) -> Estimate:
    """Return the mean over seeds of a statistic that is no mean over records (its spread is between seeds only)."""
    found = np.array([float(statistic(np.array(list(v.values())))) for v in by_seed])
    se = float(found.std(ddof=1) / math.sqrt(found.size)) if found.size > 1 else math.nan
    return Estimate(float(found.mean()), se, len({r for v in by_seed for r in v}))


def geo_estimate(by_seed: Sequence[Values]) -> Estimate:
    """Return Geo averaged over seeds, its error by jackknife over records plus the spread between seeds.

    A record is left out of every seed at once, as :func:`raysweep.summarize.pooled` counts it once.
    """
    records = sorted({r for values in by_seed for view in ("rel", "gen", "loc") for r in values[view]})
    place = {r: i for i, r in enumerate(records)}
    means, left_out = [], []
    for values in by_seed:
        full, drop = [], []
        for view in ("rel", "gen", "loc"):
            held = values[view]
            total, count = sum(held.values()), len(held)
            dropped = np.full(len(records), total / count)
            if count > 1:
                for record, value in held.items():
                    dropped[place[record]] = (total - value) / (count - 1)
            full.append(total / count)
            drop.append(dropped)
        means.append(geo(full[0], full[1], full[2]))
        left_out.append([geo(r, g, x) for r, g, x in zip(*drop, strict=True)])
    n, seeds = len(records), np.array(means)
    variance = 0.0
    if n > 1:
        each = np.mean(np.array(left_out), axis=0)
        variance += float((n - 1) / n * ((each - each.mean()) ** 2).sum())
    if seeds.size > 1:
        variance += float(seeds.std(ddof=1) ** 2 / seeds.size)
    return Estimate(float(seeds.mean()), math.sqrt(variance) if n > 1 or seeds.size > 1 else math.nan, n)


def paired(first: Line, other: Line, view: str) -> Estimate | None:
    """Return *other* − *first*, paired by record and seed, or None where they share no seed.

    Geo is a function of means, so its difference is not paired by record and is left out.
    """
    of = {t.seed: t for t in first.trials}
    differences = []
    for trial in other.trials:
        if trial.seed not in of:
            continue
        a = of[trial.seed].measured[first.phase, first.step].get(view, {})
        b = trial.measured[other.phase, other.step].get(view, {})
        shared = {r: b[r] - a[r] for r in sorted(a.keys() & b.keys())}
        if shared:
            differences.append(shared)
    return pooled(differences) if differences else None
