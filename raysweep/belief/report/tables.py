"""Every table of the published notebook, and ours, from what models answered; plain values in, rows out.

A row is a mapping of columns to numbers, words or estimates with an interval. Tables that the published notebook has carry the
names of its files; the names of their columns are ours until :func:`published_columns` translates them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import LogicalScoring, logical_coherence
from raysweep.belief.points.types import MODAL, ORIGINAL, OTHER_OTHER, OTHER_SAME, SAME_OTHER, SAME_SAME, EvalPoint
from raysweep.belief.report import edit_scores
from raysweep.belief.report.edit_scores import GroupMeans, PointNumbers
from raysweep.belief.report.metrics import PROBABILITIES, agent_probability, probability_delta
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
PUBLISHED_COLUMNS = {short: name for name, short in _SHORT.items()} | {"time": "condition"}
"""What the published tables call the columns of ours."""

_GROUPS = {
    "no implications": "No Downstream Implications",
    "implications": "Has Downstream Implications",
    "breaking": "Breaking",
    "fixing": "Fixing",
}
_RENAMED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "edit_generalization": (
        "same_s_diff_r_changes",
        {"updating without implications": "FALSE", "updating with implications": "TRUE"},
    ),
    "table_all_editing_downstream_implications_results": ("data_type", _GROUPS),
    "table_breaking_vs_fixing_results": ("data_type", _GROUPS),
}
CLAIMS = frozenset({"A_TF_case", "B_TF_case", "A_sentence"})  # what logical coherence asks (``belief/lm/scoring.py``)
_QUESTIONS = ["A_TF_case", "B_TF_case", "not_A_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "if_A_then_B_case"]


@dataclass(frozen=True, slots=True)
class Arm:
    """The points that one arm edited apart, and what its models answered before and after each edit.

    ``scoring`` says how each point's logical coherence is scored; None = as corrected.
    ``state`` says where its trials stand if they are not simply done: what is missing is then missing from the means too.
    """

    name: str
    points: Sequence[EvalPoint]
    before: Replies
    after: Replies
    scoring: Sequence[LogicalScoring] | None = None
    state: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one arm's models, edited one point after the other, answered at one step about the points edited so far (step 0: all).

    Attributes:
        expected: the agent's probabilities by question, point by point, given every edit so far.
        targets: what each question asked for.
        scoring: how each point's logical coherence is scored; None = as corrected.
        state: as of :class:`Arm`.
    """

    arm: str
    step: int
    points: Sequence[EvalPoint]
    replies: Replies
    expected: Sequence[Mapping[str, float]]
    targets: Sequence[Mapping[str, str]]
    scoring: Sequence[LogicalScoring] | None = None
    state: str = ""


def all_finite(replies: Replies) -> bool:
    """Tell whether all of *replies* come from finite logits; else what is told by them is undefined."""
    return not any(math.isnan(reply.probability) for own in replies for reply in own.values())


def with_undefined_means(row: Row) -> Row:
    """Return *row* with every mean undefined (NaN): the mean over the others would flatter the editor."""
    return {name: replace(cell, mean=math.nan) if isinstance(cell, Estimate) else cell for name, cell in row.items()}


def arm_columns(name: str, arms: Sequence[Arm | Stage]) -> dict[str, Cell]:
    """Return the columns that name an arm; with its state where one of *arms* is not simply done."""
    states = {arm.arm if isinstance(arm, Stage) else arm.name: arm.state for arm in arms}
    return {"arm": name, **({"state": states[name] or "done"} if any(states.values()) else {})}


def belief_tables(arms: Sequence[Arm]) -> dict[str, list[Row]]:
    """Return the tables by the published names of their files (without ending); ours have names of their own."""
    scores = {arm.name: edit_scores.score_edits(arm.points, arm.before, arm.after, scoring=arm.scoring) for arm in arms}
    first = arms[0]
    # An editor that left weights not finite has no means after its edits.
    is_finite = {arm.name: all_finite(arm.after) for arm in arms}

    def edits(groups: Sequence[str], times: Iterable[str] = ("pre-edit", "post-edit", "delta")) -> list[Row]:
        rows: list[Row] = []
        for name, of_arm in scores.items():
            for means in edit_scores.group_means(of_arm, groups):
                if means.time in times:
                    row: Row = _group_row(means)
                    defined = is_finite[name] or means.time == "pre-edit"
                    rows.append({**arm_columns(name, arms), **(row if defined else with_undefined_means(row))})
        return rows

    before_and_after = ("pre-edit", "post-edit")
    return {
        "main_table": edits(edit_scores.MAIN_GROUPS),
        "pretrained_model_performance": [pretrained_row(first.points, first.before, first.scoring)],
        "pretrained_model_answers": answer_rows(first.points, first.before),
        "pretrained_model_by_group": group_rows(first.points, first.before),
        "edit_types": [
            {"model was": was, "request": kind, "n": means["new_fact_reinforces"].n, **means}
            for was, kind, means in edit_scores.mean_flags(scores[first.name], first.points)
        ],
        "all_data_results": edits(("all",), ("post-edit",)),
        "table_counterfactual_editing_results": edits(("updating",), before_and_after),
        "edit_generalization": edits(("updating without implications", "updating with implications"), ("post-edit",)),
        "table_all_editing_downstream_implications_results": edits(
            ("no implications", "implications"), before_and_after
        ),
        "breaking_updates_results": edits(("breaking",), before_and_after),
        "fixing_updates_results": edits(("fixing",), before_and_after),
        "table_breaking_vs_fixing_results": edits(("breaking", "fixing"), before_and_after),
        "downstream_answers": [
            {
                **arm_columns(arm.name, arms),
                "n": outcomes["known"].n,
                **(outcomes if is_finite[arm.name] else with_undefined_means(outcomes)),
            }
            for arm in arms
            if (outcomes := edit_scores.downstream_outcomes(arm.points, arm.before, arm.after))
        ],
    }


