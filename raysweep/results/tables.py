"""A sweep's results as Arrow tables; reading needs neither Ray nor torch."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.config.names import TrialName
from raysweep.config.schema import TrialSpec
from raysweep.errors import DamagedError, NewerFormatError, StoreError, nearest
from raysweep.hashing import digest
from raysweep.lazy import without_collection
from raysweep.results.columns import Column, TableSchema, inferred
from raysweep.results.drivers import drivers_at_work
from raysweep.results.finite import non_finite_step
from raysweep.results.folder import Folder, each
from raysweep.results.fragments import read_fragments
from raysweep.results.index import LEAST, IndexedTrial, SweepIndex, stamps
from raysweep.results.schema import ANSWERS, BELIEFS, POINTS, PROBES, STATS, TABLES, TIMING, TRAINING, TRIALS
from raysweep.results.state import COLLAPSED, State, TrialRecord, examine
from raysweep.results.statefiles import PlanFile, PlannedFile
from raysweep.results.store import ResultStore
from raysweep.results.verified import read_as_written
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

SUMMARY_COLUMNS = ("step", "edit_step", "superseded_step", "record_id", "probe_kind", "metric", "value")
TRIALS_FILE = "trials.parquet"
# The columns of the trials table that depend on no name, and the resolved values by dotted name.
Content = tuple[dict[str, object], dict[str, object]]


class Sweep:
    """Everything one sweep has measured so far, under the names of its latest plan.

    Trials whose files are damaged are named and left out.

    Attributes:
        store: where it lies.
        plan: ``plan.json``, as the latest command wrote it; without trials if there is none.
        places: the arms and points of the latest plan, in its order; a trial may stand at several. Opened with
            ``everything``, the trials of no current plan follow under the names they were begun with, marked by
            ``planned=False``. Without a plan, those are all.
        records: what the folder of each trial of ``places`` says about it, by key.
        damaged: why a trial is left out, by key: its files are damaged, or of a newer raysweep.
        planned: how many trials the latest plan has; 0 if there is no plan.
        search: how the plan draws and ranks its trials.
        stamps: what the trials' folders looked like before anything of them was read; empty where they are few.
    """

    @without_collection()
    def __init__(self, store: ResultStore, *, everything: bool = False) -> None:
        self.store = store
        plan = store.plan()
        self.plan = plan or PlanFile(sweep="", trials=())
        entries = self.plan.trials
        known = dict.fromkeys(entry.key for entry in entries)
        self.planned = len(known)
        # A folder without plan.json (a newer or damaged one, or an old version) shows every trial there is.
        earlier = [key for key in store.keys() if key not in known] if everything or plan is None else []  # noqa: SIM118
        drivers = drivers_at_work(store.folder)
        self._index, keys = SweepIndex(store.folder), (*known, *earlier)
        # Looked at before anything is read: what changes from now on has another stamp.
        self.stamps = stamps(store.folder, keys) if self._index or len(keys) >= LEAST else {}
        self._indexed = {key for key, stamp in self.stamps.items() if stamp.digest == self._index.stamp(key)}
        unknown = [key for key in keys if key not in self._indexed]
        read = each(store.folder, unknown, lambda key: examine(store.folder, key, drivers=drivers))
        self.records = {key: read[key] if key in read else self._index.record(key) for key in keys}
        self.damaged = {key: r.status.reason for key, r in self.records.items() if r.status.reason}
        current = [_place(self.records[entry.key], entry) for entry in entries]
        begun_as = [_begun_as(self.records[key], key, planned=plan is None) for key in earlier]
        # The names of the latest plan come first and in its order, whatever the trials were called when they were begun.
        # Keys are hashes: in their order the arms would change places with every raised version.
        self.places = (*current, *sorted(begun_as, key=lambda name: name.arm))
        self.search: Mapping[str, object] = self.plan.search
        self.name = self.plan.sweep or store.folder.base.rpartition("/")[2]
        self._contents: dict[str, Content] = {}  # what the trials table has of each trial, as read from its files once

    @property
    def names(self) -> tuple[TrialName, ...]:
        """Those of :attr:`places` whose trials have begun and are not damaged."""
        whole = {key for key, r in self.records.items() if r.begun and key not in self.damaged}
        return tuple(name for name in self.places if name.key in whole)

    @property
    def keys(self) -> tuple[str, ...]:
        """The trials of :attr:`names`, each once."""
        return tuple(dict.fromkeys(name.key for name in self.names))

    def state(self, key: str) -> State:
        """Return where the trial *key* stands; one whose tables turned out to be altered is DAMAGED."""
        state = self.records[key].status.state
        return State.DAMAGED if key in self.damaged and state is not State.NEWER else state

    def leave_out_altered(self) -> None:
        """Compare every file of every trial with what was written; the trials whose files were altered go to :attr:`damaged`."""
        for table in (t for t in TABLES if t is not TRIALS):
            self._whole_files(table)

    def probes(self) -> pa.Table:
        """Return every measured value (schema ``probes``)."""
        return self._table(PROBES)

    def answers(self) -> pa.Table:
        """Return what the model wrote freely (schema ``answers``; where ``protocol.also`` lets it)."""
        return self._table(ANSWERS)

    def stats(self) -> pa.Table:
        """Return what the editors reported (schema ``editor_stats``)."""
        return self._table(STATS)

    def beliefs(self) -> pa.Table:
        """Return what was asked of evaluation points (schema ``beliefs``; belief studies only)."""
        return self._table(BELIEFS)

    def points(self) -> pa.Table:
        """Return the evaluation points (schema ``points``; belief studies only)."""
        return self._table(POINTS)

    def training(self) -> pa.Table:
        """Return the logs of models trained for the sweep (schema ``training``; belief studies only)."""
        return self._table(TRAINING)

    def timing(self) -> pa.Table:
        """Return where the seconds went (schema ``timing``)."""
        return self._table(TIMING)

    @without_collection()
    def trials(self) -> pa.Table:
        """Return one row per name (schema ``trials``), with a column per swept key and per resolved value."""
        for key in self.keys:
            try:
                if key not in self._contents and self.indexed(key) is None:
                    self.note(key, non_finite_step(self.store, key))
            except (DamagedError, NewerFormatError) as error:
                self.damaged[key] = error.message
        return trials_table(self.names, self._contents)

    def indexed(self, key: str) -> IndexedTrial | None:
        """Return what the index has of the trial *key*, and keep its part of the trials table; None = it is to be read."""
        if key not in self._indexed:
            return None
        trial = self._index.trial(key)
        self._contents[key] = trial.content
        return trial

    def content(self, key: str) -> Content:
        """Return the trial's part of the trials table, once it was noted."""
        return self._contents[key]

    def note(self, key: str, first_non_finite: int | None) -> None:
        """Keep the trial's part of the trials table, given its first non-finite step, so that its files are read once."""
        self._contents[key] = trial_content(key, self.records[key], first_non_finite)

    def write_trials(self) -> str:
        """Rebuild ``trials.parquet``; return its path."""
        sink = io.BytesIO()
        pq.write_table(self.trials(), sink, compression="zstd")
        self.store.folder.write(TRIALS_FILE, sink.getvalue())
        return self.store.folder.path(TRIALS_FILE)

    def _table(self, table: TableSchema) -> pa.Table:
        files = self._whole_files(table)
        for key, reason in self.damaged.items():
            log.warning("trial %s is left out of %s: %s", key, table.name, reason)
        return read_fragments(self.store, table, files)

    def _whole_files(self, table: TableSchema) -> list[str]:
        """Return the files of *table* of the trials whose files of it are as written; note the others."""
        files: list[str] = []
        for key in self.keys:
            # One trial at a time, so that a damaged one is named and left out and the others are read.
            names = self.store.fragments(table, key)
            try:
                read_as_written(self.store.folder, table, names)
                files += names
            except (DamagedError, NewerFormatError) as error:
                self.damaged[key] = error.message
        return files


