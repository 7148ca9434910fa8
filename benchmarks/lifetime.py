"""One trial of a hundred thousand edits: what an edit costs as they pile up, what memory is held, and that a killed run goes on.

    python -m benchmarks.lifetime --edits 100000
    python -m benchmarks.lifetime --edits 2000 --editor grace

A random model of three blocks and made-up facts, as many as are asked for: the numbers are those of the machinery, not of a model.
The trial runs in a process of its own. At the round at nine tenths its folder is copied, which is what a process that is killed
there leaves; a second process goes on from the copy, is killed by SIGKILL in the middle of its next edits, and a third ends the
trial. Its tables and the hash of its last weights are compared with those of the first, which nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import measure
from benchmarks.driver import resident
from raysweep.config.load import parse_value
from raysweep.config.plan import plan
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.sweep import parse_search_space
from raysweep.errors import RunFailedError
from raysweep.results.fragments import read_fragments
from raysweep.results.runner import run_trial
from raysweep.results.schema import TIMING
from raysweep.results.store import ResultStore
from raysweep.studies.base import Progress
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.models.lm import LanguageModel

TITLE = "a lifetime of edits in one trial"
COLUMNS = (
    "editor",
    "edits",
    "edit ms",
    "edit cpu ms",
    "x first",
    "MB",
    "peak MB",
    "snapshot MB",
    "snapshot ms",
    "snapshot %",
)
EDITORS = {
    "ft": "{name: ft, layers: [1], steps: 2, lr: 1.0e-3}",
    "grace": "{name: grace, layer: 1, steps: 3, lr: 1.0, radius: 1.0}",
}
SIMIE = "{name: simie, lam: 10}"
LONG = 1000  # edits from which on the run is killed well within its last tenth, and not at its beginning
WAIT = 0.05  # seconds between two looks at a run


def write_model(folder: Path, width: int) -> None:
    """Write a random Llama of three blocks with a byte tokenizer."""
    from safetensors.torch import save_file

    from raysweep.testing.fixtures import byte_tokenizer
    from raysweep.testing.layout_contract import tiny_model

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 4}
    module = tiny_model("llama", vocab_size=258, max_position_embeddings=128, **sizes)
    module.config.save_pretrained(folder)
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer(bos=True).save_pretrained(folder)


def write_facts(file: Path, count: int) -> None:
    """Write *count* different questions with made-up answers, in the ZsRE format."""
    rows = []
    for number in range(count):
        name, answer = f"n{number:06d}", hashlib.blake2b(str(number).encode()).hexdigest()[:2]
        rows.append({"subject": name, "src": f"The pet of {name} is", "alt": answer})
    file.write_text(json.dumps(rows))


def planned(root: Path, edits: int, editor: str, wrap: str, rounds: Sequence[int]) -> tuple[PlannedTrial, Workspace]:
    """Return the trial, and the workspace that holds its model and its data."""
    arm = {"editor": parse_value(EDITORS.get(editor, editor), "--editor")}
    tree = {
        "sweep": "lifetime",
        "base": {
            "model": {"name": "tiny", "path": str(root / "tiny")},
            "data": {"name": "zsre", "path": str(root / "facts.json"), "size": edits},
            "protocol": {"rounds": list(rounds), "immediate": False, "probes": ["efficacy"], "eval_batch": 512},
        },
        "arms": {"one": arm | ({"wrap": parse_value(wrap, "--wrap")} if wrap else {})},
    }
    workspace = Workspace(root)
    return plan(parse_search_space(tree, file="flags"), workspace).trials[0], workspace


class Notes:
    """What the process of a trial writes down at each round: its clocks, its memory, and the hash of the weights."""

    def __init__(self, file: Path) -> None:
        self.file, self.start = file, (time.perf_counter(), time.process_time())
        self.store_seconds: list[float] = []
        self.snapshot_bytes = 0
        self.edits_began: float | None = None
        self.edit_cpu = 0.0
        self.edited, self.told = file.with_suffix(".edits"), False

    def watch(self, store: ResultStore) -> None:
        """Measure the snapshots that *store* writes."""
        write = store.write_snapshot

        def timed(key: str, snapshot: object, **options: object) -> object:
            start = time.perf_counter()
            written = write(key, snapshot, **options)  # type: ignore[arg-type]
            self.store_seconds.append(time.perf_counter() - start)
            self.snapshot_bytes = sum(
                store.folder.sizes(key)[n] for n in store.folder.sizes(key) if n.startswith("snapshot")
            )
            return written

        store.write_snapshot = timed  # type: ignore[assignment,method-assign]

    def progress(self, told: Progress) -> None:
        """Count the CPU seconds of edits: from the first one after a round to the next round."""
        now = time.process_time()
        if told.doing == "edit" and self.edits_began is None:
            self.edits_began = now
        elif told.doing == "edit" and not self.told:
            self.edited.touch()
            self.told = True
        elif told.doing == "round" and self.edits_began is not None:
            self.edit_cpu, self.edits_began = now - self.edits_began, None

    def observe(self, lm: LanguageModel, step: int) -> None:
        """Hash the weights at a round."""
        whole = hashlib.blake2b(digest_size=16)
        for _, weight in sorted(lm.module.state_dict().items()):
            whole.update(weight.detach().cpu().contiguous().numpy().tobytes())
        self.weights = whole.hexdigest()

    def round(self, step: int) -> None:
        """Write down where the process is after the round of *step*."""
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        note = {
            "step": step, "wall": wall, "cpu": cpu, "edit cpu s": self.edit_cpu, "weights": self.weights,
            "MB": resident(), "peak MB": resident("VmHWM"), "snapshot MB": self.snapshot_bytes / 1e6,
            "snapshot s": sum(self.store_seconds),
        }  # fmt: skip
        self.store_seconds, self.snapshot_bytes = [], 0  # none is written at the last round
        with self.file.open("a") as out:
            out.write(json.dumps(note) + "\n")


def work(options: argparse.Namespace) -> None:
    """Run the trial in this process, to its end or until it is killed."""
    torch.set_num_threads(1)
    job, workspace = planned(options.root, options.edits, options.editor, options.wrap, marks(options.edits))
    store, notes = ResultStore(options.work), Notes(options.work.with_suffix(".jsonl"))
    notes.watch(store)
    for report in run_trial(job, replace(make_deps(workspace, notes.progress), observe=notes.observe), store):
        if report.error:
            raise RunFailedError(report.error)
        notes.round(report.step)


def marks(edits: int) -> list[int]:
    """Return the rounds: after the first hundredth, at three, six and nine tenths, at the end."""
    return sorted({max(edits // 100, 1), edits * 3 // 10, edits * 6 // 10, edits * 9 // 10, edits})


def _start(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    words = ["--work", str(folder), "--root", str(options.root), "--edits", str(options.edits)]
    words += ["--editor", options.editor, "--wrap", options.wrap]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.lifetime", *words])


def _edits(folder: Path) -> Path:
    """Return the file that is there once the run in *folder* has made an edit."""
    return folder.with_suffix(".edits")


def _notes(folder: Path) -> list[dict[str, object]]:
    file = folder.with_suffix(".jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise RunFailedError(f"the trial's process ended with {process.returncode}")


def lifetime(options: argparse.Namespace) -> list[dict[str, object]]:
    """Run the trial undisturbed, then its last tenth once more with a SIGKILL in it; return the rows."""
    straight, resumed = options.root / "straight", options.root / "resumed"
    at = options.edits * 9 // 10
    process = _start(options, straight)
    # The file of the next round is written seconds later, so nothing is half copied.
    while process.poll() is None and not any(note["step"] == at for note in _notes(straight)):
        time.sleep(WAIT)
    if options.resume:
        shutil.copytree(straight, resumed)
        began = time.perf_counter()
        _finish(process)
        tenth = time.perf_counter() - began
        _edits(resumed).unlink(missing_ok=True)
        killed = _start(options, resumed)
        # Its first edits, and a third of what the whole stretch took: in the middle of its edits or of the last questions.
        while killed.poll() is None and not _edits(resumed).exists():
            time.sleep(WAIT / 10)
        time.sleep(tenth / 3 if options.edits >= LONG else 0)
        if killed.poll() is not None:
            raise RunFailedError("the run was over before it could be killed")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        again = _start(options, resumed)
        _finish(again)
        _compare(straight, resumed)
    else:
        _finish(process)
    return rows(options, straight)


def _compare(straight: Path, resumed: Path) -> None:
    first, second = (
        {str(p.relative_to(f)): p.read_bytes() for p in sorted(f.rglob("*.parquet")) if not p.name.startswith("timing")}
        for f in (straight, resumed)
    )
    if first != second:
        differ = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
        raise AssertionError(f"the resumed run wrote other tables: {', '.join(sorted(differ))}")
    if _notes(straight)[-1]["weights"] != _notes(resumed)[-1]["weights"]:
        raise AssertionError("the resumed run ended with other weights")
    print(
        f"resumed: {len(first)} tables and the last weights ({_notes(straight)[-1]['weights']}) are equal, byte for byte"
    )


def rows(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Return a row per round: what an edit took since the last one, by the trial's own timing, and what is held."""
    store = ResultStore(folder)
    (key,) = store.keys()
    seconds: dict[int, dict[str, tuple[float, int]]] = {}
    for row in read_fragments(store, TIMING, store.fragments(TIMING, key)).to_pylist():
        seconds.setdefault(row["step"], {})[row["phase"]] = (row["seconds"], row["count"])
    found: list[dict[str, object]] = []
    first = 0.0
    for note in _notes(folder):
        phases = seconds[int(str(note["step"]))]
        edited, count = phases["edit"]
        each, cpu = (edited + phases["apply"][0]) / count, float(str(note["edit cpu s"])) / count
        first = first or cpu
        written = float(str(note["snapshot s"])) + phases["snapshot"][0]
        found.append({
            "editor": options.label, "edits": note["step"], "edit ms": 1000 * each, "edit cpu ms": 1000 * cpu,
            "x first": cpu / first,
            "MB": note["MB"], "peak MB": note["peak MB"], "snapshot MB": note["snapshot MB"], "snapshot ms": 1000 * written,
            "snapshot %": 100 * written / (written + each * count),
        })  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Measure what the command line asks for; return the rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.lifetime", description=TITLE)
    parser.add_argument("--edits", type=int, default=100_000)
    parser.add_argument("--editor", default="ft", help=f"{', '.join(EDITORS)}, or as in a search space")
    parser.add_argument("--wrap", default=None, help="as in a search space; empty = none; default: SimIE for ft")
    parser.add_argument("--width", type=int, default=32, help="of the model's stream; its MLP is twice as wide")
    parser.add_argument("--no-resume", dest="resume", action="store_false", help="leave out the run that is killed")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the workspace, which is left there")
    parser.add_argument("--json", default="", help="write the numbers to this file")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.wrap is None:
        options.wrap = SIMIE if options.editor == "ft" else ""
    if options.work is not None:
        work(options)
        return []
    about = measure.machine()
    options.label = options.editor + ("+wrapped" if options.wrap else "")
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        options.root = options.keep or Path(scratch)
        options.root.mkdir(parents=True, exist_ok=True)
        write_model(options.root / "tiny", options.width)
        write_facts(options.root / "facts.json", options.edits)
        found = lifetime(options)
    measure.show(TITLE, about, COLUMNS, found)
    measure.write_json(options.json, TITLE, about, vars(options), found)
    return found


if __name__ == "__main__":
    main()