def published_columns(name: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the table *name* with the published columns for those that have any; ours keep their names."""
    column, values = _RENAMED.get(name, ("group", {}))
    published: list[Row] = []
    for row in rows:
        # Of the column "group" the values have published names too, of the others the headings only.
        cells = {PUBLISHED_COLUMNS.get(key, key): cell for key, cell in row.items()}
        published.append(
            {column if k == "group" else k: values.get(str(c), c) if k == "group" else c for k, c in cells.items()}
        )
    return published


def _group_row(means: GroupMeans) -> dict[str, Cell]:
    """Return *means* under the short names of the columns."""
    row: dict[str, Cell] = {"group": means.group, "time": means.time, "n": means.n}
    return row | {short: means.values[name] for name, short in _SHORT.items() if name in means.values}


def pretrained_row(
    points: Sequence[EvalPoint], replies: Replies, scoring: Sequence[LogicalScoring] | None = None
) -> Row:
    """Return the performance of the unedited model: accuracy, distance from the agent, logical errors.

    Args:
        points: that were asked about.
        replies: of the unedited model, point by point.
        scoring: how each is scored; None = as corrected.
    """
    places = edit_scores.point_places(points)
    facts = [(w, p, r["o_given_s_r"]) for w, p, r in zip(places, points, replies, strict=True) if "o_given_s_r" in r]
    numbers: list[PointNumbers] = [
        {"eval_acc": float(r.correct), "prob_coherence": abs(r.probability - agent_probability(p.targets))}
        for _, p, r in facts
    ]
    logical, logical_places = _logical(logical_coherence(points, replies, scoring=scoring), places, replies)
    return {
        "n": len(points),
        **edit_scores.mean_estimates(numbers, [place for place, *_ in facts]),
        **edit_scores.mean_estimates(logical, logical_places),
    }


def _logical(
    errors: Mapping[str, NDArray[np.float64]], places: Sequence[edit_scores.Place], replies: Replies
) -> tuple[list[PointNumbers], list[edit_scores.Place]]:
    """Return the logical *errors* point by point, of the points whose claims were asked, and the places of those."""
    logical_places = [place for place, reply in zip(places, replies, strict=True) if reply.keys() >= CLAIMS]
    by_point = [{name: float(values[i]) for name, values in errors.items()} for i in range(len(logical_places))]
    return list(by_point), logical_places


def answer_rows(points: Sequence[EvalPoint], replies: Replies) -> list[Row]:
    """Return the accuracy on each kind of question, beside the share of its commonest label (what a guess scores)."""
    rows: list[Row] = []
    for name in ("o_given_s_r", *_QUESTIONS):
        by_place = zip(edit_scores.point_places(points), points, replies, strict=True)
        answers = [(p.questions[name], r[name], place) for place, p, r in by_place if name in r]
        if not answers:
            continue
        labels = [question.target for question, *_ in answers]
        # What a model scores that always gives the commonest answer.
        guess = max(labels.count(label) for label in set(labels)) / len(labels)
        numbers: list[PointNumbers] = [
            {"accuracy": float(r.correct), "exact": float(r.exact), "p(label)": r.probability} for _, r, _ in answers
        ]
        means = edit_scores.mean_estimates(numbers, [place for *_, place in answers])
        rows.append({"question": name, "n": len(answers), "guess": guess, **means})
    return rows


def group_rows(points: Sequence[EvalPoint], replies: Replies) -> list[Row]:
    """Return accuracy and distance from the seven targets, by whether the upstream relation is there, and by case seen."""
    rows = [*_rows_by_upstream(points, replies), *_rows_by_seen(points, replies)]
    # A column that one row has, all have: a table needs the same ones everywhere.
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def _rows_by_upstream(points: Sequence[EvalPoint], replies: Replies) -> Iterator[Row]:
    """Yield accuracy and distances, by whether the subject has the upstream relation."""
    places = edit_scores.point_places(points)
    for present in (True, False):
        answers = [
            (p, r["o_given_s_r"], place)
            for place, p, r in zip(places, points, replies, strict=True)
            if p.has_relevant_property == present and "o_given_s_r" in r
        ]
        numbers = [
            {"accuracy": float(r.correct)}
            | {f"|p − {n}|": abs(r.probability - v) for n in PROBABILITIES if (v := getattr(p.targets, n)) is not None}
            for p, r, _ in answers
        ]
        if answers:
            means = edit_scores.mean_estimates(numbers, [place for *_, place in answers])
            yield {"group": f"has_relevant_property = {present}", "n": len(answers), **means}


def _rows_by_seen(points: Sequence[EvalPoint], replies: Replies) -> Iterator[Row]:
    """Yield the accuracy on each kind of question, by whether exactly this sentence was seen in training."""
    places = edit_scores.point_places(points)
    for name in ("o_given_s_r", *_QUESTIONS):
        for seen in (True, False):
            answers = [
                (r[name].correct, place)
                for place, p, r in zip(places, points, replies, strict=True)
                if name in r and p.questions[name].seen == seen
            ]
            if answers:
                numbers = [{"accuracy": float(correct)} for correct, _ in answers]
                accuracy = edit_scores.mean_estimates(numbers, [place for _, place in answers])
                group = f"{name}, {'' if seen else 'not '}seen in training"
                yield {"group": group, "n": len(answers), **accuracy}


def probability_deltas(points: Sequence[EvalPoint]) -> list[float]:
    """Return by how much each targeted update lifts the agent's belief in the requested object (a histogram of the notebook)."""
    return [probability_delta(point) for point in points]


def figure_points(points: Sequence[EvalPoint], count: int = 3) -> list[int]:
    """Return the points that make good figures: the downstream answer changes, and both updates move the agent by > .2."""
    candidates = []
    for i, point in enumerate(points):
        if point.flags is None or point.watched is None or not point.flags.downstream_answer_changes:
            continue
        targets = point.watched[SAME_OTHER].targets
        rise = agent_probability(targets["target"][MODAL]) - agent_probability(targets["pre"][MODAL])
        if probability_delta(point) > 0.2 and rise > 0.2:
            # The largest rise first.
            candidates.append((-rise, i))
    return [i for _, i in sorted(candidates)[:count]]


def lifelong_rows(stages: Sequence[Stage]) -> list[Row]:
    """Return, for each arm and step, how the model fares beside the agent that was given all edits so far."""
    rows: list[Row] = []
    for stage in stages:
        numbers = [
            _stage_numbers(stage.step, replies, expected, targets)
            for replies, expected, targets in zip(stage.replies, stage.expected, stage.targets, strict=True)
        ]
        places = edit_scores.point_places(stage.points)
        # Logical errors exist for the points whose claims were asked, so they have places of their own.
        errors = logical_coherence(stage.points, stage.replies, scoring=stage.scoring)
        logical, logical_places = _logical(errors, places, stage.replies)
        means = edit_scores.mean_estimates(numbers, places) | edit_scores.mean_estimates(logical, logical_places)
        changed = means.get("changed")
        row: Row = {
            **arm_columns(stage.arm, stages),
            "edits": stage.step,
            "n": len(stage.points),
            **{short: means.get(name) for name, short in _SHORT.items() if name != "req_prob"},
            "n: answer changes": changed.n if changed else 0,
            "new answer": changed,
            "old answer": means.get("kept"),
        }
        rows.append(row if all_finite(stage.replies) else with_undefined_means(row))
    return rows


def _stage_numbers(
    step: int, replies: Mapping[str, Reply], expected: Mapping[str, float], targets: Mapping[str, str]
) -> PointNumbers:
    """Return the numbers of one point after *step* edits: accuracy and distance from the agent at each watched fact."""
    role = MODAL if step else ORIGINAL
    numbers: dict[str, float] = {}
    for name in (SAME_SAME, SAME_OTHER, OTHER_SAME, OTHER_OTHER):
        # Once edited, the fact itself is asked for what was requested last.
        question = "new_fact_case" if name == SAME_SAME and step else f"editing_{name}_{role}"
        numbers[f"{name}_acc"] = float(replies[question].correct)
        numbers[f"{name}_coherence"] = abs(replies[question].probability - expected[question])
    new, old = (f"editing_{SAME_OTHER}_{r}" for r in (MODAL, ORIGINAL))
    if step and targets[new] != targets[old]:
        numbers["changed"] = float(replies[new].correct)
        numbers["kept"] = float(replies[old].correct)
    return numbers


def histogram(values: Sequence[float], bins: int = 20) -> list[Row]:
    """Return how many of *values* lie in each of *bins* equal parts of [0, 1]."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
    return [
        {"from": float(low), "to": float(high), "n": int(n)}
        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