def open_results(name: str | Path, workspace: Workspace | None = None, *, everything: bool = False) -> Sweep:
    """Open a sweep by name, folder or URI.

    Raises:
        StoreError: there are no results of that name.
    """
    return Sweep(find_results(name, workspace or Workspace.here()), everything=everything)


def find_results(name: str | Path, workspace: Workspace) -> ResultStore:
    """Return where the results of a sweep lie, given its name, folder or URI.

    Raises:
        StoreError: there are no results of that name.
    """
    text = str(name)
    # A URI, or a folder that is there, is taken as it is; anything else is a sweep's name in the workspace.
    if "://" in text or Path(text).is_dir():
        folder = Folder(text)
    else:
        folder = Folder(workspace.results(text))
    if not folder.exists():
        known = Folder(workspace.results_root).folders()
        raise StoreError(f"no results of '{text}' in {workspace.results_root}", hint=nearest(text, known))
    return ResultStore(folder.base, folder.filesystem)


def trial_columns(store: ResultStore, key: str) -> dict[str, list[object]]:
    """Return the columns that :mod:`raysweep.summarize` reads, of one trial."""
    table = read_fragments(store, PROBES, store.fragments(PROBES, key)).select(list(SUMMARY_COLUMNS))
    return {name: table.column(name).to_pylist() for name in SUMMARY_COLUMNS}


