"""Figures of a belief sweep: training curves, histograms of updates, one point along its edit, many edits in one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

from raysweep.belief.corpus.statements import read_label
from raysweep.belief.lm.asking import Reply
from raysweep.belief.points.expected import expected_probabilities
from raysweep.belief.points.types import MODAL, OTHER_OTHER, OTHER_SAME, REQUESTED, SAME_OTHER, SAME_SAME, EvalPoint
from raysweep.belief.report.metrics import truth_probability
from raysweep.belief.report.tables import Row
from raysweep.lazy import lazy
from raysweep.reports.plot_style import COLOURS, MARKERS, pyplot
from raysweep.summarize import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

np = lazy("numpy")
WATCHED = {
    SAME_SAME: "edited fact",
    SAME_OTHER: "same subject, other relation",
    OTHER_SAME: "other subject, same relation",
    OTHER_OTHER: "other subject, other relation",
}
ACCURACIES = {
    "o_given_s_r_acc": "atomic",
    "A_TF_case_acc": "true/false",
    "not_A_case_acc": "not",
    "A_and_B_case_acc": "and",
    "A_or_B_case_acc": "or",
}
_REQUESTED = ("requested_TF_case", "not_requested_case", "requested_or_B_case", "requested_and_B_case")
_CLAIMS = ("A_TF_case", "not_A_case", "A_or_B_case", "A_and_B_case")
_AGENT = {"agent before the edit": "#D55E00", "agent after the edit": "#0072B2"}
LOSSES = {"train_loss": "training", "eval_loss": "evaluation"}


def training_figure(log: Sequence[Mapping[str, float]], names: Mapping[str, str], what: str) -> Figure:
    """Return the numbers *names* of a training log against tokens.

    Args:
        log: rows of the log.
        names: columns to draw, with what each is called in the legend.
        what: label of the axis; ``accuracy`` fixes it to [0, 1].
    """
    figure, axis = pyplot().subplots(figsize=(5, 3.4), dpi=130)
    # Not strict, as cycles are endless: there may be more curves than colours.
    for (name, label), color, marker in zip(names.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        # A row has what was measured at its step; a curve takes the rows that know it.
        rows = [(row["n_tokens"] / 1e3, row[name]) for row in log if name in row]
        if rows:
            axis.plot(*zip(*rows, strict=True), color=color, marker=marker, markersize=4, label=label)
    axis.set_xlabel("thousand tokens")
    axis.set_ylabel(what)
    axis.set_ylim((0, 1.03) if what == "accuracy" else (0, None))
    return _finished(figure, axis)


def delta_figure(values: Sequence[float]) -> Figure:
    """Return the histogram of how far the agent's belief in the requested object rises."""
    figure, axis = pyplot().subplots(figsize=(5, 3.2), dpi=130)
    axis.hist(values, bins=20, range=(0, 1), color=COLOURS[0])
    axis.set_xlabel("rise of the agent's probability of the requested object")
    axis.set_ylabel("points")
    return _finished(figure, axis)


