"""Pictures of a sweep by kind. One function and one line of ``KINDS`` add one; each returns a figure, for a file or for a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysweep.errors import SpecError
from raysweep.reports import plot, plot_style
from raysweep.reports.measured import TrialView
from raysweep.reports.plot_style import Style
from raysweep.reports.retention_table import Retention, retentions
from raysweep.reports.views import SummaryRow, groups, rows_of_configurations
from raysweep.results.finite import DRIFT
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import STATS
from raysweep.results.tables import Sweep
from raysweep.retention import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COHORTS = 12  # rows of a heat map, at most: more are too thin to read
MOST_AGES = 400  # of a survival curve that are drawn
PANELS_IN_A_ROW = 4
DRIFTS = {
    DRIFT: "Frobenius norm of the weights' change",
    "text_ppl": "perplexity of a fixed text",
    "text_kl": "divergence on that text, nats",
}
"""What the picture of drift shows, by the names of ``editor_stats``; the first stands for those that begin with it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn.

    Attributes:
        sweep: whose results.
        trials: its trials.
        phase: ``retained`` or ``immediate``; None = what the study is about.
        at: the round, where one is drawn; -1 = the last one in common.
        over: the swept key, where one is needed.
        kept: what each configuration keeps, where somebody has looked already.
    """

    sweep: Sweep
    trials: Sequence[TrialView]
    phase: str | None = None
    at: int = -1
    over: str = ""
    kept: Sequence[Retention] = ()


def edits(picture: Picture) -> Figure:
    """Rel, Gen, Loc and Avg over edits."""
    return plot.over_edits(picture.sweep, picture.trials, phase=picture.phase)


def over(picture: Picture) -> Figure:
    """Rel, Gen, Loc and Avg over a swept key at one round (needs --over)."""
    if not picture.over:
        raise SpecError("this picture is over a swept key", hint="add --over KEY, such as wrap.simie.lam")
    return plot.over_key(picture.sweep, picture.trials, picture.over, phase=picture.phase, at=picture.at)


def pareto(picture: Picture) -> Figure:
    """Rel against Loc at one round, with the front of arms that none beats in both."""
    lines, look = _at_round(picture)
    known = [line for line in lines if "rel" in line.cells and "loc" in line.cells]
    if not known:
        raise SpecError("no arm has both Rel and Loc", hint="draw another picture")
    figure, axis = _single(f"{picture.sweep.name} at {lines[0].step} edits: what is learned, and what is left alone")
    for line in known:
        _cross(axis, line, "loc", "rel", look[line.label])
    points = sorted({(line.cells["loc"].mean, line.cells["rel"].mean) for line in known})
    # From the right: a point is on the front if none further right is higher.
    front = [p for i, p in enumerate(points) if all(q[1] < p[1] for q in points[i + 1 :])]
    if len(front) > 1:
        axis.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0, drawstyle="steps-pre")
    axis.set(xlabel="Loc: unrelated facts kept", ylabel="Rel: the edit itself", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    _legend(figure, look, [line.label for line in known])
    return figure


def cost(picture: Picture) -> Figure:
    """Avg against the seconds of an edit at one round."""
    lines, look = _at_round(picture)
    known = [line for line in lines if "avg" in line.cells and not math.isnan(line.per_edit)]
    if not known:
        raise SpecError("no arm has both Avg and the seconds of its edits", hint="draw another picture")
    figure, axis = _single(f"{picture.sweep.name} at {lines[0].step} edits: quality and cost")
    for line in known:
        cell, style = line.cells["avg"], look[line.label]
        if cell.has_interval:
            axis.vlines(line.per_edit, cell.low, cell.high, color=style.colour, linewidth=1.5, alpha=0.6)
        _point(axis, line.per_edit, cell.mean, style)
    axis.set(xlabel="seconds per edit", ylabel="Avg", xscale="log", ylim=(-0.03, 1.03))
    _legend(figure, look, [line.label for line in known])
    return figure


def survival(picture: Picture) -> Figure:
    """Share of facts that are kept against their age (Kaplan-Meier), with bands."""
    found, look = _retained(picture)
    known = [one for one in found if one.kept.n]
    if not known:
        raise SpecError("exact answers were not measured", hint="run with `protocol.metrics` that name exact_match")
    figure, axis = _single(f"{picture.sweep.name}: how long a fact that was right is kept")
    alpha = plot_style.band_alpha(len(known))
    for one in known:
        style, kept = look[one.label], one.kept
        # Of thousands of ages a picture shows hundreds; each point that is drawn lies on the curve.
        drawn = np.unique(np.linspace(0, len(kept.age) - 1, MOST_AGES).astype(int))
        age, share = np.concatenate([[0.0], kept.age[drawn]]), np.concatenate([[1.0], kept.share[drawn]])
        axis.step(age, share, where="post", color=style.colour, linestyle=style.line, linewidth=1.8)
        low, high = (np.concatenate([[np.nan], band[drawn]]) for band in (kept.low, kept.high))
        axis.fill_between(age, low, high, step="post", color=style.colour, alpha=alpha, linewidth=0)
    axis.set(xlabel="edits since the fact was written", ylabel="share of facts kept", ylim=(-0.03, 1.03))
    _legend(figure, look, [one.label for one in known])
    return figure


def retention(picture: Picture) -> Figure:
    """A heat map for each arm: Rel of facts by when they were written, at each round."""
    from matplotlib import colormaps

    found, _ = _retained(picture)
    columns = min(PANELS_IN_A_ROW, len(found))
    rows = -(-len(found) // columns)
    figure: Figure
    figure, axes = plot_style.pyplot().subplots(
        rows, columns, figsize=(3.4 * columns + 0.8, 3.0 * rows + 0.5), dpi=150, layout="constrained", squeeze=False
    )
    mesh = None
    # Ten steps: they can be told apart, and the scale beside them is drawn as boxes, too, not as an image.
    colours = colormaps["cividis"].resampled(10)
    for axis, one in zip(axes.flat, found, strict=False):
        edges, steps, means = _cohorts(one)
        # One cell per round and cohort, as even boxes: rounds are far from even.
        mesh = axis.pcolormesh(
            np.ma.masked_invalid(means), cmap=colours, vmin=0.0, vmax=1.0, edgecolors="white", linewidth=0.3
        )
        axis.set_xticks(np.arange(len(steps)) + 0.5, [str(s) for s in steps], rotation=60, fontsize=7)
        axis.set_yticks(np.arange(len(edges)) + 0.5, edges, fontsize=7)
        axis.set_title("", fontsize=10).set_parse_math(False)
        axis.title.set_text(one.label)
    for axis in list(axes.flat)[len(found) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("edits so far", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("facts written at", fontsize=8)
    assert mesh is not None, "there is an arm, or `retentions` raised"
    figure.colorbar(mesh, ax=axes, label="Rel", shrink=0.8)
    _title(figure, f"{picture.sweep.name}: which facts are left")
    return figure


def drift(picture: Picture) -> Figure:
    """How far weights and answers on a fixed text are from the unedited model's, over edits, with the spread over seeds."""
    configurations = groups(picture.trials)
    look = plot_style.styles({label: plot.editor_of(members) for label, members in configurations})
    # By panel and configuration: the values of its seeds by step.
    curves: dict[str, dict[str, dict[int, list[float]]]] = {name: {} for name in DRIFTS}
    for label, members in configurations:
        for trial in members:
            for name, by_step in _moved(picture.sweep, trial).items():
                for step, value in by_step.items():
                    curves[name].setdefault(label, {}).setdefault(step, []).append(value)
    shown = [name for name in DRIFTS if curves[name]]
    if not shown:
        raise SpecError(
            "no arm has weights that drift", hint="protocol.drift also measures on a text, for every editor"
        )
    figure, axes = _row(len(shown), f"{picture.sweep.name}: how far the model has moved")
    for axis, name in zip(axes, shown, strict=True):
        alpha = plot_style.band_alpha(len(curves[name]))
        for label, of_seeds in curves[name].items():
            style, steps = look[label], sorted(of_seeds)
            values = [np.array(of_seeds[step]) for step in steps]
            means, low, high = ([f(v) for v in values] for f in (np.mean, np.min, np.max))
            axis.plot(steps, means, color=style.colour, linestyle=style.line, marker=style.marker, markersize=4.5)
            axis.fill_between(steps, low, high, color=style.colour, alpha=alpha, linewidth=0)
        axis.set(xlabel="edits so far", ylabel=DRIFTS[name], yscale="log")
    _legend(figure, look, list(dict.fromkeys(label for name in shown for label in curves[name])))
    return figure


