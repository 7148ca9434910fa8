"""What edits come to: each point before and after its edit, and means of them by group of points.

Before an edit a point is scored against the original objects, after it against the requested object (edited fact) and the
agent's new modal objects (the other watched facts). Deltas are taken point by point from raw values (ruling G2); see
docs/methods/belief.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import LogicalScoring, logical_coherence, scoring_of_points
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import (
    MODAL,
    OBJECT_ROLES,
    ORIGINAL,
    REQUESTED,
    SAME_OTHER,
    SAME_SAME,
    WATCHED_FACTS,
    EvalPoint,
)
from raysweep.belief.report.metrics import edit_coherence, is_new_request
from raysweep.errors import BeliefError
from raysweep.summarize import Estimate, pooled

Place = tuple[str, int]
"""Which point, and which of an arm's trials it was asked in: points are the same in each, so they count once (``pooled``)."""

PointNumbers = Mapping[str, float]
"""``req_prob``, ``{watched}_acc``, ``{watched}_coherence`` and the logical errors, those that are defined."""


@dataclass(frozen=True, slots=True)
class EditScores:
    """One edited point.

    Attributes:
        point: its id.
        place: which point of the arm it is, in which of its trials.
        before, after: the numbers of the unedited and of the edited model.
        new_request: the unedited model did not answer with the requested object.
        correct: it answered with the true object.
        reinforces: the true object is requested.
        implies: the agent's downstream answer changes.
    """

    point: int
    place: Place
    before: PointNumbers
    after: PointNumbers
    new_request: bool
    correct: bool
    reinforces: bool
    implies: bool


POINT_GROUPS: Mapping[str, Callable[[EditScores], bool]] = {
    "all": lambda s: True,
    "updating": lambda s: s.new_request,
    "no implications": lambda s: not s.implies,
    "implications": lambda s: s.implies,
    "updating without implications": lambda s: s.new_request and not s.implies,
    "updating with implications": lambda s: s.new_request and s.implies,
    "breaking": lambda s: s.new_request and s.correct and not s.reinforces,
    "fixing": lambda s: s.new_request and not s.correct and s.reinforces,
}
"""Which points a table is about. The published "implications" are not restricted to new requests; the intersection is ours (G1)."""

MAIN_GROUPS = ("updating", "implications", "fixing")


def score_edits(
    points: Sequence[EvalPoint],
    before: Sequence[Mapping[str, Reply]],
    after: Sequence[Mapping[str, Reply]],
    *,
    parity: ParitySpec | None = None,
    batch: int = 0,
    scoring: Sequence[LogicalScoring] | None = None,
) -> list[EditScores]:
    """Return each point's scores.

    Args:
        points: with edits.
        before: the unedited model's replies, by question, one mapping per point.
        after: the edited model's.
        parity: published metrics.
        batch: points per batch, for ``labels_of_first_point``.
        scoring: how each point is scored, instead of what *parity* and *batch* say.

    Raises:
        BeliefError: a point has no edit, or numbers of replies differ.
    """
    if not len(points) == len(before) == len(after):
        raise BeliefError(f"{len(points)} points, {len(before)} replies before and {len(after)} after")
    scoring = scoring_of_points(points, parity, batch) if scoring is None else scoring
    numbers_before = _numbers(points, before, False, scoring)
    numbers_after = _numbers(points, after, True, scoring)
    scores = []
    places = point_places(points)
    for i, (point, first) in enumerate(zip(points, before, strict=True)):
        if point.request is None or point.flags is None:
            raise BeliefError(f"point {point.id} has no edit", hint="points.editing: true")
        scores.append(
            EditScores(
                point=point.id,
                place=places[i],
                before=numbers_before[i],
                after=numbers_after[i],
                new_request=is_new_request(first["new_fact_case"].output, point.questions["new_fact_case"].target),
                correct=first[f"editing_{SAME_SAME}_{ORIGINAL}"].correct,
                reinforces=point.request.reinforces,
                implies=point.flags.downstream_answer_changes,
            )
        )
    return scores


def _numbers(
    points: Sequence[EvalPoint],
    replies: Sequence[Mapping[str, Reply]],
    edited: bool,
    scoring: Sequence[LogicalScoring],
) -> list[dict[str, float]]:
    """Return the numbers before an edit (against the original objects) or after it (requested and new modal ones)."""
    by_point: list[dict[str, float]] = []
    for point, reply in zip(points, replies, strict=True):
        numbers = {"req_prob": reply[f"editing_{SAME_SAME}_{REQUESTED}"].probability}
        for name in WATCHED_FACTS:
            # What the point should answer: the old truth before the edit, the agent's answer after it.
            role = (REQUESTED if name == SAME_SAME else MODAL) if edited else ORIGINAL
            numbers[f"{name}_acc"] = float(reply[f"editing_{name}_{role}"].correct)
            distance = edit_coherence(point, name, {o: reply[f"editing_{name}_{o}"].probability for o in OBJECT_ROLES})
            # The distance is measured at the object that the point is scored against.
            key = {ORIGINAL: "coherence_orig", REQUESTED: "coherence_requested", MODAL: "coherence_new_modal"}[role]
            numbers[f"{name}_coherence"] = distance[key]
        by_point.append(numbers)
    # `logical_coherence` leaves out points without true/false questions; these are the others, in its order.
    rows = [i for i, reply in enumerate(replies) if {"A_TF_case", "B_TF_case", "A_sentence"} <= reply.keys()]
    for error, values in logical_coherence(points, replies, scoring=scoring).items():
        for i, value in zip(rows, values.tolist(), strict=True):
            by_point[i][error] = value
    return by_point


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """Means over the *n* points of one group, at one time (``pre-edit``, ``post-edit`` or ``delta``)."""

    group: str
    time: str
    n: int
    values: Mapping[str, Estimate]


