"""Reading the Parquet files of one table: many small ones as one, whatever version each was written in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import DamagedError
from raysweep.results.columns import TableSchema
from raysweep.results.schema import upgrade, version_of
from raysweep.results.store import ResultStore
from raysweep.results.verified import damaged_error, read_as_written

# Files from which on they are decoded by several threads; for fewer, starting the threads takes longer.
_MANY = 64


def read_fragments(
    store: ResultStore, table: TableSchema, names: Sequence[str], *, columns: Sequence[str] | None = None,
    coded: Sequence[str] = (),
) -> pa.Table:  # fmt: skip
    """Return the fragments *names* as one table, in that order; only *columns* of it, if given.

    A trial has few files, of few rows each, so each is read once and decoded by one thread: a ``pyarrow.dataset`` over them takes
    several times as long.

    Args:
        store: where they lie.
        table: what they are of.
        names: their names, relative to the store's folder.
        columns: what is read of them; None = all.
        coded: columns of texts that are left as the file has them, numbers and a dictionary, where it is of the current version:
            of many rows the texts themselves would take most of the memory.

    Raises:
        DamagedError: a fragment is truncated, of another table or trial, or not as it was written.
        NewerFormatError: it is of a newer version.
    """
    data = read_as_written(store.folder, table, names)
    column_names = list(columns or table.arrow.names)

    def read(name: str) -> pa.Table:
        # pop: the bytes of a file are given back as soon as it is decoded.
        return _decoded(store, table, name, data.pop(name), column_names, coded)

    if len(names) < _MANY:
        parts = [read(name) for name in names]
    else:
        with ThreadPoolExecutor() as pool:
            parts = list(pool.map(read, names))
    if len({part.schema for part in parts}) > 1:  # some are of an older version
        parts = [part.cast(pa.schema([table.arrow.field(name) for name in column_names])) for part in parts]
    whole: pa.Table = pa.concat_tables(parts) if parts else table.arrow.empty_table().select(column_names)
    return whole


def _decoded(
    store: ResultStore, table: TableSchema, name: str, data: bytes, columns: Sequence[str], coded: Sequence[str]
) -> pa.Table:
    """Return *columns* of the file *name*, which holds *data*, brought to the current version of *table*."""
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            schema = file.schema_arrow
            version = version_of(schema, table, store.folder.path(name))
            if version < table.version:
                # An upgrade may need columns that were not asked for.
                return upgrade(file.read(use_threads=False), table, version).select(columns)
            if schema.equals(table.arrow):
                # The usual case; only the columns that were asked for are decoded.
                if coded:
                    with pq.ParquetFile(
                        pa.BufferReader(data),
                        metadata=file.metadata,
                        read_dictionary=[c for c in coded if c in columns],
                    ) as of_codes:
                        return of_codes.read(columns=columns, use_threads=False).select(columns)
                return file.read(columns=columns, use_threads=False).select(columns)
            # Of this version, but not exactly of this schema.
            return _conformed(file.read(use_threads=False), table).select(columns)
    # ValueError: nulls, or no column, where a value is a must.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(store, name, error) from error


def _conformed(data: pa.Table, table: TableSchema) -> pa.Table:
    """Return *data* with the columns and types of *table*: a column that is missing is null, a further one is dropped."""
    # Permissive: a column that holds only nulls takes the schema's type, and a narrower number widens.
    merged = pa.concat_tables([table.arrow.empty_table(), data], promote_options="permissive")
    return merged.select(table.arrow.names).cast(table.arrow)


def _unreadable(store: ResultStore, name: str, error: Exception) -> DamagedError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    key, _, file = name.partition("/")
    return damaged_error(store.folder, key, [file], f"truncated or damaged ({reason})")
