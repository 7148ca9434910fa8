"""What a reader must know of a table of results: which numbers are missing or undefined, why, and whose names these are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from raysweep.cli.render import Format
from raysweep.config.load import parse, read
from raysweep.errors import RaysweepError
from raysweep.results.tables import Sweep
from raysweep.results.views import Line, TrialView, groups

SPACE_KEYS = ("study", "base", "arms", "space")  # what trials and their names follow from


def tell(notes: Iterable[str], how: Format) -> None:
    """Print *notes*: below a table for a reader, on standard error beside one for a program."""
    for note in notes:
        typer.echo(f"note: {note}", err=how is not Format.TABLE)


def missing_rounds(found: Iterable[Line]) -> list[str]:
    """Return a note for each line whose configuration was not measured there, or not under every seed."""
    notes = []
    for line in found:
        if not line.trials:
            notes.append(f"left out: {line.label} has no round {line.step} ({line.status})")
        elif len(line.trials) < line.members:
            of = f"{len(line.trials)} of {line.members} seeds"
            notes.append(f"{line.label} has {of} at round {line.step} ({line.status})")
    return notes


def non_finite(trials: Sequence[TrialView]) -> list[str]:
    """Return a note for each configuration with trials whose weights or logits stopped being finite numbers."""
    notes = []
    for label, members in groups(trials):
        first = {t.seed: t.row["non_finite_step"] for t in members if t.row["non_finite_step"] is not None}
        if first:
            seeds = [f"{step} (seed {seed})" if len(members) > 1 else str(step) for seed, step in first.items()]
            lost = "; values are undefined" if any(t.undefined for t in members) else ""
            notes.append(f"{label}: weights or logits are not finite from step {', '.join(seeds)} on{lost}")
    return notes


def outdated(sweep: Sweep) -> list[str]:
    """Return a note if the search space has changed since the trials of *sweep* and their names were planned.

    A table has the names of the latest ``raysweep run``, with the trials that then stood under them.
    """
    file, folder = str(sweep.plan.get("file", "")), sweep.store.folder
    if not file or not Path(file).is_file() or not folder.exists("sweep.yaml"):
        return []
    try:
        then, now = parse(folder.read("sweep.yaml").decode(errors="replace")).tree, read(Path(file)).tree
    except RaysweepError:
        then = now = None
    if isinstance(then, dict) and isinstance(now, dict) and all(now.get(k) == then.get(k) for k in SPACE_KEYS):
        return []
    how = "run it again to take the new ones over; what is done is not repeated"
    return [f"{file} has changed since it was run: names and trials here are those of that run ({how})"]
