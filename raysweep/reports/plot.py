"""Rel, Gen, Loc and Avg over edits, or over a swept key: one line per configuration with its 95% band."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config import names
from raysweep.config.space import Scalar
from raysweep.reports import plot_style
from raysweep.reports.measured import TrialView
from raysweep.reports.plot_style import Style
from raysweep.reports.rounds import Configuration, status
from raysweep.reports.views import (
    EARLIER,
    SummaryRow,
    groups,
    is_number,
    rows_of_configurations,
    summary_rows,
    swept_values,
    trial_views,
)
from raysweep.results.tables import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "rel": "Rel: the edit itself",
    "gen": "Gen: reworded",
    "loc": "Loc: unrelated facts kept",
    "avg": "Avg of the three",
}
DECADES = 10.0  # the largest over the smallest value from which on an axis is logarithmic


def draw(sweep: Sweep, path: Path, *, phase: str | None = None, by: str = "arm") -> None:
    """Write the picture that :func:`over_edits` returns into *path*."""
    plot_style.save(over_edits(sweep, trial_views(sweep), phase=phase, by=by), path)


def over_edits(sweep: Sweep, trials: Sequence[TrialView], *, phase: str | None = None, by: str = "arm") -> Figure:
    """Return the four panels over edits; colours stand for editors, plain ones are dashed.

    Undefined values leave a gap at the end of a curve; the legend has the state of what is not done, or not finite.

    Args:
        sweep: what is drawn.
        trials: its trials.
        phase, by: as in :func:`raysweep.reports.views.summary_rows`.
    """
    from matplotlib.ticker import MaxNLocator

    configurations = groups(trials, by=by)
    curves: dict[str, list[SummaryRow]] = {label: [] for label, _ in configurations}
    for line in summary_rows(trials, phase=phase, by=by):
        if line.step > 0 and line.trials:
            curves[line.label].append(line)
    look = plot_style.styles({label: editor_of(members) for label, members in configurations})
    figure, axes = plot_style.panels(len(curves), list(PANELS.values()))
    alpha = plot_style.band_alpha(len(curves))
    for axis, view in zip(axes, PANELS, strict=True):
        locator = axis.xaxis.get_major_locator()
        # There is no half an edit. The locator that is there keeps its other settings, so it is not replaced.
        if isinstance(locator, MaxNLocator):
            locator.set_params(integer=True)
        for label, points in curves.items():
            defined = [p for p in points if view in p.cells]
            _curve(axis, [p.step for p in defined], defined, view, look[label], alpha)
    _finish(
        figure, axes, look, {label: _legend(label, members) for label, members in configurations}, x="edits so far",
        title=f"{sweep.name}, {_extent([line for points in curves.values() for line in points])}",
    )  # fmt: skip
    return figure


def over_key(sweep: Sweep, trials: Sequence[TrialView], key: str, *, phase: str | None = None, at: int = -1) -> Figure:
    """Return the four panels over the swept *key* at one round, a line per arm (and per value of its other swept keys).

    The axis is logarithmic where the values span a factor of ten or more; values that are no numbers stand side by side. Arms
    that sweep nothing are level lines, for comparison; arms that sweep other keys only are left out.

    Args:
        sweep: what is drawn.
        trials: its trials.
        key: the swept key.
        phase: as in :func:`raysweep.reports.views.summary_rows`.
        at: the round; -1 = the last one in common.

    Raises:
        SpecError: no trial has the key, or nothing was measured at *at*.
    """
    values = swept_values(trials, key)
    configurations = groups(trials)
    measured = {line.label: line for line in rows_of_configurations(configurations, phase=phase, at=at)}
    curves = _curves([(label, m) for label, m in configurations if key in m[0].point or not m[0].point], key)
    look = plot_style.styles({name: editor_of(members[0][1]) for name, members in curves.items()})
    # An arm without the key has one value, whatever the axis says.
    level = [name for name, members in curves.items() if key not in members[0][1][0].point]
    # A level line has no points of its own to mark.
    look |= {name: replace(look[name], marker="") for name in level}
    figure, axes = plot_style.panels(len(curves), list(PANELS.values()))
    alpha = plot_style.band_alpha(len(curves))
    places = _axis(axes, values)
    for axis, view in zip(axes, PANELS, strict=True):
        for name, members in curves.items():
            defined = [(t[0].point.get(key), measured[label]) for label, t in members if view in measured[label].cells]
            # By place: configurations come in the order of the plan, a line is drawn from left to right.
            points = sorted(((places[repr(v)], line) for v, line in defined if repr(v) in places), key=lambda p: p[0])
            if points:
                _curve(axis, [x for x, _ in points], [line for _, line in points], view, look[name], alpha)
            elif defined:
                _level(axis, defined[0][1], view, look[name], alpha)
    texts = {
        name: _legend(name, [t for _, configuration in members for t in configuration])
        for name, members in curves.items()
    }
    # All lines are of one round; any of them tells which.
    line = next(line for line in measured.values() if line.trials)
    _finish(
        figure, axes, look, texts, x=key,
        title=f"{sweep.name} at {line.step} edits, {_extent(list(measured.values()))}",
    )  # fmt: skip
    return figure


def _curves(
    configurations: Sequence[tuple[str, Configuration]], key: str
) -> dict[str, list[tuple[str, Configuration]]]:
    """Return the labelled configurations that differ in nothing but *key*, by what to call them."""
    curves: dict[tuple[bool, str, str], list[tuple[str, Configuration]]] = {}
    for label, members in configurations:
        first = members[0]
        rest = {k: v for k, v in first.point.items() if k != key}
        # A curve joins what differs in *key* alone; every other swept key makes curves of its own.
        where = (bool(first.row["planned"]), str(first.row["arm"]), json.dumps(rest, sort_keys=True))
        curves.setdefault(where, []).append((label, members))
    out: dict[str, list[tuple[str, Configuration]]] = {}
    for planned in (True, False):
        alike = {(arm, rest): members for (current, arm, rest), members in curves.items() if current is planned}
        # Labelled together, so that a label shows just what tells the curves apart.
        texts = names.labels([(arm, json.loads(rest)) for arm, rest in alike])
        marked = [text if planned else f"{text} {EARLIER}" for text in texts]
        out |= dict(zip(marked, alike.values(), strict=True))
    return out


def _axis(axes: Sequence[Axes], values: Sequence[Scalar]) -> dict[str, float]:
    """Set the scale of *axes* for *values*; return where each stands, by its ``repr``."""
    numbers = [v for v in values if is_number(v)]
    # One word among them ("gcv") is enough: it has no place on a scale of numbers.
    if len(numbers) < len(values):
        for axis in axes:
            axis.set_xticks(range(len(values)), [str(v) for v in values])
        return {repr(v): float(i) for i, v in enumerate(values)}
    positive = [float(v) for v in numbers if v > 0]
    if positive and max(positive) >= DECADES * min(positive):
        for axis in axes:
            if min(numbers) > 0:
                axis.set_xscale("log")
            # 0 has no logarithm: linear up to the smallest value.
            else:
                axis.set_xscale("symlog", linthresh=min(positive))
    return {repr(v): float(v) for v in numbers}


def editor_of(members: Configuration) -> str:
    """Return the editor of a configuration with its wrappers; the arm's name if no trial has begun."""
    return next((str(t.row["editor"]) for t in members if t.row["editor"]), str(members[0].row["arm"]))


