"""A sweep's results as Arrow tables; reading needs neither Ray nor torch."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raysweep.config.schema import TrialSpec
from raysweep.errors import DamagedError, NewerFormatError, StoreError, nearest
from raysweep.results.drivers import drivers_at_work
from raysweep.results.folder import Folder
from raysweep.results.schema import (
    BELIEFS,
    POINTS,
    PROBES,
    STATS,
    TABLES,
    TIMING,
    TRAINING,
    TRIALS,
    TableSchema,
    upgrade,
    version_of,
)
from raysweep.results.state import TrialRecord, examine
from raysweep.results.store import ResultStore
from raysweep.results.verified import damaged_error, demand_as_written
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

SUMMARY_COLUMNS = ("step", "edit_step", "superseded_step", "record_id", "probe_kind", "metric", "value")
TRIALS_FILE = "trials.parquet"


class Sweep:
    """Everything one sweep has measured so far, but for trials whose files are damaged: those are named and left out.

    Attributes:
        store: where it lies.
        planned: how many trials the latest plan has; 0 if there is no plan.
        records: what the folder of each trial of the latest plan (or ever begun) says about it.
        damaged: why a trial is left out, by key: its files are damaged, or of a newer raysweep.
        arms: the arm of each of them.
    """

    def __init__(self, store: ResultStore, *, everything: bool = False) -> None:
        self.store = store
        plan = store.plan() or {}
        order = [t["key"] for t in plan.get("trials", [])]
        self.planned = len(order)
        self.search: Mapping[str, Any] = plan.get("search", {})
        drivers = drivers_at_work(store.folder)
        wanted = dict.fromkeys(order) if order and not everything else store.keys()
        self.records = {key: examine(store.folder, key, drivers=drivers) for key in wanted}
        self.damaged = {key: r.status.reason for key, r in self.records.items() if r.status.reason}
        begun = {key: r.about.arm for key, r in self.records.items() if r.about is not None}
        self.arms: Mapping[str, str] = {**begun, **{t["key"]: t["arm"] for t in plan.get("trials", [])}}
        self.name = str(plan.get("sweep") or store.folder.base.rpartition("/")[2])

    @property
    def keys(self) -> tuple[str, ...]:
        """The undamaged trials that have begun, of the latest plan (or ever, if opened with ``everything``)."""
        return tuple(k for k, r in self.records.items() if r.about is not None and k not in self.damaged)

    def leave_out_altered(self) -> None:
        """Compare every file of every trial with what was written; the trials whose files were altered go to :attr:`damaged`."""
        for table in (t for t in TABLES if t is not TRIALS):
            self._whole_files(table)

    def probes(self) -> pa.Table:
        """Return every measured value (schema ``probes``)."""
        return self._table(PROBES)

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

    def trials(self) -> pa.Table:
        """Return one row per trial (schema ``trials``), with a column per swept key and per resolved value."""
        return trials_table(self.store, self.keys, self.records)

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
        return _read(self.store, table, files)

    def _whole_files(self, table: TableSchema) -> list[str]:
        """Return the files of *table* of the trials whose files of it are as written; note the others."""
        files: list[str] = []
        for key in self.keys:
            names = self.store.fragments(table, key)
            try:
                demand_as_written(self.store.folder, table, names)
                files += names
            except (DamagedError, NewerFormatError) as error:
                self.damaged[key] = error.message
        return files


def open_sweep(name: str | Path, workspace: Workspace | None = None, *, everything: bool = False) -> Sweep:
    """Open a sweep by name, folder or URI.

    Raises:
        StoreError: there are no results of that name.
    """
    workspace = workspace or Workspace.here()
    text = str(name)
    if "://" in text or Path(text).is_dir():
        folder = Folder(text)
    else:
        folder = Folder(workspace.results(text))
    if not folder.exists():
        known = Folder(workspace.results_root).folders()
        raise StoreError(f"no results of '{text}' in {workspace.results_root}", hint=nearest(text, known))
    return Sweep(ResultStore(folder.base, folder.filesystem), everything=everything)


def read_fragments(store: ResultStore, table: TableSchema, names: Sequence[str]) -> pa.Table:
    """Return the fragments *names* as one table, in that order.

    Raises:
        StoreError: a fragment is truncated, of another trial, table or newer version, or not as it was written.
    """
    demand_as_written(store.folder, table, names)
    return _read(store, table, names)


def _read(store: ResultStore, table: TableSchema, names: Sequence[str]) -> pa.Table:
    filesystem = store.folder.filesystem
    by_version: dict[int, list[str]] = {}
    for name in names:
        path = store.folder.path(name)
        by_version.setdefault(version_of(_footer(store, name), table, path), []).append(path)
    parts = []
    for version, paths in sorted(by_version.items()):
        schema = table.arrow if version == table.version else None
        found = ds.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)
        try:
            parts.append(upgrade(found.to_table(), table, version))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(store, _first_bad(store, names), error) from error
    whole: pa.Table = pa.concat_tables(parts) if parts else table.arrow.empty_table()
    return whole


def _footer(store: ResultStore, name: str) -> pa.Schema:
    try:
        return pq.read_schema(store.folder.path(name), filesystem=store.folder.filesystem)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(store, name, error) from error


def _first_bad(store: ResultStore, names: Sequence[str]) -> str:
    for name in names:
        try:
            pq.read_table(store.folder.path(name), filesystem=store.folder.filesystem)
        except (pa.ArrowException, OSError):
            return name
    return names[0]


def _unreadable(store: ResultStore, name: str, error: Exception) -> StoreError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    key, _, file = name.partition("/")
    return damaged_error(store.folder, key, [file], f"truncated or damaged ({reason})")


def trial_columns(store: ResultStore, key: str) -> dict[str, list[Any]]:
    """Return the columns that :mod:`raysweep.summarize` reads, of one trial."""
    table = read_fragments(store, PROBES, store.fragments(PROBES, key)).select(list(SUMMARY_COLUMNS))
    return {name: table.column(name).to_pylist() for name in SUMMARY_COLUMNS}


def trials_table(store: ResultStore, keys: Iterable[str], records: Mapping[str, TrialRecord] | None = None) -> pa.Table:
    """Return the trials table of *keys*, ordered by arm and key; *records* are what their folders say, if that is known.

    Raises:
        StoreError: one of them was never begun, or its ``trial.json`` is damaged.
    """
    rows, extras = [], []
    for key in keys:
        record = (records or {}).get(key) or examine(store.folder, key)
        if record.about is None or record.spec is None:
            raise StoreError(record.status.reason or f"{store.folder.path(key)} holds no trial")
        about, trial, status = record.about.model_dump(), record.spec, record.status
        rows.append(
            {**_fixed(trial, about), "status": status.state.value, "step": status.step, "error": status.error or None}
        )
        point = {f"point.{k}": v for k, v in about["point"].items()}
        extras.append({**point, **flatten(about["trial"], "spec.")})
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["arm"], rows[i]["trial_key"]))
    rows, extras = [rows[i] for i in order], [extras[i] for i in order]
    arrays = [_strict([r[c.name] for r in rows], c.type, c.name, c.nullable) for c in TRIALS.columns]
    parts = list(TRIALS.arrow)
    for name in sorted({n for e in extras for n in e}):
        array = _inferred([e.get(name) for e in extras])
        arrays.append(array)
        parts.append(pa.field(name, array.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(parts, metadata=TRIALS.arrow.metadata))


def _fixed(trial: TrialSpec, about: Mapping[str, Any]) -> dict[str, Any]:
    names = ("git_sha", "git_dirty", "raysweep", "python", "torch", "transformers", "ray", "device", "cpu")
    origin = about["provenance"]
    return {
        "trial_key": about["key"],
        "arm": about["arm"],
        "study": trial.study,
        "model": trial.model.name,
        "editor": trial.editor.label,
        "seed": trial.seed,
        "batch_size": trial.protocol.batch_size,
        "last_round": trial.protocol.rounds[-1],
        "group": about["group"],
        "point": json.dumps(about["point"], sort_keys=True),
        **{name: origin.get(name) for name in names},
        "threads": trial.threads,
        "model_digest": trial.model.digest,
        "data_digest": trial.data.digest,
    }


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Return the scalars of nested JSON data under dotted names; a list of scalars becomes JSON text.

    >>> flatten({"a": {"b": 1}, "c": [1, 2]}, "spec.")
    {'spec.a.b': 1, 'spec.c': '[1, 2]'}
    """
    found: dict[str, Any] = {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            found.update(flatten(inner, f"{prefix}{key}."))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for index, inner in enumerate(value):
            found.update(flatten(inner, f"{prefix}{index}."))
    else:
        found[prefix.removesuffix(".")] = json.dumps(value) if isinstance(value, list) else value
    return found


def _strict(values: list[Any], kind: pa.DataType, name: str, nullable: bool) -> pa.Array:
    array = pa.array(values, type=kind)
    if array.null_count and not nullable:
        raise StoreError(f"{TRIALS.tag}.{name} may not be null")
    return array


def _inferred(values: list[Any]) -> pa.Array:
    """Return *values* in the one type they share, numbers as float64 if mixed, anything else as JSON text."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {int, float}:
        values = [None if v is None else float(v) for v in values]
    elif len(kinds) > 1:
        values = [None if v is None else json.dumps(v) for v in values]
    return pa.array(values, type=pa.string() if not kinds else None)


def seconds_by_step(store: ResultStore, key: str) -> dict[int, float]:
    """Return what each round of one trial took, with all that led up to it."""
    table = read_fragments(store, TIMING, store.fragments(TIMING, key))
    found = dict.fromkeys((_step_of(name) for name in store.fragments(TIMING, key)), 0.0)
    for row in table.group_by("step").aggregate([("seconds", "sum")]).to_pylist():
        found[row["step"]] = row["seconds_sum"]
    return found


def _step_of(fragment: str) -> int:
    return int(fragment.rpartition("-")[2].removesuffix(".parquet"))


def seconds_by_phase(timing: pa.Table) -> dict[str, dict[str, tuple[float, int]]]:
    """Return ``{trial_key: {phase: (seconds, count)}}``."""
    sums = timing.group_by(["trial_key", "phase"]).aggregate([("seconds", "sum"), ("count", "sum")])
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for row in sums.to_pylist():
        found.setdefault(row["trial_key"], {})[row["phase"]] = (row["seconds_sum"], row["count_sum"])
    return found
