"""What a reader must know of a table of results: which numbers are missing or undefined, why, and whose names these are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from raysweep.config.load import parse, read
from raysweep.errors import RaysweepError
from raysweep.reports.views import SummaryRow, TrialView, groups
from raysweep.results.tables import Sweep

PERPLEXITIES = ("ppl", "ppl_median", "ppl_expmean")
SPACE_KEYS = ("study", "base", "arms", "space")  # what trials and their names follow from


def missing_rounds(rows: Iterable[SummaryRow]) -> list[str]:
    """Return a note for each line whose configuration was not measured there, or not under every seed."""
    notes = []
    for line in rows:
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


def about_intervals(rows: Sequence[SummaryRow], *, ppl: bool = False) -> list[str]:
    """Return what a reader must know of the intervals of *rows*: what they do not cover, and why there is none."""
    measured = [line for line in rows if line.cells]
    notes = []
    if measured and all(len(line.trials) == 1 for line in measured):
        notes.append("one seed: intervals say what other records would give, not other seeds")
    printed = [(line, view) for line in measured for view in line.cells if ppl or view not in PERPLEXITIES]
    alone = dict.fromkeys(line.label for line, view in printed if line.cells[view].n == 1)
    if alone:
        notes.append(f"[–]: one record says nothing of others ({', '.join(alone)})")
    if any(view == "ppl" for _, view in printed):
        notes.append(
            "PPL [–]: a few records make up most of a mean of perplexities; the median and exp-mean have intervals"
        )
    medians = [line.cells[view] for line, view in printed if view == "ppl_median"]
    if any(cell.n > 1 and not cell.has_interval for cell in medians):
        notes.append("PPL median [–]: there are fewer than five records, or few seeds that differ much")
    return notes


def outdated(sweep: Sweep) -> list[str]:
    """Return a note if the search space has changed since the trials of *sweep* and their names were planned.

    A table has the names of the latest ``raysweep run``, with the trials that then stood under them.
    """
    file, folder = sweep.plan.file, sweep.store.folder
    # Results may be read on another machine, without the file they were planned from.
    if not file or not Path(file).is_file() or not folder.exists("sweep.yaml"):
        return []
    try:
        text = folder.read("sweep.yaml").decode(errors="replace")
        if text == Path(file).read_text(errors="replace"):  # reading thousands of swept values takes seconds
            return []
        then, now = parse(text).tree, read(Path(file)).tree
    except RaysweepError:
        then = now = None
    if isinstance(then, dict) and isinstance(now, dict) and all(now.get(k) == then.get(k) for k in SPACE_KEYS):
        return []
    how = "run it again to take the new ones over; what is done is not repeated"
    return [f"{file} has changed since it was run: names and trials here are those of that run ({how})"]
