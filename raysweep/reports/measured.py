"""Trials as measured: what each has per phase, round, view and record, and which views are undefined."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysweep.config.names import TrialName, without_seed
from raysweep.errors import DamagedError, NewerFormatError
from raysweep.lazy import without_collection
from raysweep.results.finite import STAT_COLUMNS, first_non_finite_of
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import PROBES, STATS, TIMING, TRIALS
from raysweep.results.state import State
from raysweep.results.store import files_of_table
from raysweep.results.tables import SUMMARY_COLUMNS, Sweep, seconds_by_phase
from raysweep.studies import phases
from raysweep.summarize import PHASES, VIEWS, averages

TIMING_COLUMNS = ("trial_key", "phase", "seconds", "count")
VIEW_OF = {(kind, metric): view for view, (kind, metric) in VIEWS.items()}
Values = dict[str, dict[str, float]]  # view → record → value
Where = tuple[str, int]  # phase and step


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial as measured, at one of its names.

    Attributes:
        row: its row of the trials table; few columns of it, and its state, where it has not begun or is damaged.
        rounds: the steps of its rounds that were measured.
        measured: ``{view: {record: value}}`` per (phase, step); undefined views are not in it.
        seconds: seconds and count by timing phase.
        undefined: the undefined views per (phase, step): some value is not a finite number, so there is no mean.
        planned_rounds: the steps of all its rounds.
    """

    row: Mapping[str, Any]
    rounds: tuple[int, ...]
    measured: Mapping[Where, Values]
    seconds: Mapping[str, tuple[float, int]]
    undefined: Mapping[Where, frozenset[str]] = field(default_factory=dict)
    planned_rounds: tuple[int, ...] = ()

    @property
    def seed(self) -> int | None:
        """The trial's seed; None = not known (it has not begun, and an older raysweep planned it)."""
        seed = self.row["seed"]
        return None if seed is None else int(seed)

    @property
    def point(self) -> dict[str, Any]:
        """The swept keys and their values, without the seed."""
        return without_seed(json.loads(self.row["point"]))

    @property
    def configuration(self) -> tuple[Any, ...]:
        """What it shares with the trials that differ in nothing but the seed.

        In a plan that is arm and point. Names of earlier plans may mean different things at different times, so there the
        trial's content counts too.
        """
        name = (self.row["arm"], json.dumps(self.point, sort_keys=True))
        return (True, *name) if self.row["planned"] else (False, *name, self.row["group"])

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that its study has, the one shown by default first."""
        return phases(str(self.row["study"]))


@without_collection()
def trial_views(sweep: Sweep) -> list[TrialView]:
    """Return every trial of *sweep* as measured, once for each of its names, in the order of the plan.

    Those that have not begun are among them, in the state ABSENT; so are those whose files are damaged, in that state and without
    numbers, with the reason in ``sweep.damaged``.
    """
    read: dict[str, TrialView] = {}
    for key in sweep.keys:
        try:
            read[key] = _read(sweep, key)
        except (DamagedError, NewerFormatError) as error:
            sweep.damaged[key] = error.message
    # A trial may stand in the table under several names; what was measured is read once.
    rows = {(r["arm"], r["trial_key"], r["point"]): r for r in sweep.trials().to_pylist()}
    study = sweep.plan.get("study") or next((row["study"] for row in rows.values()), "")
    views = []
    for name in sweep.places:
        row = rows.get((name.arm, name.key, _point(name)))
        if row is None or name.key in sweep.damaged:
            views.append(_unmeasured(name, study, sweep.state(name.key)))
        else:
            views.append(replace(read[name.key], row=row))
    return views


def _read(sweep: Sweep, key: str) -> TrialView:
    """Return the trial *key* as measured, without a row; each of its files is read once, whatever is taken from it."""
    # One listing of the folder, then one read of each file: on object storage each is a request.
    names = sweep.store.folder.files(key)
    probes, stats, timing = (
        read_fragments(sweep.store, table, files_of_table(names, table), columns=columns)
        for table, columns in ((PROBES, SUMMARY_COLUMNS), (STATS, STAT_COLUMNS), (TIMING, TIMING_COLUMNS))
    )
    # Handed on while the tables are here, so that the trials table need not read them again.
    sweep.note(key, first_non_finite_of(probes, stats))
    spec = sweep.records[key].about()[1]
    rounds = spec.protocol.rounds
    measured, undefined = measure(probes, rounds, spec.protocol.batch_size)
    shown_phases = {*phases(spec.study), "pristine"}
    measured = {where: values for where, values in measured.items() if where[0] in shown_phases}
    seen = tuple(r for r in rounds if any(step == r for _, step in measured))
    return TrialView({}, seen, measured, seconds_by_phase(timing).get(key, {}), undefined, rounds)


def _point(name: TrialName) -> str:
    return json.dumps(dict(name.point), sort_keys=True)


def _unmeasured(name: TrialName, study: str, state: State) -> TrialView:
    """Return a trial that has not begun, or that cannot be read."""
    given = {"trial_key": name.key, "arm": name.arm, "point": _point(name), "seed": name.seed, "study": study}
    columns = dict.fromkeys(column.name for column in TRIALS.columns)
    row = {**columns, **given, "planned": name.planned, "status": state.value}
    return TrialView(row, (), {}, {}, planned_rounds=name.rounds)


def measure(
    probes: pa.Table, rounds: Sequence[int], batch_size: int
) -> tuple[dict[Where, Values], dict[Where, frozenset[str]]]:
    """Return one trial's values per (phase, step), and the views that are undefined there.

    Both are as :func:`raysweep.summarize.record_values` defines them.
    """
    probes = probes.filter(pc.invert(pc.is_null(probes["value"])))
    step, edit = probes["step"], probes["edit_step"]
    gone = pc.fill_null(probes["superseded_step"], 2**62)
    at_round = pc.is_in(step, pa.array(list(rounds), pa.int64()))
    retained = _all(at_round, pc.less_equal(edit, step), pc.greater(gone, step), pc.greater(step, 0))
    fresh = _all(pc.greater_equal(step, edit), pc.less(pc.subtract(step, edit), batch_size), pc.greater(step, 0))
    values_at: dict[Where, Values] = {}
    for row in _means(probes.filter(pc.or_(retained, pc.equal(step, 0)))):
        _put(values_at, (PHASES[0], row["step_min"]) if row["step_min"] else ("pristine", 0), row)
    reached = [r for r in rounds if (PHASES[0], r) in values_at]
    for row in _means(probes.filter(fresh), by_step=False):
        for r in reached:
            if row["step_min"] <= r:
                _put(values_at, (PHASES[1], r), row)
    undefined = {where: _take_undefined(values) for where, values in values_at.items()}
    return values_at, {where: views for where, views in undefined.items() if views}


def _all(*masks: Any) -> Any:
    return reduce(pc.and_, masks)


def _means(probes: pa.Table, *, by_step: bool = True) -> list[dict[str, Any]]:
    """Return the mean over each record's probes of one kind and metric; it is not finite where one of them is not."""
    keys = ["record_id", "probe_kind", "metric"]
    keyed = probes.append_column("at", probes["step"] if by_step else pa.array(np.zeros(len(probes), np.int64)))
    grouped = keyed.group_by([*keys, "at"], use_threads=False).aggregate([("value", "mean"), ("step", "min")])
    rows: list[dict[str, Any]] = grouped.to_pylist()
    return rows


def _put(values_at: dict[Where, Values], where: Where, row: Mapping[str, Any]) -> None:
    view = VIEW_OF.get((row["probe_kind"], row["metric"]))
    if view is not None:
        values_at.setdefault(where, {}).setdefault(view, {})[row["record_id"]] = row["value_mean"]


def _take_undefined(values: Values) -> frozenset[str]:
    """Take the undefined views out of *values*, add ``avg`` where it is defined, and return the undefined ones."""
    parts = ("rel", "gen", "loc")
    average = averages(*(values.get(view, {}) for view in parts))
    undefined = {view for view, by_record in values.items() if not all(map(math.isfinite, by_record.values()))}
    for view in undefined:
        del values[view]
    if not undefined & {*parts}:
        if average:
            values["avg"] = average
    elif all(view in values or view in undefined for view in parts):
        undefined |= {"avg", "geo"}
    if "ppl" in undefined:
        undefined |= {"ppl_median", "ppl_expmean"}
    return frozenset(undefined)