def trials_table(names: Iterable[TrialName], contents: Mapping[str, Content]) -> pa.Table:
    """Return the trials table of *names*, ordered by arm and key; *contents* has what does not depend on a name, by key."""
    rows, extras = [], []
    for name in names:
        content, spec = contents[name.key]
        point = json.dumps(dict(name.point), sort_keys=True)
        rows.append({**content, "arm": name.arm, "point": point, "planned": name.planned})
        extras.append({**{f"point.{k}": v for k, v in name.point.items()}, **spec})
    # By content, not by time of writing: the same trials make the same file, byte for byte.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["arm"], rows[i]["trial_key"], rows[i]["point"]))
    rows, extras = [rows[i] for i in order], [extras[i] for i in order]
    arrays = [_strict([r[c.name] for r in rows], c) for c in TRIALS.columns]
    parts = list(TRIALS.arrow)
    # A column per swept key and per resolved value of any trial; null for the trials that do not have it.
    for column in sorted({n for e in extras for n in e}):
        array = inferred([e.get(column) for e in extras])
        arrays.append(array)
        parts.append(pa.field(column, array.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(parts, metadata=TRIALS.arrow.metadata))


def trial_content(key: str, record: TrialRecord, first_non_finite: int | None) -> Content:
    """Return the columns of one trial that do not depend on what it is called, and its resolved values by dotted name."""
    (about, trial), status = record.about(), record.status
    names = ("git_sha", "git_dirty", "raysweep", "python", "torch", "transformers", "ray", "device", "cpu")
    origin = about.provenance
    content = {
        "trial_key": key,
        "status": status.state.value,
        "step": status.step,
        "error": status.error or None,
        "non_finite_step": status.step if first_non_finite is None and status.rule == COLLAPSED else first_non_finite,
        "study": trial.study,
        "model": trial.model.name,
        "editor": trial.editor.label,
        "seed": trial.seed,
        "batch_size": trial.protocol.batch_size,
        "last_round": trial.protocol.rounds[-1],
        "group": _group(trial),
        **{name: origin.get(name) for name in names},
        "threads": trial.threads,
        "model_digest": trial.model.digest,
        "data_digest": trial.data.digest,
    }
    return content, flatten(about.trial, "spec.")


def _group(trial: TrialSpec) -> str:
    """Return a hash that is equal for trials which differ in nothing but the seed."""
    identity = trial.identity()
    # So the hash says "this configuration", which tables pool over.
    del identity["seed"]
    return digest(identity)


def _place(record: TrialRecord, entry: PlannedFile) -> TrialName:
    """Return the name in an entry of ``plan.json``; one without an arm gets the name that the trial was begun with."""
    if entry.arm is None:
        return _begun_as(record, entry.key, planned=True)
    # Plans of raysweep 0.1 name the seed only where it is swept.
    swept_seed = entry.point.get("seed")
    seed = entry.seed if entry.seed is not None or not isinstance(swept_seed, int) else swept_seed
    return TrialName(entry.arm, entry.point, entry.key, seed, entry.rounds)


def _begun_as(record: TrialRecord, key: str, *, planned: bool) -> TrialName:
    """Return the name that a trial had when it was begun, from its ``trial.json``; its key, where that is damaged."""
    if not record.begun:
        return TrialName(key, {}, key, planned=planned)
    about, spec = record.about()
    name = about.begun_as or about
    return TrialName(name.arm, name.point, key, spec.seed, spec.protocol.rounds, planned=planned)


def flatten(value: object, prefix: str) -> dict[str, object]:
    """Return the scalars of nested JSON data under dotted names; a list of scalars becomes JSON text.

    >>> flatten({"a": {"b": 1}, "c": [1, 2]}, "spec.")
    {'spec.a.b': 1, 'spec.c': '[1, 2]'}
    """
    scalars: dict[str, object] = {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            scalars.update(flatten(inner, f"{prefix}{key}."))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for index, inner in enumerate(value):
            scalars.update(flatten(inner, f"{prefix}{index}."))
    else:
        scalars[prefix.removesuffix(".")] = json.dumps(value) if isinstance(value, list) else value
    return scalars


def _strict(values: list[object], column: Column) -> pa.Array:
    array = pa.array(values, type=column.type)
    if array.null_count and not column.nullable:
        raise StoreError(f"{TRIALS.tag}.{column.name} may not be null")
    return array


def seconds_by_step(store: ResultStore, key: str) -> dict[int, float]:
    """Return what each round of one trial took, with all that led up to it."""
    table = read_fragments(store, TIMING, store.fragments(TIMING, key))
    # From the files' names first: a round whose file holds no row is a round, of 0 s.
    seconds = dict.fromkeys((_step_of(name) for name in store.fragments(TIMING, key)), 0.0)
    for row in table.group_by("step").aggregate([("seconds", "sum")]).to_pylist():
        seconds[row["step"]] = row["seconds_sum"]
    return seconds


def _step_of(fragment: str) -> int:
    return int(fragment.rpartition("-")[2].removesuffix(".parquet"))


def seconds_by_phase(timing: pa.Table) -> dict[str, dict[str, tuple[float, int]]]:
    """Return ``{trial_key: {phase: (seconds, count)}}``."""
    by_trial: dict[str, dict[str, tuple[float, int]]] = {}
    columns = (timing[name].to_pylist() for name in ("trial_key", "phase", "seconds", "count"))
    # There are few rows: Arrow's grouping takes longer only to begin with.
    for key, phase, seconds, count in zip(*columns, strict=True):
        phases = by_trial.setdefault(key, {})
        before = phases.get(phase, (0.0, 0))
        phases[phase] = (before[0] + seconds, before[1] + count)
    return by_trial
