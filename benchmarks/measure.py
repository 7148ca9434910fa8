"""What the scripts share: clocks, the machine line, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raysweep.results.provenance import cpu_name, device_name, git_state, installed


@dataclass
class Clock:
    """Wall and process-CPU seconds of the blocks that were timed; CPU seconds add up all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time a block, the accelerator's queue included."""
        _drain()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        _drain()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def mean(self, count: int = 0) -> tuple[float, float]:
        """Return wall and CPU seconds per block, or per each of *count* things; NaN if nothing was timed."""
        number = count or len(self.wall)
        return (sum(self.wall) / number, sum(self.cpu) / number) if number and self.wall else (float("nan"),) * 2

    def median(self) -> tuple[float, float]:
        """Return the medians of wall and CPU seconds."""
        return median(self.wall), median(self.cpu)

    def best(self) -> float:
        """Return the wall seconds of the fastest block."""
        return min(self.wall, default=float("nan"))


def _drain() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    sha, dirty = git_state()
    load: tuple[float, ...] = ()
    with suppress(OSError):
        load = os.getloadavg()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(),
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        "ray": installed("ray"),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "load": [round(x, 2) for x in load],
        "git": f"{(sha or '')[:12]}{'+' if dirty else ''}",
    }


def machine_line(about: Mapping[str, Any]) -> str:
    """Return *about* in one line."""
    return " · ".join(
        [
            f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, device {about['device']}",
            f"torch {about['torch']}, python {about['python']}",
            f"{about['date']}, load {'/'.join(map(str, about['load']))}, git {about['git']}",
        ]
    )


def show(title: str, about: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Print and return the machine line and a Markdown table of *columns*."""
    cells = [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) if cells else len(c) for i, c in enumerate(columns)]
    lines = [
        f"## {title}",
        machine_line(about),
        "",
        "| " + " | ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)) + " |",
        "|" + "|".join("-" * (w + 2) for w in widths) + "|",
        *("| " + " | ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)) + " |" for r in cells),
    ]
    text = "\n".join(lines)
    print(text, flush=True)
    return text


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def write_json(
    file: str, title: str, about: Mapping[str, Any], options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write everything that was measured to *file*; nothing if it is empty."""
    if file:
        data = {"benchmark": title, "machine": dict(about), "options": dict(options), "rows": list(rows)}
        Path(file).write_text(json.dumps(data, indent=1, default=str) + "\n")


def report(
    options: argparse.Namespace,
    title: str,
    about: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Print the table, and write everything to the file that ``--json`` names."""
    show(title, about, columns, rows)
    write_json(options.json, title, about, vars(options), rows)
