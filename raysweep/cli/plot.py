"""Rel, Gen, Loc and Avg over edits, one line per configuration with its 95% band."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

from raysweep.results.rounds import Configuration, status
from raysweep.results.tables import Sweep
from raysweep.results.views import Line, groups, lines, trial_views

PANELS = {
    "rel": "Rel: the edit itself",
    "gen": "Gen: reworded",
    "loc": "Loc: unrelated facts kept",
    "avg": "Avg of the three",
}
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vPX*"


def draw(sweep: Sweep, path: Path, *, phase: str | None = None, by: str = "arm") -> None:
    """Draw the four panels into *path*; plain editors are dashed, wrapped ones solid.

    Undefined values leave a gap at the end of a curve; the legend has the state of what is not done, or not finite.

    Args:
        sweep: what is drawn.
        path: the picture.
        phase, by: as in :func:`raysweep.results.views.lines`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trials = trial_views(sweep)
    found: dict[str, list[Line]] = {label: [] for label, _ in groups(trials, by=by)}
    for line in lines(trials, phase=phase, by=by):
        if line.step > 0 and line.trials:
            found[line.label].append(line)
    legend = {label: _legend(label, members) for label, members in groups(trials, by=by)}
    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.9), sharey=True, sharex=True, dpi=150)
    styles = dict(zip(found, zip(cycle(OKABE_ITO), cycle(MARKERS), strict=False), strict=False))
    for axis, (view, title) in zip(axes, PANELS.items(), strict=True):
        for label, points in found.items():
            color, marker = styles[label]
            wrapped = any("+" in str(t.row["editor"]) for line in points for t in line.trials)
            shown = [p for p in points if view in p.cells]
            _curve(axis, shown, view, legend[label], color, marker, "-" if wrapped else "--")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("edits so far")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("mean over records so far")
    handles, labels = axes[0].get_legend_handles_labels()
    seeds = len({t.seed for points in found.values() for line in points for t in line.trials})
    phases = " and ".join(dict.fromkeys(line.phase for points in found.values() for line in points))
    columns = min(max(len(labels), 1), 6)
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=10)
    figure.suptitle(
        f"{sweep.name}, {phases}: {seeds} seed{'' if seeds == 1 else 's'}, bands are 95% intervals", fontsize=12
    )
    figure.tight_layout(rect=(0, 0.06 + 0.05 * math.ceil(len(labels) / columns), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
    pyplot.close(figure)


def _legend(label: str, members: Configuration) -> str:
    state = status(members)
    return label if state == "done" else f"{label} [{state}]"


def _curve(axis: Any, points: list[Line], view: str, label: str, color: str, marker: str, style: str) -> None:
    steps = [p.step for p in points]
    means = [p.cells[view].mean for p in points]
    axis.plot(steps, means, style, color=color, marker=marker, markersize=4.5, linewidth=1.8, label=label)
    limits = [(p.cells[view].low, p.cells[view].high) for p in points]  # NaN, where there is no interval, is a gap
    axis.fill_between(steps, *zip(*limits, strict=True), color=color, alpha=0.15, linewidth=0) if limits else None
