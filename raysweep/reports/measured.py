"""Trials as measured: what each has per phase, round, view and record, and which views are undefined."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from raysweep.config.names import TrialName, without_seed
from raysweep.config.space import Scalar
from raysweep.errors import DamagedError, NewerFormatError
from raysweep.lazy import without_collection
from raysweep.reports.grouping import measure_trials
from raysweep.reports.values import PRISTINE, Records, Values, Where
from raysweep.results.finite import STAT_COLUMNS, first_non_finite_of
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import PROBES, STATS, TIMING, TRIALS
from raysweep.results.state import State
from raysweep.results.store import files_of_table
from raysweep.results.tables import SUMMARY_COLUMNS, Content, Sweep, seconds_by_phase
from raysweep.studies import phases

TIMING_COLUMNS = ("trial_key", "phase", "seconds", "count")
TEXTS = ("record_id", "probe_kind", "metric")
AT_ONCE = 1_000_000  # rows


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
    read: dict[str, TrialView] = {}
    waiting: dict[str, TrialTables] = {}
    records = Records()

    def measure() -> None:
        read.update(zip(waiting, _viewed(list(waiting.values()), records), strict=True))
        waiting.clear()

    count = 0
    for key, one in _read_ahead(sweep):
        tables = one if chosen is None else replace(one, probes=chosen(key, one.probes))
        waiting[key], count = tables, count + len(tables.probes)
        # Many small trials are measured at once, which is quicker; of large ones the rows are let go of before the next.
        if count >= AT_ONCE:
            measure()
            count = 0
    measure()
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


def _read_ahead(sweep: Sweep) -> Iterator[tuple[str, TrialTables]]:
    """Yield the tables of each undamaged trial of *sweep*; the next one is read while somebody looks at them."""
    # A decoder needs no Python, so that a second thread is a second core; more would hold more trials in memory.
    with ThreadPoolExecutor(1) as pool:
        keys = list(sweep.keys)
        following = pool.submit(read_trial, sweep, keys[0]) if keys else None
        for i, key in enumerate(keys):
            assert following is not None
            current, following = following, None
            if i + 1 < len(keys):
                following = pool.submit(read_trial, sweep, keys[i + 1])
            try:
                yield key, current.result()
            except (DamagedError, NewerFormatError) as error:
                # Noted and gone on with: one damaged trial must not hide the others.
                sweep.damaged[key] = error.message


@dataclass(frozen=True, slots=True)
class TrialTables:
    """What is read of one trial: its probes, its seconds by phase, its study, and its rounds and batches."""

    probes: pa.Table
    seconds: Mapping[str, tuple[float, int]]
    study: str
    rounds: Sequence[int]
    batch_size: int

    @classmethod
    def from_content(cls, probes: pa.Table, seconds: Mapping[str, tuple[float, int]], content: Content) -> TrialTables:
        """Return what was read of a trial whose part of the trials table is *content*."""
        columns, resolved = content
        # A row of the trials table holds lists as JSON text; the types of its columns are those of the schema.
        rounds, study, batch_size = resolved["spec.protocol.rounds"], columns["study"], columns["batch_size"]
        assert isinstance(rounds, str)
        assert isinstance(study, str)
        assert isinstance(batch_size, int)
        return cls(probes, seconds, study, json.loads(rounds), batch_size)


def read_trial(sweep: Sweep, key: str) -> TrialTables:
    """Return what the trial *key* has measured; each of its files is read once, whatever is taken from it.

    Raises:
        DamagedError: a file is truncated, or not as it was written.
        NewerFormatError: a file is of a newer version.
    """
    indexed = sweep.indexed(key)
    if indexed is not None:
        return TrialTables.from_content(indexed.probes, indexed.seconds, indexed.content)
    # One listing of the folder, then one read of each file: on object storage each is a request.
    names = sweep.store.folder.files(key)
    probes, stats, timing = (
        read_fragments(sweep.store, table, files_of_table(names, table), columns=columns, coded=TEXTS)
        for table, columns in ((PROBES, SUMMARY_COLUMNS), (STATS, STAT_COLUMNS), (TIMING, TIMING_COLUMNS))
    )
    # Handed on while the tables are here, so that the trials table need not read them again.
    sweep.note(key, first_non_finite_of(probes, stats))
    return TrialTables.from_content(probes, seconds_by_phase(timing).get(key, {}), sweep.content(key))


def _viewed(tables: Sequence[TrialTables], records: Records) -> list[TrialView]:
    """Return the trials of *tables* as measured, without their rows of the trials table."""
    if not tables:
        return []
    measured_trials = measure_trials(
        [one.probes for one in tables], [one.rounds for one in tables], [one.batch_size for one in tables], records
    )
    phases_of = {study: {*phases(study), PRISTINE} for study in {one.study for one in tables}}
    views = []
    for one, measured in zip(tables, measured_trials, strict=True):
        of_study = measured.of_phases(phases_of[one.study])
        measured_rounds = tuple(r for r in one.rounds if any(step == r for _, step in of_study))
        views.append(TrialView({}, measured_rounds, of_study, one.seconds, measured.undefined))
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
