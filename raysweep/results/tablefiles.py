"""A round's tables as Parquet files: their bytes, and what a state file notes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import SnapshotError
from raysweep.results.columns import TableSchema
from raysweep.results.folder import Folder
from raysweep.results.schema import TABLES
from raysweep.results.state import checksum
from raysweep.results.statefiles import TableFile
from raysweep.rows import TableRow


def encoded(table: TableSchema, rows: Sequence[TableRow]) -> bytes:
    """Return *rows* as the bytes of a Parquet file: the same rows are the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table.build(rows), sink, compression="zstd")
    return sink.getvalue()


def described(table: TableSchema, step: int, rows: int, data: bytes) -> TableFile:
    """Return what a state file notes of the file of *table* at *step* with *rows* rows and the bytes *data*."""
    return TableFile(table=table.name, step=step, rows=rows, bytes=len(data), blake2b=checksum(data))


def scan(folder: Folder, key: str, last: int, tables: Sequence[TableSchema] = TABLES) -> list[TableFile]:
    """Return what a state file would note of the trial's files of *tables* up to the step *last*, from the files themselves.

    For what no snapshot lists: the timing of earlier sessions, and everything where raysweep 0.1 began the trial.

    Raises:
        SnapshotError: one of them is not Parquet, or holds rows of another trial.
    """
    entries = []
    for table in tables:
        for name in folder.files(key):
            # Our own names only, `probes-000100.parquet`: in a trial's folder lie other files too, and those of later
            # steps.
            head, _, tail = name.rpartition("/")[2].removesuffix(".parquet").rpartition("-")
            if head != table.name or not tail.isdigit() or int(tail) > last:
                continue
            data = folder.read(name)
            try:
                keys = set(pq.read_table(pa.BufferReader(data), columns=["trial_key"])["trial_key"].to_pylist())
                rows = pq.read_metadata(pa.BufferReader(data)).num_rows
            except (pa.ArrowException, OSError) as error:
                raise SnapshotError(f"{folder.path(name)} is truncated or damaged ({error})") from error
            if keys - {key}:
                raise SnapshotError(f"{folder.path(name)} holds rows of {', '.join(sorted(map(str, keys - {key})))}")
            entries.append(described(table, int(tail), rows, data))
    return entries