def _moved(sweep: Sweep, trial: TrialView) -> dict[str, dict[int, float]]:
    """Return ``{name of DRIFTS: {round: value}}`` of a trial; what is 0 or no number is left out, as a scale of logarithms must."""
    key = str(trial.row["trial_key"])
    if not trial.rounds or key in sweep.damaged:
        return {}
    stats = read_fragments(sweep.store, STATS, sweep.store.fragments(STATS, key), columns=("step", "name", "value"))
    named = pc.or_(pc.starts_with(stats["name"], DRIFT), pc.is_in(stats["name"], pa.array(list(DRIFTS))))
    # A wrapper's report and the weights themselves may say the same name at one step: the weights' comes last.
    at_round = {
        (r["step"], r["name"]): r["value"] for r in stats.filter(named).to_pylist() if r["step"] in trial.rounds
    }
    out: dict[str, dict[int, float]] = {}
    for (step, name), value in at_round.items():
        by_step = out.setdefault(name if name in DRIFTS else DRIFT, {})
        # The norm of all weights together: squares add up.
        by_step[step] = math.hypot(by_step.get(step, 0.0), value) if name not in DRIFTS else value
    return {name: {s: v for s, v in by_step.items() if 0.0 < v < math.inf} for name, by_step in out.items()}


KINDS: Mapping[str, Callable[[Picture], Figure]] = {
    "edits": edits,
    "over": over,
    "pareto": pareto,
    "retention": retention,
    "survival": survival,
    "cost": cost,
    "drift": drift,
}
"""What ``raysweep plot`` draws, by name; the first line of each function is its help."""


