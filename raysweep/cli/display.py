"""What a user sees while a sweep runs: a live display on a terminal, one line per round elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysweep.results.store import HEARTBEAT
from raysweep.summarize import PHASES

SHOWN = ("rel", "gen", "loc")


@dataclass(slots=True)
class Row:
    """A trial as the display knows it."""

    label: str
    total: int
    done: int = 0
    began: float = 0.0
    began_at: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = False


class Display:
    """Shows the progress of a sweep's trials.

    Args:
        labels: what to call each trial, by key.
        totals: edits of each trial, by key.
        printer: prints one plain line.
        folder: where the trials' heartbeats are (None on an object store).
        console: the terminal; None or not a terminal = plain lines.
        finished: edits and trials that earlier runs have done.
        passes: which trials take their edits from one pass: they get on together, though only one is shown as running.
    """

    def __init__(
        self, labels: Mapping[str, str], totals: Mapping[str, int], *, printer: Callable[[str], None],
        folder: Path | None = None, console: Console | None = None, finished: Mapping[str, int] | None = None,
        passes: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.rows = {key: Row(label, totals[key]) for key, label in labels.items()}
        self.passes = passes or {}
        self.printer, self.folder = printer, folder
        self.began = time.monotonic()
        self.before = 0
        for key, step in (finished or {}).items():
            self.rows[key].done, self.rows[key].ended = step, step >= self.rows[key].total
            self.before += step
        self._running: set[str] = set()
        self._live: Live | None = None
        if console is not None and console.is_terminal:
            self._live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=True)

    def begin(self) -> None:
        """Start the clock and the live display."""
        self.began = time.monotonic()
        if self._live is not None:
            self._live.start()

    def end(self) -> None:
        """Take the live display down."""
        if self._live is not None:
            self._live.stop()

    def started(self, key: str) -> None:
        """Note that a trial runs."""
        self._running.add(key)
        self.rows[key].began, self.rows[key].began_at = time.monotonic(), self.rows[key].done

    def round(self, key: str, result: Mapping[str, Any]) -> None:
        """Note a round; print it where there is no live display."""
        row = self.rows[key]
        row.done, row.ended = int(result["step"]), bool(result.get("done"))
        kept = [name for name in result if name.rpartition("/")[2] in SHOWN or name == "non_finite_step"]
        row.summary = {name: result[name] for name in kept}  # no more than is shown: there may be many trials
        if result.get("replayed"):
            row.began = 0.0  # its edits were made in another trial's time
        if self._live is None:
            self.printer(self.line(row, str(result.get("failure", ""))))

    def lost(self, key: str, retried: bool) -> None:
        """Note that a trial's process died."""
        self.printer(f"{self.rows[key].label}: its process died; {'going on' if retried else 'given up'}")

    def stopped(self, key: str) -> None:
        """Note that a trial no longer runs."""
        self._running.discard(key)

    def line(self, row: Row, failure: str = "") -> str:
        """Return one round as a plain line."""
        if failure:
            return f"{row.label}: FAILED at {row.done}/{row.total}: {failure.splitlines()[0]}"
        ended = sum(r.ended for r in self.rows.values())
        head = f"[{ended}/{len(self.rows)}] {row.label}: {row.done}/{row.total} edits"
        return f"{head}{_scores(row.summary)}{self._pace(row)}"

    def _pace(self, row: Row) -> str:
        seconds, edits = time.monotonic() - row.began, row.done - row.began_at
        return f"  {edits / seconds:.2g} edits/s" if row.began and edits > 0 and seconds > 0 else ""

    def render(self) -> Group:
        """Return the live display: one line for the sweep, one per running trial."""
        beats = {key: self._beat(key) for key in self._running}
        live = {key: max(self.rows[key].done, done) for key, (done, _) in beats.items()}
        moving = {self.passes.get(key, key): done for key, done in live.items()}
        done = sum(max(row.done, moving.get(self.passes.get(key, key), 0)) for key, row in self.rows.items())
        total = sum(row.total for row in self.rows.values())
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (done - self.before) / seconds
        left = f"ETA {_clock((total - done) / rate)}" if rate > 0 and done > self.before else "ETA –"
        ended = sum(row.ended for row in self.rows.values())
        head = (
            f"trials {ended}/{len(self.rows)}   edits {done}/{total}   {rate:.2f} edits/s   {_clock(seconds)}   {left}"
        )
        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(overflow="fold")
        for key in sorted(live):
            row = self.rows[key]
            table.add_row(row.label, f"{live[key]}/{row.total}", _scores(row.summary).strip(), beats[key][1])
        return Group(Text(head, style="bold"), table)

    def _beat(self, key: str) -> tuple[int, str]:
        """Return how many edits a running trial has made, and what it is doing."""
        if self.folder is None:
            return 0, ""
        try:
            found = json.loads((self.folder / key / HEARTBEAT).read_text())
            return int(found["done"]), str(found["doing"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""


def _scores(result: Mapping[str, Any]) -> str:
    """Return a round's Rel, Gen and Loc in the first phase that it has, and from where on it is not finite."""
    phase = next((p for p in PHASES if any(f"{p}/{view}" in result for view in SHOWN)), "")
    parts = [f"{v.capitalize()} {float(result[f'{phase}/{v}']):.2f}" for v in SHOWN if f"{phase}/{v}" in result]
    if result.get("non_finite_step") is not None:
        parts.append(f"not finite from step {int(result['non_finite_step'])}")
    return "  " + " ".join(parts) if parts else ""


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
