"""The results store: how fast rounds, snapshots and statuses are written and read.

    python -m benchmarks.store --trials 50 --records 1000

The yardstick of a round is the same Arrow table written once by pyarrow to the same disk, without a check, a sync or a rename;
that of a snapshot the same bytes written likewise.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from benchmarks import measure
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.reports.views import summary_rows, trial_views
from raysweep.results.provenance import provenance
from raysweep.results.schema import PROBES
from raysweep.results.store import ResultStore
from raysweep.results.tables import open_results
from raysweep.rows import EvalRound, ProbeRow, Snapshot

TITLE = "the results store"
COLUMNS = ("what", "count", "size", "s each", "rate", "x plain")
QUESTIONS = (("efficacy", "token_match"), ("paraphrase", "token_match"), ("locality", "agreement"))


def trial(seed: int, rounds: Sequence[int]) -> TrialSpec:
    """Return a trial of the editor that does nothing."""
    return TrialSpec(
        study="lifelong", model=ModelSpec(digest="m"), data=DataSpec(digest="d"), editor=EditorSpec(name="null"),
        protocol=ProtocolSpec(rounds=tuple(rounds)), seed=seed,
    )  # fmt: skip


def rows_of(key: str, step: int, records: int) -> list[ProbeRow]:
    """Return three rows per record, such as a round yields."""
    return [
        ProbeRow(
            trial_key=key, step=step, record_id=f"zsre/{i:06d}", edit_step=i + 1, superseded_step=None, probe_kind=kind,
            probe_name="", probe_index=j, metric=metric, value=(i * 7 + j) % 97 / 97, n_tokens=3,
            prompt_digest=f"{i:016x}", answer=f"answer {i}",
        )
        for i in range(records)
        for j, (kind, metric) in enumerate(QUESTIONS)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.store", description=TITLE)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=1000, help="records per round, three rows each")
    parser.add_argument("--snapshot", type=int, default=64, help="MiB of a snapshot")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the temporary one")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    about = measure.machine()
    with tempfile.TemporaryDirectory(prefix="rs-bench-", dir=options.folder) as scratch:
        rows = measured(options, Path(scratch))
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


def measured(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return a row per kind of work."""
    store = ResultStore(folder / "results")
    steps = [options.records * (i + 1) for i in range(options.rounds)]
    trials = [trial(seed, steps) for seed in range(options.trials)]
    begin, write, plain, end = (measure.Clock() for _ in range(4))
    for one in trials:
        with begin.timed():
            store.begin(one, arm="null", point={"seed": one.seed}, provenance=provenance(one))
        for step in steps:
            made = rows_of(one.key, step, options.records)
            with write.timed():
                store.write_round(one.key, EvalRound(step=step, rows=made))
            table = PROBES.build(made)
            with plain.timed():
                pq.write_table(table, folder / f"plain-{one.seed}-{step}.parquet", compression="zstd")
        with end.timed():
            store.finish(one.key, step=steps[-1])
    count = len(made)
    rows = [
        _row("begin a trial", begin, "", 1, "trials/s"),
        _row("write a round", write, f"{count} rows", count, "rows/s", plain),
        _row("end a trial", end, "", 1, "trials/s"),
        *_snapshots(options, store, folder),
    ]
    read, plain, view, status = (measure.Clock() for _ in range(4))
    with read.timed():
        total = open_results(folder / "results").probes().num_rows
    with plain.timed():
        same = ds.dataset([str(p) for p in folder.glob("plain-*.parquet")]).to_table().num_rows
    if total != same:
        raise AssertionError(f"the store has {total} rows, the yardstick {same}")
    with view.timed():
        summary_rows(trial_views(open_results(folder / "results")))
    for one in trials:
        with status.timed():
            store.status(one.key)
    return [
        *rows,
        _row("read all rounds", read, f"{total} rows", total, "rows/s", plain),
        _row("raysweep show", view, f"{total} rows", total, "rows/s"),
        _row("ask for a status", status, "", 1, "trials/s"),
    ]


def _snapshots(options: argparse.Namespace, store: ResultStore, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of writing a snapshot, pointing to one that a pass shares, and reading it back."""
    tensors = {"state/gram": torch.zeros(options.snapshot, 1 << 17, dtype=torch.float64)}
    write, point, read, plain = (measure.Clock() for _ in range(4))
    first, second = (trial(seed, [4]) for seed in (-1, -2))
    for one in (first, second):
        store.begin(one, arm="null", point={}, provenance=provenance(one))
    for step in (1, 2, 3):
        snapshot = Snapshot(step=step, tensors=tensors, meta={})
        with write.timed():
            written = store.write_snapshot(first.key, snapshot, group="bench")
        with point.timed():
            store.write_snapshot(second.key, snapshot, group="bench", tensors=written)
        with plain.timed():
            save_file(tensors, folder / "plain.safetensors")
        with read.timed():
            store.latest_snapshot(second.key)
    for one in (first, second):
        store.forget(one.key)
    size = f"{options.snapshot} MiB"
    return [
        _row("write a snapshot", write, size, options.snapshot, "MiB/s", plain),
        _row("… for a further trial of a pass", point, size, options.snapshot, "MiB/s"),
        _row("read a snapshot", read, size, options.snapshot, "MiB/s"),
    ]


def _row(
    what: str, clock: measure.Clock, size: str, units: int, unit: str, plain: measure.Clock | None = None
) -> dict[str, Any]:
    each = clock.median()[0]
    rate = f"{units / each:,.0f} {unit}"
    row: dict[str, Any] = {"what": what, "count": len(clock.wall), "size": size, "s each": each, "rate": rate}
    return row | ({"x plain": each / plain.median()[0]} if plain else {}) | {"wall": clock.wall}


if __name__ == "__main__":
    main()
