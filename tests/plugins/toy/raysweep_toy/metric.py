"""A metric: whether the first token is right."""

from __future__ import annotations

from raysweep.metrics import Answer, metric


@metric(version=4, needs="target")
def first_right(answer: Answer) -> float:
    """1 if the first target token is the arg-max, else 0."""
    return float(answer.answers[0] == answer.labels[0])