def panel_figure(point: EvalPoint, replies: Mapping[int, Mapping[str, Reply]]) -> Figure:
    """Return the figure of one point along its edit: the model's probabilities, and the agent's before and after the edit.

    Rows: the four watched facts; sentences about the requested fact; sentences about the claims A and B, as published. In each
    panel the dashed lines are the agent's own answers to that panel's question. (The published ones in the last row are made of its
    belief in the new modal downstream object, which these sentences are not about, and of the model's own p(B); ruling G6.)

    Args:
        point: with an edit.
        replies: the model's, by step of the edit, then by question.
    """
    rows = [_facts(point), [name for name in _REQUESTED if name in point.questions], _claims(point)]
    # A corpus without sentences about sentences has fewer rows.
    rows = [row for row in rows if row]
    figure: Figure
    figure, axes = pyplot().subplots(
        len(rows), 4, figsize=(13, 0.8 + 2.7 * len(rows)), dpi=110, sharex=True, sharey=True, squeeze=False
    )
    steps = sorted(replies)
    # The agent answers in closed form, so its levels are lines, not curves.
    levels = [expected_probabilities(point, state) for state in ("pre", "target")]
    for row, names in zip(axes, rows, strict=True):
        for axis, name in zip(row, names, strict=False):
            values = [_probability(point, name, replies[s][name].probability) for s in steps]
            axis.plot(steps, values, color="black", marker="o", markersize=3, label="model")
            for i, (expected, (label, color)) in enumerate(zip(levels, _AGENT.items(), strict=True)):
                if name in expected:  # the dashes of one fill the gaps of the other, so that equal levels are both seen
                    axis.axhline(
                        _probability(point, name, expected[name]),
                        color=color,
                        linestyle=(4 * i, (4, 4)),
                        linewidth=1.2,
                        label=label,
                    )
            axis.set_title(_title(point, name), fontsize=7)
            # Not drawn: it is how a test finds the panel of a question.
            axis.set_label(name)
        row[0].set_ylabel("probability")
    for axis in axes[-1]:
        axis.set_xlabel("steps of the edit")
    axes[0][0].set_ylim(-0.02, 1.02)
    # The first panel has every label; one legend for all panels.
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.035, 1, 1))
    return figure


def _facts(point: EvalPoint) -> list[str]:
    """Return the questions about the watched facts: about the requested object, and about the agent's new answers elsewhere."""
    assert point.watched is not None
    return [f"editing_{name}_{REQUESTED if name == SAME_SAME else MODAL}" for name in WATCHED]


def _claims(point: EvalPoint) -> list[str]:
    """Return the questions about A and B, if the point's file has the agent's belief in them."""
    return [name for name in _CLAIMS if name in point.questions and point.claims]


def _probability(point: EvalPoint, name: str, p: float) -> float:
    """Return the probability that is drawn: of the object asked for, or of ``true``."""
    target = point.questions[name].target
    # Sentences are labelled true or false at random; p("true") can be compared between them.
    if name in _REQUESTED or name in _CLAIMS:
        return float(truth_probability(np.array([p]), np.array([read_label(target)]))[0])
    return p


def _title(point: EvalPoint, name: str) -> str:
    """Return the words above a panel: what is asked, and for whose fact."""
    question = point.questions[name]
    for watched, title in WATCHED.items():
        if name.startswith(f"editing_{watched}_"):
            return f"{title}\n{question.prompt} {question.target}"
    return fill(f"{question.prompt} true", 46)


def lifelong_figure(rows: Sequence[Row]) -> Figure:
    """Return, against the number of edits, accuracy on edited facts, on what follows from them, and on other subjects' facts."""
    curves = {
        "acc: edited": "the edits themselves",
        "new answer": "answers that should have changed",
        "acc: other s, other r": "facts of other subjects",
        "coh: same s, other r": "distance from the agent, same subject",
    }
    figure: Figure
    figure, axes = pyplot().subplots(
        1, len(curves), figsize=(3.4 * len(curves), 3.4), dpi=110, sharex=True, sharey=True
    )
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for axis, (column, title) in zip(axes, curves.items(), strict=True):
        for arm, color, marker in zip(arms, cycle(COLOURS), cycle(MARKERS), strict=False):
            of_arm = [(row["edits"], row.get(column)) for row in rows if row["arm"] == arm]
            curve = [(edits, cell.mean) for edits, cell in of_arm if isinstance(cell, Estimate)]
            if curve:
                axis.plot(*zip(*curve, strict=True), color=color, marker=marker, markersize=4, label=arm)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("edits so far")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _finished(figure: Figure, axis: Axes) -> Figure:
    axis.grid(alpha=0.25)
    # matplotlib warns of a legend without entries.
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def close_figure(figure: Figure) -> None:
    """Let go of a figure that is drawn."""
    pyplot().close(figure)
