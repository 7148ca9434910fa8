"""Trials as measured: what each has per phase, round, view and record, and which views are undefined."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysweep.config.names import TrialName, without_seed
from raysweep.config.space import Scalar
from raysweep.errors import DamagedError, NewerFormatError
from raysweep.lazy import without_collection
from raysweep.results.finite import STAT_COLUMNS, first_non_finite_of
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import PROBES, STATS, TIMING, TRIALS
from raysweep.results.state import State
from raysweep.results.store import files_of_table
from raysweep.results.tables import SUMMARY_COLUMNS, Content, Sweep, seconds_by_phase
from raysweep.studies import phases
from raysweep.summarize import PHASES, VIEWS, averages

TIMING_COLUMNS = ("trial_key", "phase", "seconds", "count")
VIEW_OF = {(kind, metric): view for view, (kind, metric) in VIEWS.items()}
Values = dict[str, dict[str, float]]  # view → record → value
Where = tuple[str, int]  # phase and step
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial as measured, at one of its names.

    Attributes:
        row: its row of the trials table; few columns of it, and its state, where it has not begun or is damaged.
        rounds: the steps of its rounds that were measured.
        measured: ``{view: {record: value}}`` per (phase, step); undefined views are not in it.
        seconds: seconds and count by timing phase.
        undefined: the undefined views per (phase, step): some value is not a finite number, so there is no mean.
    """

    row: Mapping[str, Any]
    rounds: tuple[int, ...]
    measured: Mapping[Where, Values]
    seconds: Mapping[str, tuple[float, int]]
    undefined: Mapping[Where, frozenset[str]] = field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """The trial's seed; None = not known (it has not begun, and an older raysweep planned it)."""
        seed = self.row["seed"]
        return None if seed is None else int(seed)

    @property
    def point(self) -> dict[str, Scalar]:
        """The swept keys and their values, without the seed."""
        return without_seed(json.loads(self.row["point"]))

    @property
    def configuration(self) -> tuple[object, ...]:
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
def trial_views(sweep: Sweep, chosen: Callable[[str, pa.Table], pa.Table] | None = None) -> list[TrialView]:
    """Return every trial of *sweep* as measured, once for each of its names, in the order of the plan.

    *chosen* takes from the probes of the trial with a key those that are looked at; None = all, and only the main asking's have
    views.

    Those that have not begun are among them, in the state ABSENT; so are those whose files are damaged, in that state and without
    numbers, with the reason in ``sweep.damaged``.
    """
    tables: dict[str, _TrialTables] = {}
    for key in sweep.keys:
        try:
            one = _read(sweep, key)
            tables[key] = one if chosen is None else replace(one, probes=chosen(key, one.probes))
        except (DamagedError, NewerFormatError) as error:
            # Noted and gone on with: one damaged trial must not hide the others.
            sweep.damaged[key] = error.message
    read = dict(zip(tables, _viewed(list(tables.values())), strict=True))
    # A trial may stand in the table under several names; what was measured is read once.
    rows = {(r["arm"], r["trial_key"], r["point"]): r for r in sweep.trials().to_pylist()}
    # For trials that have no row of their own; a plan of an older raysweep does not say its study.
    study = sweep.plan.study or next((row["study"] for row in rows.values()), "")
    views = []
    for name in sweep.places:
        row = rows.get((name.arm, name.key, _point(name)))
        if row is None or name.key in sweep.damaged:
            views.append(_unmeasured(name, study, sweep.state(name.key)))
        else:
            views.append(replace(read[name.key], row=row))
    return views


@dataclass(frozen=True, slots=True)
class _TrialTables:
    """What is read of one trial: its probes, its seconds by phase, its study, and its rounds and batches."""

    probes: pa.Table
    seconds: Mapping[str, tuple[float, int]]
    study: str
    rounds: Sequence[int]
    batch_size: int

    @classmethod
    def from_content(cls, probes: pa.Table, seconds: Mapping[str, tuple[float, int]], content: Content) -> _TrialTables:
        """Return what was read of a trial whose part of the trials table is *content*."""
        columns, resolved = content
        # A row of the trials table holds lists as JSON text; the types of its columns are those of the schema.
        rounds, study, batch_size = resolved["spec.protocol.rounds"], columns["study"], columns["batch_size"]
        assert isinstance(rounds, str)
        assert isinstance(study, str)
        assert isinstance(batch_size, int)
        return cls(probes, seconds, study, json.loads(rounds), batch_size)