def group_means(scores: Sequence[EditScores], groups: Sequence[str] = tuple(POINT_GROUPS)) -> list[GroupMeans]:
    """Return three lines for each group that has points: before, after, and after − before, point by point.

    Raises:
        BeliefError: there is no group of that name.
    """
    rows = []
    for group in groups:
        if group not in POINT_GROUPS:
            raise BeliefError(f"no group '{group}'", hint=f"one of {', '.join(POINT_GROUPS)}")
        members = [s for s in scores if POINT_GROUPS[group](s)]
        if not members:
            continue
        times: dict[str, list[PointNumbers]] = {
            "pre-edit": [s.before for s in members],
            "post-edit": [s.after for s in members],
            # Point by point: a mean of differences, not a difference of rounded means.
            "delta": [{n: s.after[n] - v for n, v in s.before.items() if n in s.after} for s in members],
        }
        places = [s.place for s in members]
        rows += [
            GroupMeans(group, time, len(members), mean_estimates(numbers, places, difference=time == "delta"))
            for time, numbers in times.items()
        ]
    return rows


def point_places(points: Sequence[EvalPoint]) -> list[Place]:
    """Return the place of each of an arm's *points*, which come trial by trial: the nth time a point comes is its nth trial."""
    counts = Counter[str]()
    places = []
    for point in points:
        places.append((str(point.id), counts[str(point.id)]))
        counts[str(point.id)] += 1
    return places


def mean_estimates(
    rows: Sequence[PointNumbers], places: Sequence[Place], *, difference: bool = False
) -> dict[str, Estimate]:
    """Return the mean of each number over the rows that have it, with its 95 % interval.

    Args:
        rows: numbers in [0, 1], or paired differences of such numbers.
        places: the place of each row.
        difference: they are differences.
    """
    estimates = {}
    for name in dict.fromkeys(n for row in rows for n in row):
        # A point that comes in several trials of an arm counts once, with the spread between trials beside it.
        by_trial: dict[int, dict[str, float]] = {}
        for row, (point, trial) in zip(rows, places, strict=True):
            if name in row:
                by_trial.setdefault(trial, {})[point] = row[name]
        # Rows, not points: n says how much was measured.
        count = sum(map(len, by_trial.values()))
        estimates[name] = replace(pooled(list(by_trial.values()), difference=difference), n=count)
    return estimates


def downstream_outcomes(
    points: Sequence[EvalPoint], before: Sequence[Mapping[str, Reply]], after: Sequence[Mapping[str, Reply]]
) -> dict[str, Estimate]:
    """Return what became of the downstream answer where the agent changes it: "wrong" hides different failures.

    ``known``: the old answer before the edit. After it: ``new`` answer, ``old`` answer kept, ``leak`` (the object requested
    upstream is given as the downstream answer), ``other``.

    Args:
        points: with edits.
        before: the unedited model's replies, point by point.
        after: the edited model's.
    """
    rows: list[PointNumbers] = []
    places = []
    for place, point, first, last in zip(point_places(points), points, before, after, strict=True):
        if point.flags is None or not point.flags.downstream_answer_changes:
            continue
        # An answer may contain several of the three objects.
        roles = {"new": MODAL, "old": ORIGINAL, "leak": REQUESTED}
        outcome = {name: float(last[f"editing_{SAME_OTHER}_{role}"].correct) for name, role in roles.items()}
        knew_old_answer = float(first[f"editing_{SAME_OTHER}_{ORIGINAL}"].correct)
        rows.append({"known": knew_old_answer, **outcome, "other": float(not any(outcome.values()))})
        places.append(place)
    return mean_estimates(rows, places)


def mean_flags(scores: Sequence[EditScores], points: Sequence[EvalPoint]) -> list[tuple[str, str, dict[str, Estimate]]]:
    """Return, by whether the model was right and whether the request reinforces, the means of the points' flags."""
    rows_by_kind = []
    for correct in (True, False):
        for reinforces in (True, False):
            chosen = [
                (s.place, asdict(p.flags))
                for s, p in zip(scores, points, strict=True)
                if p.flags is not None and (s.correct, s.reinforces) == (correct, reinforces)
            ]
            rows: list[PointNumbers] = [{n: float(v) for n, v in flags.items()} for _, flags in chosen]
            if rows:
                kind = ("right" if correct else "wrong", "reinforcing" if reinforces else "counterfactual")
                rows_by_kind.append((*kind, mean_estimates(rows, [place for place, _ in chosen])))
    return rows_by_kind
