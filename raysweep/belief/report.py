"""Every table of the published notebook (§9.5, §9.6), and ours, from what models answered; plain values in, rows out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysweep.belief import scores
from raysweep.belief.asking import Reply, coherence
from raysweep.belief.metrics import PROBABILITIES, believed, probability_delta
from raysweep.belief.points import MODAL, ORIGINAL, OTHER_OTHER, OTHER_SAME, SAME_OTHER, SAME_SAME, EvalPoint
from raysweep.belief.scores import Line, Numbers, Scored
from raysweep.summarize import Estimate

Cell = Estimate | float | int | str | None
Row = Mapping[str, Cell]
Replies = Sequence[Mapping[str, Reply]]

_SHORT = {
    "req_prob": "p(requested)",
    f"{SAME_SAME}_acc": "acc: edited",
    f"{SAME_OTHER}_acc": "acc: same s, other r",
    f"{OTHER_SAME}_acc": "acc: other s, same r",
    f"{OTHER_OTHER}_acc": "acc: other s, other r",
    f"{SAME_SAME}_coherence": "coh: edited",
    f"{SAME_OTHER}_coherence": "coh: same s, other r",
    f"{OTHER_SAME}_coherence": "coh: other s, same r",
    f"{OTHER_OTHER}_coherence": "coh: other s, other r",
    "TF_coherence": "TF",
    "negation": "not",
    "multiplication": "and",
    "disjunction": "or",
}
_BASE = ["A_TF_case", "B_TF_case", "not_A_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "if_A_then_B_case"]


@dataclass(frozen=True, slots=True)
class Arm:
    """The points that one arm edited apart, and what its models answered before and after each edit.

    ``state`` says where its trials stand if they are not simply done: what is missing is then missing from the means too.
    """

    name: str
    points: Sequence[EvalPoint]
    before: Replies
    after: Replies
    state: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one arm's models, edited one point after the other, answered at one step about the points edited so far (step 0: all).

    Attributes:
        expected: the agent's probabilities by question, point by point, given every edit so far.
        targets: what each question asked for.
        state: as of :class:`Arm`.
    """

    arm: str
    step: int
    points: Sequence[EvalPoint]
    replies: Replies
    expected: Sequence[Mapping[str, float]]
    targets: Sequence[Mapping[str, str]]
    state: str = ""


def finite(replies: Replies) -> bool:
    """Tell whether all of *replies* come from finite logits; else what is told by them is undefined."""
    return not any(math.isnan(reply.probability) for own in replies for reply in own.values())


def undefined(row: Row) -> Row:
    """Return *row* with every mean undefined (NaN): the mean over the others would flatter the editor."""
    return {name: replace(cell, mean=math.nan) if isinstance(cell, Estimate) else cell for name, cell in row.items()}


def with_state(name: str, arms: Sequence[Arm | Stage]) -> dict[str, Cell]:
    """Return the columns that name an arm; with its state where one of *arms* is not simply done."""
    named = {arm.arm if isinstance(arm, Stage) else arm.name: arm.state for arm in arms}
    return {"arm": name, **({"state": named[name] or "done"} if any(named.values()) else {})}


def tables(arms: Sequence[Arm]) -> dict[str, list[Row]]:
    """Return the tables by the published names of their files (without ending); ours have names of their own."""
    scored = {arm.name: scores.score(arm.points, arm.before, arm.after) for arm in arms}
    first = arms[0]
    sound = {arm.name: finite(arm.after) for arm in arms}

    def edits(groups: Sequence[str], times: Iterable[str] = ("pre-edit", "post-edit", "delta")) -> list[Row]:
        return [
            {
                **with_state(name, arms),
                **(_line(line) if sound[name] or line.time == "pre-edit" else undefined(_line(line))),
            }
            for name, own in scored.items()
            for line in scores.table(own, groups)
            if line.time in times
        ]

    two = ("pre-edit", "post-edit")
    return {
        "main_table": edits(scores.MAIN),
        "pretrained_model_performance": [pretrained_row(first.points, first.before)],
        "pretrained_model_answers": answer_rows(first.points, first.before),
        "pretrained_model_by_group": group_rows(first.points, first.before),
        "edit_types": [
            {"model was": was, "request": kind, "n": means["new_fact_reinforces"].n, **means}
            for was, kind, means in scores.flags(scored[first.name], first.points)
        ],
        "all_data_results": edits(("all",), ("post-edit",)),
        "table_counterfactual_editing_results": edits(("updating",), two),
        "edit_generalization": edits(("updating without implications", "updating with implications"), ("post-edit",)),
        "table_all_editing_downstream_implications_results": edits(("no implications", "implications"), two),
        "breaking_updates_results": edits(("breaking",), two),
        "fixing_updates_results": edits(("fixing",), two),
        "table_breaking_vs_fixing_results": edits(("breaking", "fixing"), two),
        "downstream_answers": [
            {**with_state(arm.name, arms), "n": fate["known"].n, **(fate if sound[arm.name] else undefined(fate))}
            for arm in arms
            if (fate := scores.fates(arm.points, arm.before, arm.after))
        ],
    }


def _line(line: Line) -> dict[str, Cell]:
    row: dict[str, Cell] = {"group": line.group, "time": line.time, "n": line.n}
    return row | {short: line.values[name] for name, short in _SHORT.items() if name in line.values}