def _read(sweep: Sweep, key: str) -> _TrialTables:
    """Return what the trial *key* has measured; each of its files is read once, whatever is taken from it."""
    indexed = sweep.indexed(key)
    if indexed is not None:
        return _TrialTables.from_content(indexed.probes, indexed.seconds, indexed.content)
    # One listing of the folder, then one read of each file: on object storage each is a request.
    names = sweep.store.folder.files(key)
    probes, stats, timing = (
        read_fragments(sweep.store, table, files_of_table(names, table), columns=columns)
        for table, columns in ((PROBES, SUMMARY_COLUMNS), (STATS, STAT_COLUMNS), (TIMING, TIMING_COLUMNS))
    )
    # Handed on while the tables are here, so that the trials table need not read them again.
    sweep.note(key, first_non_finite_of(probes, stats))
    return _TrialTables.from_content(probes, seconds_by_phase(timing).get(key, {}), sweep.content(key))


def _viewed(tables: Sequence[_TrialTables]) -> list[TrialView]:
    """Return the trials of *tables* as measured, without their rows of the trials table."""
    if not tables:
        return []
    measured_trials = measure_trials(
        [one.probes for one in tables], [one.rounds for one in tables], [one.batch_size for one in tables]
    )
    phases_of = {study: {*phases(study), "pristine"} for study in {one.study for one in tables}}
    views = []
    for one, (measured, undefined) in zip(tables, measured_trials, strict=True):
        shown_phases = phases_of[one.study]
        of_study = {where: values for where, values in measured.items() if where[0] in shown_phases}
        measured_rounds = tuple(r for r in one.rounds if any(step == r for _, step in of_study))
        views.append(TrialView({}, measured_rounds, of_study, one.seconds, undefined))
    return views


def _point(name: TrialName) -> str:
    return json.dumps(dict(name.point), sort_keys=True)


def _unmeasured(name: TrialName, study: str, state: State) -> TrialView:
    """Return a trial that has not begun, or that cannot be read."""
    known = {"trial_key": name.key, "arm": name.arm, "point": _point(name), "seed": name.seed, "study": study}
    # Every column is there, so that readers need not ask; what only a begun trial knows is None.
    columns = dict.fromkeys(column.name for column in TRIALS.columns)
    row = {**columns, **known, "planned": name.planned, "status": state.value}
    return TrialView(row, (), {}, {})


Measured = tuple[dict[Where, Values], dict[Where, frozenset[str]]]
"""What :func:`measure` returns of one trial: values per (phase, step), and the views that are undefined there."""


def measure(probes: pa.Table, rounds: Sequence[int], batch_size: int) -> Measured:
    """Return one trial's values per (phase, step), and the views that are undefined there.

    Both are as :func:`raysweep.summarize.record_values` defines them.
    """
    (measured,) = measure_trials([probes], [rounds], [batch_size])
    return measured


