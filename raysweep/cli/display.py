"""What a user sees while a sweep runs: a live display on a terminal, one line per round elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysweep.reports.prose import brief
from raysweep.results.store import HEARTBEAT
from raysweep.summarize import PHASES
from raysweep.tune.watcher import Watcher

SHOWN = ("rel", "gen", "loc")
POLL = 1.0  # seconds between two looks at the heartbeats, without a live display
QUIET = 30.0  # seconds without a line after which there is one


@dataclass(frozen=True, slots=True)
class Beat:
    """A trial's last sign of life: edits made, what it is doing, and how many steps of how many of that (None = not counted)."""

    done: int = 0
    doing: str = ""
    steps: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Return ``training the model, step 3 of 9``."""
        return f"{self.doing}, step {self.steps[0]} of {self.steps[1]}" if self.steps else self.doing


@dataclass(slots=True)
class Row:
    """A trial as the display knows it."""

    label: str
    total: int
    done: int = 0
    began: float = 0.0
    began_at: int = 0
    summary: Mapping[str, float | int] = field(default_factory=dict)
    ended: bool = False


@dataclass(slots=True)
class Counted:
    """Something counted in steps, as first seen and as last told."""

    doing: str
    began: float
    began_at: int
    told: float


class Display(Watcher):
    """Shows the progress of a sweep's trials.

    Args:
        labels: what to call each trial, by key.
        totals: edits of each trial, by key.
        printer: prints one plain line.
        folder: where the trials' heartbeats are (None on an object store).
        console: the terminal; None or not a terminal = plain lines.
        finished: edits and trials that earlier runs have done.
        opening: lines to print once the sweep is this process's, before anything runs.
        edit_groups: which trials take their edits from one run: they get on together, though only one is shown as running.
    """

    def __init__(
        self, labels: Mapping[str, str], totals: Mapping[str, int], *, printer: Callable[[str], None],
        folder: Path | None = None, console: Console | None = None, finished: Mapping[str, int] | None = None,
        edit_groups: Mapping[str, str] | None = None, opening: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.rows = {key: Row(label, totals[key]) for key, label in labels.items()}
        self.edit_groups = edit_groups or {}
        self.printer, self.folder, self.opening = printer, folder, opening
        self.began = time.monotonic()
        self.before = 0
        # What earlier runs made counts as done, but not for the pace of this one.
        for key, step in (finished or {}).items():
            self.rows[key].done, self.rows[key].ended = step, step >= self.rows[key].total
            self.before += step
        # Written by the main thread, read by `_watch`: always through a copy.
        self._running: set[str] = set()
        self._counted: dict[str, Counted] = {}
        self._told = self.began
        self._waiting = ""  # why no trial runs, while none does
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        # Into a file or pipe go plain lines, one per round; a live display would fill it with control characters.
        if console is not None and console.is_terminal:
            self._live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=True)

    def prepared(self) -> None:
        """Say what will be run."""
        for line in self.opening:
            self._print(line)

    def connecting(self, address: str | None) -> None:
        """Say that Ray is being started, or joined."""
        self._print("starting Ray …" if address is None else f"joining Ray at {address} …")

    def joined(self, nodes: Sequence[str]) -> None:
        """Show the nodes of the cluster that was joined."""
        for line in nodes:
            self._print(line)

    def begin(self) -> None:
        """Start the clock and the live display; without one, look for news now and then."""
        self.began = time.monotonic()
        if self._live is not None:
            self._live.start()
        elif self.folder is not None and self._thread is None:
            self._ended.clear()
            # A daemon: a hung file system must not keep the process alive after the sweep.
            self._thread = threading.Thread(target=self._watch, name="raysweep-display", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Take the live display down, or stop looking for news."""
        if self._live is not None:
            self._live.stop()
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        # Waits for the event rather than sleeping, so that `end` need not wait for a whole poll.
        while not self._ended.wait(POLL):
            try:
                for line in self.news(time.monotonic()):
                    self._print(line)
            except BrokenPipeError:  # nobody reads what is printed any more; the main thread ends on it by itself
                return

    def _print(self, line: str) -> None:
        self._told = time.monotonic()
        self.printer(line)

    def news(self, now: float) -> list[str]:
        """Return what is to be said at *now* without a live display.

        That is what running trials count in steps, such as the training of a model: at once, then every ``QUIET`` seconds. Where
        nothing was said for so long, it is how far the sweep is.
        """
        lines = []
        for key in sorted(self._running.copy()):
            beat = self._beat(key)
            first = self._counted.get(key)
            # Nothing is counted (any more): the next count begins a new pace.
            if beat.steps is None:
                self._counted.pop(key, None)
            elif first is None or first.doing != beat.doing:
                self._counted[key] = Counted(beat.doing, now, beat.steps[0], now)
                lines.append(f"{self.rows[key].label}: {beat}")
            elif now - first.told >= QUIET:
                first.told = now
                lines.append(f"{self.rows[key].label}: {beat}, {_eta(beat.steps, first, now)}")
        if not lines and now - self._told >= QUIET:
            lines.append(self._head({key: self._beat(key) for key in self._running.copy()}))
        self._told = now if lines else self._told
        return lines

    def started(self, key: str) -> None:
        """Note that a trial runs."""
        self._waiting = ""
        self._running.add(key)
        self.rows[key].began, self.rows[key].began_at = time.monotonic(), self.rows[key].done

    def round(self, key: str, result: Mapping[str, Any]) -> None:
        """Note a round; print it where there is no live display."""
        row = self.rows[key]
        row.done, row.ended = int(result["step"]), bool(result.get("done"))
        values = [name for name in result if name.rpartition("/")[2] in SHOWN or name == "non_finite_step"]
        row.summary = {name: result[name] for name in values}  # no more than is shown: there may be many trials
        if result.get("replayed"):
            row.began = 0.0  # its edits were made in another trial's time
        failure, stopped = str(result.get("failure", "")), str(result.get("stopped", ""))
        # A failure is printed above a live display, too: there it stays when the display goes.
        if stopped:
            self._print(f"{row.label}: STOPPED at {row.done}/{row.total}: {stopped}")
        elif self._live is None or failure:
            self._print(self.line(row, failure))

    def lost(self, key: str, retried: bool) -> None:
        """Note that a trial's process died."""
        self._print(f"{self.rows[key].label}: its process died; {'going on' if retried else 'given up'}")

    def hung(self, key: str, reason: str) -> None:
        """Say that a trial hangs and its process is being ended."""
        self._print(f"{self.rows[key].label}: hung: {reason}; ending its process")

    def waiting(self, reason: str) -> None:
        """Say that trials wait for nodes; the live display shows it for as long as that lasts."""
        self._waiting = f"waiting for nodes: {reason}"
        if self._live is None:
            self._print(self._waiting)

    def cluster_lost(self, address: str, done: int, total: int) -> None:
        """Say that the cluster is gone, what is done, and what goes on."""
        if self._live is not None:
            self._live.stop()
        self._print(f"the cluster is gone: its control service at {address} takes no connections any more")
        self._print(
            f"{done} of {total} trials are done; run the same command again, on this cluster or another, to go on"
        )

    def stopped(self, key: str) -> None:
        """Note that a trial no longer runs."""
        self._running.discard(key)
        self._counted.pop(key, None)  # there may be many trials, and each may have trained something

    def line(self, row: Row, failure: str = "") -> str:
        """Return one round as a plain line."""
        if failure:
            return f"{row.label}: FAILED at {row.done}/{row.total}: {brief(failure)}"
        ended = sum(r.ended for r in self.rows.values())
        head = f"[{ended}/{len(self.rows)}] {row.label}: {row.done}/{row.total} edits"
        return f"{head}{_scores(row.summary)}{self._pace(row)}"

    def _pace(self, row: Row) -> str:
        seconds, edits = time.monotonic() - row.began, row.done - row.began_at
        return f"  {edits / seconds:.2g} edits/s" if row.began and edits > 0 and seconds > 0 else ""

    def render(self) -> Group:
        """Return the live display: one line for the sweep, one per running trial."""
        beats = {key: self._beat(key) for key in self._running.copy()}
        # No header and no rule: the display is redrawn twice a second, and every line costs a line of the terminal.
        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(overflow="fold")
        for key in sorted(beats):
            row = self.rows[key]
            # A heartbeat comes between rounds; a row knows the last round only.
            done = max(row.done, beats[key].done)
            # As Text: rich would take "[b]" in a label for markup.
            table.add_row(Text(row.label), f"{done}/{row.total}", _scores(row.summary).strip(), Text(str(beats[key])))
        head = Text(self._head(beats), style="bold")
        return Group(head, Text(self._waiting), table) if self._waiting else Group(head, table)

    def _head(self, beats: Mapping[str, Beat]) -> str:
        """Return the line for the sweep: trials, edits, pace, and when it will be done."""
        # Members of an edit group advance together, though only one of them is running.
        moving = {self.edit_groups.get(key, key): max(self.rows[key].done, beat.done) for key, beat in beats.items()}
        # Each row counts as far as its group has come, once; `moving` has one entry per group.
        done = sum(max(row.done, moving.get(self.edit_groups.get(key, key), 0)) for key, row in self.rows.items())
        total = sum(row.total for row in self.rows.values())
        seconds = max(time.monotonic() - self.began, 1e-9)
        # Edits of this run only: earlier runs took their own time.
        rate = (done - self.before) / seconds
        left = f"ETA {_clock((total - done) / rate)}" if rate > 0 and done > self.before else "ETA –"
        ended = sum(row.ended for row in self.rows.values())
        return (
            f"trials {ended}/{len(self.rows)}   edits {done}/{total}   {rate:.2f} edits/s   {_clock(seconds)}   {left}"
        )

    def _beat(self, key: str) -> Beat:
        """Return the last sign of life of a running trial."""
        if self.folder is None:
            return Beat()
        try:
            # The file may be half-gone, of another version, or absent: a display must not end a sweep.
            heartbeat = json.loads((self.folder / key / HEARTBEAT).read_text())
            steps = heartbeat.get("steps")
            return Beat(
                int(heartbeat["done"]), str(heartbeat["doing"]), (int(steps[0]), int(steps[1])) if steps else None
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
            return Beat()


def _eta(steps: tuple[int, int], first: Counted, now: float) -> str:
    """Return when what is counted will be done, by its pace since it was first seen."""
    made, seconds = steps[0] - first.began_at, now - first.began
    return f"ETA {_clock((steps[1] - steps[0]) * seconds / made)}" if made > 0 else "ETA –"


def _scores(result: Mapping[str, float | int]) -> str:
    """Return a round's Rel, Gen and Loc in the first phase that it has, and from where on it is not finite."""
    phase = next((p for p in PHASES if any(f"{p}/{view}" in result for view in SHOWN)), "")
    parts = [f"{v.capitalize()} {float(result[f'{phase}/{v}']):.2f}" for v in SHOWN if f"{phase}/{v}" in result]
    if result.get("non_finite_step") is not None:
        parts.append(f"not finite from step {int(result['non_finite_step'])}")
    return "  " + " ".join(parts) if parts else ""


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
