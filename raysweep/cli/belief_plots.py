"""Figures of a belief sweep (§9.6): training curves, histograms of updates, one point along its edit, many edits in one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

from raysweep.belief.asking import Reply
from raysweep.belief.metrics import believed, truth_probability
from raysweep.belief.points import MODAL, OTHER_OTHER, OTHER_SAME, REQUESTED, SAME_OTHER, SAME_SAME, EvalPoint
from raysweep.belief.statements import read_label
from raysweep.cli.plot import MARKERS, OKABE_ITO
from raysweep.lazy import lazy

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
LOSSES = {"train_loss": "training", "eval_loss": "evaluation"}


def training(log: Sequence[Mapping[str, float]], names: Mapping[str, str], path: Path, what: str) -> None:
    """Draw the numbers *names* of a training log against tokens."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(5, 3.4), dpi=130)
    for (name, label), color, marker in zip(names.items(), cycle(OKABE_ITO), cycle(MARKERS), strict=False):
        rows = [(row["n_tokens"] / 1e3, row[name]) for row in log if name in row]
        if rows:
            axis.plot(*zip(*rows, strict=True), color=color, marker=marker, markersize=4, label=label)
    axis.set_xlabel("thousand tokens")
    axis.set_ylabel(what)
    axis.set_ylim((0, 1.03) if what == "accuracy" else (0, None))
    _finish(figure, axis, path)


def deltas(values: Sequence[float], path: Path) -> None:
    """Draw the histogram of how far the agent's belief in the requested object rises."""
    figure, axis = _pyplot().subplots(figsize=(5, 3.2), dpi=130)
    axis.hist(values, bins=20, range=(0, 1), color=OKABE_ITO[0])
    axis.set_xlabel("rise of the agent's probability of the requested object")
    axis.set_ylabel("points")
    _finish(figure, axis, path)


def panels(point: EvalPoint, replies: Mapping[int, Mapping[str, Reply]], path: Path) -> None:
    """Draw one point along its edit: the model's probabilities, and the agent's before (red) and after (blue).

    The last four panels are about claims A and B. The agent's levels there are made of its belief in the new modal downstream
    object, as published, and of the model's own p(B) before the edit (ruling G6).
    """
    assert point.watched is not None
    figure, axes = _pyplot().subplots(2, 4, figsize=(13, 5.6), dpi=110, sharex=True, sharey=True)
    steps = sorted(replies)
    for axis, (name, title) in zip(axes[0], WATCHED.items(), strict=True):
        role = REQUESTED if name == SAME_SAME else MODAL
        targets = point.watched[name].targets
        after = targets["target"][role]
        levels = (
            believed(targets["pre"][role]),
            after.posterior_prob_o_given_s_r if name == SAME_SAME else believed(after),
        )
        _panel(axis, steps, [replies[s][f"editing_{name}_{role}"].probability for s in steps], levels)
        axis.set_title(f"{title}\n{_question(point, f'editing_{name}_{role}')}", fontsize=7)
    before, later = (believed(point.watched[SAME_OTHER].targets[state][MODAL]) for state in ("pre", "target"))
    first = replies[steps[0]]
    b = _truth(point, first, "B_TF_case") if "B_TF_case" in first else 0.5
    logical: Mapping[str, Callable[[float], float]] = {
        "A_TF_case": lambda a: a,
        "not_A_case": lambda a: 1 - a,
        "A_or_B_case": lambda a: a + b - a * b,
        "A_and_B_case": lambda a: a * b,
    }
    for axis, (name, level) in zip(axes[1], logical.items(), strict=True):
        if name in first:
            _panel(axis, steps, [_truth(point, replies[s], name) for s in steps], (level(before), level(later)))
            axis.set_title(fill(point.questions[name].prompt, 44), fontsize=7)
        axis.set_xlabel("steps of the edit")
    axes[0][0].set_ylim(-0.02, 1.02)
    for row in axes:
        row[0].set_ylabel("probability")
    figure.tight_layout()
    _save(figure, path)


def lifelong(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw, against the number of edits, accuracy on the edited facts, on what follows from them, and on other subjects' facts."""
    shown = {
        "acc: edited": "the edits themselves",
        "new answer": "answers that should have changed",
        "acc: other s, other r": "facts of other subjects",
        "coh: same s, other r": "distance from the agent, same subject",
    }
    figure, axes = _pyplot().subplots(1, len(shown), figsize=(3.4 * len(shown), 3.4), dpi=110, sharex=True, sharey=True)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for axis, (column, title) in zip(axes, shown.items(), strict=True):
        for arm, color, marker in zip(arms, cycle(OKABE_ITO), cycle(MARKERS), strict=False):
            own = [(r["edits"], r[column].mean) for r in rows if r["arm"] == arm and r.get(column) is not None]
            if own:
                axis.plot(*zip(*own, strict=True), color=color, marker=marker, markersize=4, label=arm)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("edits so far")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    _save(figure, path)


def _panel(axis: Any, steps: Sequence[int], values: Sequence[float], levels: tuple[float, float]) -> None:
    axis.plot(steps, values, color="black", marker="o", markersize=3)
    for level, color in zip(levels, ("#D55E00", "#0072B2"), strict=True):
        axis.axhline(level, color=color, linestyle="--", linewidth=1)


def _truth(point: EvalPoint, replies: Mapping[str, Reply], name: str) -> float:
    """Return the model's p("true") of a claim."""
    label = np.array([read_label(point.questions[name].target)])
    return float(truth_probability(np.array([replies[name].probability]), label)[0])


def _question(point: EvalPoint, name: str) -> str:
    asked = point.questions[name]
    return f"{asked.prompt} {asked.target}"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _finish(figure: Any, axis: Any, path: Path) -> None:
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})
    _pyplot().close(figure)