def measure_trials(
    probes: Sequence[pa.Table], rounds: Sequence[Sequence[int]], batch_sizes: Sequence[int]
) -> list[Measured]:
    """Return what :func:`measure` returns, of many trials at once: grouping the rows of all costs little more than those of one.

    Args:
        probes: rows of each trial, with ``SUMMARY_COLUMNS``.
        rounds: the steps of each trial's rounds.
        batch_sizes: records that each trial edits at once.
    """
    rows = _ProbeRows.of_trials(probes)
    step, edit = rows.step, rows.edit_step
    # Each trial has its own rounds, so the trial is part of the number that is looked up.
    # A round that nobody has come to yet is no number here: it would be that of a step of the next trial.
    reached_rounds = [[r for r in own if r < rows.steps] for own in rounds]
    at_round = np.isin(rows.trial_step, [t * rows.steps + r for t, own in enumerate(reached_rounds) for r in own])
    batch = np.asarray(batch_sizes, np.int64)[rows.trial]
    retained = at_round & (edit <= step) & (rows.superseded_step > step) & (step > 0)
    # A whole batch is written at once, and measured after it: all of its records are fresh.
    fresh = (step >= edit) & (step - edit < batch) & (step > 0)
    measured: list[dict[Where, Values]] = [{} for _ in probes]
    for trial, _, at, view, record, value in rows.means(retained | (step == 0), by_step=True):
        where = (PHASES[0], at) if at else ("pristine", 0)
        measured[trial].setdefault(where, {}).setdefault(view, {})[record] = value
    # An immediate value stands at every round from its own on, but at none that was not measured.
    reached = [[r for r in own if (PHASES[0], r) in values_at] for own, values_at in zip(rounds, measured, strict=True)]
    for trial, first, _, view, record, value in rows.means(fresh, by_step=False):
        for r in reached[trial]:
            if first <= r:
                measured[trial].setdefault((PHASES[1], r), {}).setdefault(view, {})[record] = value
    undefined = [{where: _take_undefined(values) for where, values in of_trial.items()} for of_trial in measured]
    return [
        (values_at, {where: views for where, views in named.items() if views})
        for values_at, named in zip(measured, undefined, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _ProbeRows:
    """Rows of all trials that have a value and a view, as arrays ``[n]``.

    Attributes:
        trial: number of the trial.
        step, edit_step: as stored.
        superseded_step: as stored, and beyond every step where there is none.
        record, view: numbers of names in ``records`` and ``views``.
        value: of the row; may be NaN.
        steps: more than every step, so that ``trial · steps + step`` names both.
    """

    trial: Ints
    step: Ints
    edit_step: Ints
    superseded_step: Ints
    record: Ints
    view: Ints
    value: NDArray[np.float64]
    records: Sequence[str]
    views: Sequence[str]
    steps: int

    @classmethod
    def of_trials(cls, probes: Sequence[pa.Table]) -> _ProbeRows:
        """Return the rows of *probes*, one table per trial."""
        whole = pa.concat_tables(probes)
        trial = np.repeat(np.arange(len(probes)), [len(table) for table in probes])
        record, records = _codes(whole["record_id"])
        kind, kinds = _codes(whole["probe_kind"])
        metric, metrics = _codes(whole["metric"])
        views = [VIEW_OF.get((k, m)) for k in kinds for m in metrics]
        view = kind * len(metrics) + metric
        named = np.array([name is not None for name in views], bool)
        # Null = not asked; NaN is a value, and makes its view undefined.
        use = pc.is_valid(whole["value"]).to_numpy() & (named[view] if len(views) else False)
        step = whole["step"].to_numpy()[use]
        return cls(
            trial=trial[use],
            step=step,
            edit_step=whole["edit_step"].to_numpy()[use],
            superseded_step=pc.fill_null(whole["superseded_step"], 2**62).to_numpy()[use],
            record=record[use],
            view=view[use],
            value=whole["value"].to_numpy()[use],
            records=records,
            views=[name or "" for name in views],
            steps=int(step.max(initial=0)) + 1,
        )

    @property
    def trial_step(self) -> Ints:
        """A number for each pair of trial and step."""
        return self.trial * self.steps + self.step

    def means(self, use: NDArray[np.bool_], *, by_step: bool) -> Iterator[tuple[int, int, int, str, str, float]]:
        """Yield ``(trial, lowest step, step or 0, view, record, mean)`` of each record's probes of one kind and metric.

        Only rows of *use* count; the groups come in the order of their first rows. A mean is not finite where a value is not.
        """
        at = self.step[use] if by_step else np.zeros(int(use.sum()), np.int64)
        group = self.trial[use] * self.steps + at
        # Mixed-radix digits: one integer per (trial, step, record, view), so that one `unique` groups them all.
        group = (group * max(len(self.records), 1) + self.record[use]) * max(len(self.views), 1) + self.view[use]
        _, first, inverse, count = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
        # Sums in the order of the rows, as a loop would make them: to the last bit the same mean.
        mean = np.bincount(inverse, self.value[use], len(first)) / count
        lowest = np.full(len(first), self.steps)
        np.minimum.at(lowest, inverse, self.step[use])
        # `unique` sorts by number; the caller needs the order of the first rows.
        order = np.argsort(first)
        rows = first[order]
        yield from zip(
            self.trial[use][rows].tolist(),
            lowest[order].tolist(),
            at[rows].tolist(),
            (self.views[i] for i in self.view[use][rows].tolist()),
            (self.records[i] for i in self.record[use][rows].tolist()),
            mean[order].tolist(),
            strict=True,
        )


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Return the column of texts as numbers, and the texts that these number."""
    # One chunk first: every chunk of a chunked column has a dictionary of its own.
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


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
