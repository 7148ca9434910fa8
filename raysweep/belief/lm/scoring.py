"""What the answers about many points come to: accuracies, distances from the targets, logical coherence; no model.

The equations are those of :mod:`raysweep.belief.report.metrics`; here replies are laid out as the arrays that they take.

Shapes: n points that have true/false questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.belief.graph.graph import Floats
from raysweep.belief.lm.asking import Reply
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.report.metrics import logical_errors, mean_absolute_error, parse_labels, probabilistic_errors
from raysweep.errors import BeliefError

TRUE_FALSE_CASES = (
    "A_TF_case", "B_TF_case", "not_A_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "if_A_then_B_case",
)  # fmt: skip
"""The cases that are answered ``true`` or ``false``."""
_NEEDED = frozenset({"A_TF_case", "B_TF_case", "A_sentence"})  # what logical coherence cannot do without


@dataclass(frozen=True, slots=True)
class LogicalScoring:
    """How the logical coherence of one point is scored.

    Attributes:
        labels: the label that each case is taken to have: the point's, or (C2) that of the first point of its batch.
        label_prob: (C1) the multiplication check takes A's label probability.
    """

    labels: Mapping[str, str]
    label_prob: bool = False


def scoring_of_points(
    points: Sequence[EvalPoint], parity: ParitySpec | None = None, batch: int = 0
) -> list[LogicalScoring]:
    """Return how each of *points* is scored.

    Args:
        points: in the order in which they are asked.
        parity: ``mult_label_prob`` and ``labels_of_first_point`` score as published.
        batch: points per batch; needed for ``labels_of_first_point`` only.

    Raises:
        BeliefError: parity needs a batch size.
    """
    parity = parity or ParitySpec()
    if parity.labels_of_first_point and batch < 1:
        raise BeliefError("labels_of_first_point needs the batch size")
    labels = [{name: p.questions[name].target for name in TRUE_FALSE_CASES if name in p.questions} for p in points]
    # (C2) The first point of the batch of point i, or the point itself.
    source = [i // batch * batch if parity.labels_of_first_point else i for i in range(len(points))]
    # A case that the first point of the batch lacks keeps the point's own label.
    return [LogicalScoring(own | labels[i], parity.mult_label_prob) for own, i in zip(labels, source, strict=True)]


def logical_coherence(
    points: Sequence[EvalPoint],
    replies: Sequence[Mapping[str, Reply]],
    *,
    parity: ParitySpec | None = None,
    batch: int = 0,
    scoring: Sequence[LogicalScoring] | None = None,
) -> dict[str, Floats]:
    """Return the errors of logical coherence of the points that have true/false questions, fp64 [n] each; none without.

    Args:
        points: in the order in which they are asked.
        replies: of each point, by question.
        parity: scores as published, see :func:`scoring_of_points`.
        batch: points per batch, see there.
        scoring: how each point is scored, in place of what *parity* and *batch* say.
    """
    rows = [i for i, reply in enumerate(replies) if reply.keys() >= _NEEDED]
    if not rows:
        return {}
    scoring = scoring_of_points(points, parity, batch) if scoring is None else scoring
    # Arrays need every case of every point; one that some lack is left out.
    cases = [n for n in TRUE_FALSE_CASES if all(n in replies[i] for i in rows)]
    arrays = (
        np.array([replies[i]["A_sentence"].probability for i in rows]),
        {n: np.array([replies[i][n].probability for i in rows]) for n in cases},
        {n: parse_labels([scoring[i].labels[n] for i in rows]) for n in cases},
    )
    errors = logical_errors(*arrays)
    published = np.array([scoring[i].label_prob for i in rows])
    # (C1) Points may be scored one way or the other; both are computed where any needs it.
    if published.any() and "multiplication" in errors:
        theirs = logical_errors(*arrays, parity=ParitySpec(mult_label_prob=True))["multiplication"]
        errors["multiplication"] = np.where(published, theirs, errors["multiplication"])
    return errors


def evaluation_summary(
    points: Sequence[EvalPoint],
    replies: Sequence[Mapping[str, Reply]],
    *,
    parity: ParitySpec | None = None,
) -> dict[str, float]:
    """Return the numbers of a log row: accuracies, mean \\|errors\\| against each target, logical errors.

    A number that is not defined for any point is left out. ``o_given_s_r_loss`` is the mean −log p(true object).

    Args:
        points: that were asked about.
        replies: of each point, by question.
        parity: of it ``mult_label_prob`` counts; the published evaluation of a model that is not edited gives each point its own
            labels.
    """
    own_labels = (parity or ParitySpec()).model_copy(update={"labels_of_first_point": False})
    numbers: dict[str, float] = {}
    question_names = dict.fromkeys(n for p in points for n, q in p.questions.items() if q.scored)
    for name in question_names:
        of_question = [r[name] for r in replies if name in r]
        if of_question:
            numbers[f"{name}_acc"] = float(np.mean([r.correct for r in of_question]))
            numbers[f"{name}_acc_exact"] = float(np.mean([r.exact for r in of_question]))
    rows = [i for i, reply in enumerate(replies) if "o_given_s_r" in reply]
    if rows:
        p = np.array([replies[i]["o_given_s_r"].probability for i in rows])
        numbers["eval_acc"] = numbers.get("o_given_s_r_acc", 0.0)
        numbers["o_given_s_r_prob"] = float(p.mean())
        # A probability may underflow to 0; its loss stays finite.
        numbers["o_given_s_r_loss"] = float(-np.log(np.maximum(p, 1e-300)).mean())
        for name, errors in probabilistic_errors(p, [points[i].targets for i in rows]).items():
            if (mean := mean_absolute_error(errors)) is not None:
                numbers[f"{name}_error"] = mean
    logical = logical_coherence(points, replies, parity=own_labels)
    return numbers | {f"{name}_loss": float(errors.mean()) for name, errors in logical.items()}
