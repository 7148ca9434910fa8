"""Reading the Parquet files of one table: many small ones as one, whatever version each was written in."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raysweep.errors import DamagedError
from raysweep.results.schema import TableSchema, upgrade, version_of
from raysweep.results.store import ResultStore
from raysweep.results.verified import damaged_error, demand_as_written


def read_fragments(
    store: ResultStore, table: TableSchema, names: Sequence[str], *, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the fragments *names* as one table, in that order; only *columns* of it, if given.

    Raises:
        DamagedError: a fragment is truncated, of another table or trial, or not as it was written.
        NewerFormatError: it is of a newer version.
    """
    demand_as_written(store.folder, table, names)
    wanted = list(columns or table.arrow.names)
    by_version: dict[int, list[str]] = {}
    for name in names:
        path = store.folder.path(name)
        by_version.setdefault(version_of(_footer(store, name), table, path), []).append(path)
    parts = []
    for version, paths in sorted(by_version.items()):
        try:
            parts.append(_read(store, table, version, paths, wanted))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(store, _first_bad(store, names), error) from error
    whole: pa.Table = pa.concat_tables(parts) if parts else table.arrow.empty_table().select(wanted)
    return whole


def _read(store: ResultStore, table: TableSchema, version: int, paths: Sequence[str], columns: list[str]) -> pa.Table:
    """Return *columns* of files of one *version*, brought to the current one."""
    current = version == table.version
    found = ds.dataset(
        paths, schema=table.arrow if current else None, format="parquet", filesystem=store.folder.filesystem
    )
    if current:
        return found.to_table(columns=columns)
    return upgrade(found.to_table(), table, version).select(columns)


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


def _unreadable(store: ResultStore, name: str, error: Exception) -> DamagedError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    key, _, file = name.partition("/")
    return damaged_error(store.folder, key, [file], f"truncated or damaged ({reason})")