def _at_round(picture: Picture) -> tuple[list[SummaryRow], dict[str, Style]]:
    configurations = groups(picture.trials)
    lines = rows_of_configurations(configurations, phase=picture.phase, at=picture.at)
    return lines, plot_style.styles({label: plot.editor_of(members) for label, members in configurations})


def _retained(picture: Picture) -> tuple[list[Retention], dict[str, Style]]:
    found = list(picture.kept) or retentions(picture.trials)
    return found, plot_style.styles({label: plot.editor_of(members) for label, members in groups(picture.trials)})


def _cohorts(one: Retention) -> tuple[list[str], list[int], Array]:
    """Return the names of cohorts, the rounds, and the mean Rel of each cohort at each round, [cohorts, rounds].

    A cohort is what was written between two rounds; neighbours are joined where there are more than ``COHORTS``.
    """
    steps = [r for r in one.rel[0].rounds.tolist() if r <= one.end]
    every = -(-len(steps) // COHORTS)
    ends = sorted({*steps[every - 1 :: every], steps[-1]})
    means = np.full((len(ends), len(steps)), np.nan)
    for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        of_seeds = []
        for history in one.rel:
            mine = (history.edit_step > begin) & (history.edit_step <= end)
            asked = ~np.isnan(history.value[mine])
            count = asked.sum(0)
            total = np.where(asked, history.value[mine], 0.0).sum(0)
            of_seeds.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        # A cohort that some seeds have no fact of is the mean of the others'.
        seeds = np.array(of_seeds)[:, : len(steps)]
        known = ~np.isnan(seeds)
        means[i] = np.where(known.any(0), np.where(known, seeds, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    names = [
        f"{begin + 1}–{end}" if end > begin + 1 else str(end) for begin, end in zip([0, *ends], ends, strict=False)
    ]
    return names, steps, means


def _single(title: str) -> tuple[Figure, Axes]:
    figure, (axis,) = _row(1, title)
    return figure, axis


def _row(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with *count* panels side by side."""
    figure: Figure
    size = (6.4, 4.4) if count == 1 else (4.4 * count, 3.8)
    figure, axes = plot_style.pyplot().subplots(1, count, figsize=size, dpi=150, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    _title(figure, title)
    return figure, list(axes.flat)


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=11).set_parse_math(False)  # a "$" in a sweep's name is a dollar


def _cross(axis: Axes, line: SummaryRow, x: str, y: str, style: Style) -> None:
    """Draw a point with the intervals of both of its means."""
    across, up = line.cells[x], line.cells[y]
    if across.has_interval:
        axis.hlines(up.mean, across.low, across.high, color=style.colour, linewidth=1.5, alpha=0.6)
    if up.has_interval:
        axis.vlines(across.mean, up.low, up.high, color=style.colour, linewidth=1.5, alpha=0.6)
    _point(axis, across.mean, up.mean, style)


def _point(axis: Axes, x: float, y: float, style: Style) -> None:
    """Draw a point; hollow where a line would be dashed, for a plain editor."""
    fill = "white" if style.line == plot_style.PLAIN else style.colour
    axis.plot(x, y, color=style.colour, marker=style.marker, markersize=8, markerfacecolor=fill, linestyle="")


def _legend(figure: Figure, look: Mapping[str, Style], labels: Sequence[str]) -> None:
    plot_style.legend(figure, [plot_style.handle(look[label]) for label in labels], labels)