def _legend(label: str, members: Configuration) -> str:
    state = status(members)
    return label if state == "done" else f"{label} [{state}]"


def _extent(lines: Sequence[SummaryRow]) -> str:
    """Return which phase and how many seeds are drawn."""
    seeds = len({t.seed for line in lines for t in line.trials})
    phases = " and ".join(dict.fromkeys(line.phase for line in lines if line.trials))
    return f"{phases}: {seeds} seed{'' if seeds == 1 else 's'}, bands are 95% intervals"


def _finish(
    figure: Figure, axes: Sequence[Axes], look: Mapping[str, Style], texts: Mapping[str, str], *, x: str, title: str
) -> None:
    """Write what stands around the panels, and the legend."""
    for axis in axes:
        place = axis.get_subplotspec()
        assert place is not None, "panels are made as a grid"
        # Axes are shared, so a label at the grid's edge is enough.
        if place.is_first_col():
            axis.set_ylabel("mean over records so far")
        if place.is_last_row():
            axis.set_xlabel(x)
    # A "$" in a sweep's name is a dollar, not mathematics.
    figure.suptitle(title, fontsize=12).set_parse_math(False)
    plot_style.legend(figure, [plot_style.handle(s) for s in look.values()], [texts[label] for label in look])


def _curve(axis: Axes, x: Sequence[float], points: Sequence[SummaryRow], view: str, style: Style, alpha: float) -> None:
    means = [p.cells[view].mean for p in points]
    axis.plot(x, means, color=style.colour, linestyle=style.line, marker=style.marker, markersize=4.5, linewidth=1.8)
    # NaN, where there is no interval, is a gap.
    low, high = [p.cells[view].low for p in points], [p.cells[view].high for p in points]
    if points:
        axis.fill_between(x, low, high, color=style.colour, alpha=alpha, linewidth=0)
    # A band of one point has no width, and is not seen.
    if len(points) == 1:
        axis.vlines(x, low, high, color=style.colour, alpha=min(1.0, 4 * alpha), linewidth=2)


def _level(axis: Axes, line: SummaryRow, view: str, style: Style, alpha: float) -> None:
    """Draw what does not depend on the axis as a level line."""
    cell = line.cells[view]
    axis.axhline(cell.mean, color=style.colour, linestyle=style.line, linewidth=1.8)
    if cell.has_interval:
        axis.axhspan(cell.low, cell.high, color=style.colour, alpha=alpha / 2, linewidth=0)