def pretrained_row(points: Sequence[EvalPoint], replies: Replies) -> Row:
    """Return the performance of the unedited model: accuracy, distance from the agent, logical errors."""
    asked = [(p, r["o_given_s_r"]) for p, r in zip(points, replies, strict=True) if "o_given_s_r" in r]
    own: list[Numbers] = [
        {"eval_acc": float(r.correct), "prob_coherence": abs(r.probability - believed(p.targets))} for p, r in asked
    ]
    logical = {
        n: scores.means([{n: v} for v in values.tolist()])[n] for n, values in coherence(points, replies).items()
    }
    return {"n": len(points), **scores.means(own), **logical}


def answer_rows(points: Sequence[EvalPoint], replies: Replies) -> list[Row]:
    """Return the accuracy on each kind of question, beside the share of its commonest label (what a guess scores)."""
    rows: list[Row] = []
    for name in ("o_given_s_r", *_BASE):
        own = [(p.questions[name], r[name]) for p, r in zip(points, replies, strict=True) if name in r]
        if not own:
            continue
        labels = [q.target for q, _ in own]
        guess = max(labels.count(label) for label in set(labels)) / len(labels)
        numbers: list[Numbers] = [
            {"accuracy": float(r.correct), "exact": float(r.exact), "p(label)": r.probability} for _, r in own
        ]
        rows.append({"question": name, "n": len(own), "guess": guess, **scores.means(numbers)})
    return rows


def group_rows(points: Sequence[EvalPoint], replies: Replies) -> list[Row]:
    """Return accuracy and distance from the seven targets, by whether the upstream relation is there, and by case seen."""
    rows: list[Row] = []
    for present in (True, False):
        own = [
            (p, r["o_given_s_r"])
            for p, r in zip(points, replies, strict=True)
            if p.has_relevant_property == present and "o_given_s_r" in r
        ]
        numbers = [
            {"accuracy": float(r.correct)}
            | {f"|p − {n}|": abs(r.probability - v) for n in PROBABILITIES if (v := getattr(p.targets, n)) is not None}
            for p, r in own
        ]
        if own:
            rows.append({"group": f"has_relevant_property = {present}", "n": len(own), **scores.means(numbers)})
    for name in ("o_given_s_r", *_BASE):
        for seen in (True, False):
            mine = [
                r[name].correct
                for p, r in zip(points, replies, strict=True)
                if name in r and p.questions[name].seen == seen
            ]
            if mine:
                accuracy = scores.means([{"accuracy": float(c)} for c in mine])
                rows.append({"group": f"{name}, {'' if seen else 'not '}seen in training", "n": len(mine), **accuracy})
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def probability_deltas(points: Sequence[EvalPoint]) -> list[float]:
    """Return by how much each targeted update lifts the agent's belief in the requested object (a histogram of the notebook)."""
    return [probability_delta(point) for point in points]


def examples(points: Sequence[EvalPoint], count: int = 3) -> list[int]:
    """Return the points that make good figures (§9.6): the downstream answer changes, and both updates move the agent by > .2."""
    found = []
    for i, point in enumerate(points):
        if point.flags is None or point.watched is None or not point.flags.downstream_answer_changes:
            continue
        targets = point.watched[SAME_OTHER].targets
        moved = believed(targets["target"][MODAL]) - believed(targets["pre"][MODAL])
        if probability_delta(point) > 0.2 and moved > 0.2:
            found.append((-moved, i))
    return [i for _, i in sorted(found)[:count]]


def lifelong_rows(stages: Sequence[Stage]) -> list[Row]:
    """Return, for each arm and step, how the model fares beside the agent that was given all edits so far."""
    rows: list[Row] = []
    for stage in stages:
        numbers: list[Numbers] = []
        role = MODAL if stage.step else ORIGINAL
        for replies, expected, targets in zip(stage.replies, stage.expected, stage.targets, strict=True):
            own = dict[str, float]()
            for name in (SAME_SAME, SAME_OTHER, OTHER_SAME, OTHER_OTHER):
                asked = "new_fact_case" if name == SAME_SAME and stage.step else f"editing_{name}_{role}"
                own[f"{name}_acc"] = float(replies[asked].correct)
                own[f"{name}_coherence"] = abs(replies[asked].probability - expected[asked])
            follows, was = (f"editing_{SAME_OTHER}_{r}" for r in (MODAL, ORIGINAL))
            if stage.step and targets[follows] != targets[was]:
                own["changed"] = float(replies[follows].correct)
                own["kept"] = float(replies[was].correct)
            numbers.append(own)
        logical = [
            {name: value}
            for name, values in coherence(stage.points, stage.replies).items()
            for value in values.tolist()
        ]
        means = scores.means([*numbers, *logical])
        changed = means.get("changed")
        row: Row = {
            **with_state(stage.arm, stages),
            "edits": stage.step,
            "n": len(stage.points),
            **{short: means.get(name) for name, short in _SHORT.items() if name != "req_prob"},
            "n: answer changes": changed.n if changed else 0,
            "new answer": changed,
            "old answer": means.get("kept"),
        }
        rows.append(row if finite(stage.replies) else undefined(row))
    return rows


def histogram(values: Sequence[float], bins: int = 20) -> list[Row]:
    """Return how many of *values* lie in each of *bins* equal parts of [0, 1]."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
    return [
        {"from": float(low), "to": float(high), "n": int(n)}
        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


__all__ = ["Arm", "Cell", "Row", "Scored", "Stage", "examples", "histogram", "lifelong_rows", "tables"]
