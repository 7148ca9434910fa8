"""Fifty million rows: how long ``show``, ``compare``, ``retention`` and ``report`` take of them, and how much memory.

    python -m benchmarks.manyrows --rows 50000000 --folder /var/tmp

Makes a sweep of ten arms with as many seeds as give so many rows: 5,000 facts each, asked at twenty rounds and right after their
edits, with the metrics of the default protocol. Answers are made up: a fact is right until its own time is over, drawn anew for
each arm and seed. Files are as the store writes them, rows in the schema's order; only the Python objects of rows are spared. Then
each command runs in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.results.provenance import provenance
from raysweep.results.schema import PROBES
from raysweep.results.store import ResultStore
from raysweep.results.tablefiles import described
from raysweep.rows import EvalRound, TimingRow

TITLE = "commands on many rows"
COLUMNS = ("command", "rows", "wall s", "cpu s", "peak MB")
FACTS, ROUNDS, ARMS = 5000, 20, 10
QUESTIONS = (
    ("efficacy", ("exact_match", "ppl", "target_logprob", "token_match")),
    ("locality", ("agreement",)),
    ("paraphrase", ("exact_match", "ppl", "target_logprob", "token_match")),
)
NAMES = [(kind, i, metric) for i, (kind, metrics) in enumerate(QUESTIONS) for metric in metrics]
COMMANDS = (["show"], ["show", "--at", "-1"], ["compare"], ["retention"], ["report"])


RUNNER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(done.stdout)
sys.stderr.write(done.stderr)
sys.exit(done.returncode)
"""
# A process between: RUSAGE_CHILDREN has the largest of all children so far.


class Bulk(ResultStore):
    """A store that takes a round's probes as a table."""

    def write_probes(self, key: str, step: int, table: pa.Table) -> None:
        """Write one file of probes, and note it."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", use_dictionary=True)
        file = described(PROBES, step, table.num_rows, sink.getvalue())
        self.folder.write(f"{key}/{file.name}", sink.getvalue())
        self._files.setdefault(key, {})[file.name] = file


def probes(key: str, step: np.ndarray, fact: np.ndarray, lasts: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Return the rows of questions about facts, [n], each at its step; a fact is right for ``lasts`` edits."""
    order = np.lexsort((fact, step))
    step, fact = step[order], fact[order]
    count = len(NAMES)
    right = (step - fact < lasts[fact - 1]).astype(np.float64)
    values = np.empty((len(step), count))
    for column, (_, _, metric) in enumerate(NAMES):
        noisy = np.where(rng.random(len(step)) < 0.05, 1.0 - right, right)
        logprob = -3.0 * (1.0 - noisy) - 0.1 * rng.random(len(step))
        values[:, column] = {"target_logprob": logprob, "ppl": np.exp(-logprob)}.get(metric, noisy)
    n = len(step) * count
    first = np.repeat(fact - 1, count)
    texts: dict[str, tuple[Any, Sequence[str]]] = {
        "trial_key": (np.zeros(n), [key]),
        "record_id": (first, [f"zsre/{i:06d}" for i in range(FACTS)]),
        "probe_kind": (np.tile(np.arange(count), len(step)), [kind for kind, _, _ in NAMES]),
        "probe_name": (np.zeros(n), [""]),
        "metric": (np.tile(np.arange(count), len(step)), [metric for _, _, metric in NAMES]),
        "prompt_digest": (first, [f"{i:016x}" for i in range(FACTS)]),
        "answer": (first % 997, [f"answer {i}" for i in range(997)]),
    }
    numbers: dict[str, Any] = {
        "step": np.repeat(step, count),
        "edit_step": np.repeat(fact, count),
        "superseded_step": pa.nulls(n, pa.int64()),
        "probe_index": np.tile([i for _, i, _ in NAMES], len(step)),
        "value": values.reshape(-1),
        "n_tokens": np.full(n, 3),
    }
    arrays = [
        pa.DictionaryArray.from_arrays(texts[c.name][0].astype(np.int32), pa.array(texts[c.name][1])).cast(c.type)
        if c.name in texts
        else pa.array(numbers[c.name]).cast(c.type)
        for c in PROBES.columns
    ]
    return pa.Table.from_arrays(arrays, schema=PROBES.arrow)


def generate(root: Path, rows: int) -> int:
    """Write the sweep ``many`` below *root* with at least *rows* rows; return how many."""
    rounds = [FACTS * (i + 1) // ROUNDS for i in range(ROUNDS)]
    store, written, planned, seed = Bulk(root / "results" / "many"), 0, [], 0
    while written < rows:
        for arm in range(ARMS):
            rng = np.random.default_rng([seed, arm])
            trial = TrialSpec(
                study="lifelong", model=ModelSpec(digest="m"), data=DataSpec(digest="d"),
                editor=EditorSpec(name="null", config=UnreadConfig(number=arm)), protocol=ProtocolSpec(rounds=tuple(rounds)),
                seed=seed,
            )  # fmt: skip
            store.begin(trial, arm=f"arm{arm}", point={"seed": seed}, provenance=provenance(trial))
            planned.append(
                {"key": trial.key, "arm": f"arm{arm}", "point": {"seed": seed}, "seed": seed, "study": "lifelong"}
            )
            lasts = rng.exponential(800.0 * (arm + 1), FACTS)
            done = 0
            for end in rounds:
                asked = np.arange(1, end + 1)
                fresh = np.arange(done + 1, end)
                table = probes(
                    trial.key, np.concatenate([np.full(end, end), fresh]), np.concatenate([asked, fresh]), lasts, rng
                )
                timing = [
                    TimingRow(trial_key=trial.key, step=end, phase="edit", seconds=float(end - done), count=end - done)
                ]
                store.write_round(trial.key, EvalRound(step=end, rows=(), timing=timing))
                store.write_probes(trial.key, end, table)
                written += table.num_rows
                done = end
            store.finish(trial.key, step=done)
        seed += 1
    store.write_plan({"sweep": "many", "trials": planned, "study": "lifelong"}, "")
    return written


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.manyrows", description=TITLE)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the sweep is written; default: the temporary one"
    )
    parser.add_argument("--keep", action="store_true", help="leave the sweep there, and use one that is there")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    options = parser.parse_args(arguments)
    about = measure.machine()
    with tempfile.TemporaryDirectory(prefix="rs-rows-", dir=options.folder) as scratch:
        root = options.folder / "many" if options.keep and options.folder else Path(scratch)
        made = root / "results" / "many" / "plan.json"
        count = options.rows if made.is_file() else generate(root, options.rows)
        rows = [timed(root, command, count) for command in COMMANDS]
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


def timed(root: Path, command: Sequence[str], count: int) -> dict[str, Any]:
    """Return what one command takes, as a whole process."""
    line = [sys.executable, "-m", "raysweep", "--root", str(root), command[0], "many", *command[1:]]
    line += ["--out", str(root / "many.html")] if command[0] == "report" else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUNNER, *line], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak, _, _ = done.stdout.partition("\n")
    return {
        "command": " ".join(command),
        "rows": count,
        "wall s": wall,
        "cpu s": cpu,
        "peak MB": int(peak) / 1e3,
    }


if __name__ == "__main__":
    main()
