"""The probability of each true/false label from the probabilities of the facts that its sentence is about.

A point's sentences are about two claims, A (its fact, or a false version of it) and B (some other fact, or a false version), or
about the requested fact in the place of A. With a = p(A), b = p(B) and c = p(A and B), the probability that a sentence is true is

    A: a    not A: 1 − a    A or B: a + b − c    A and B: c    if A then B: 1 − a + c
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raysweep.belief.corpus.evidence import Triple
from raysweep.belief.points.types import PointQuestion

TruthProbability = Callable[[float, float, float], float]
"""p("true") from p(A), p(B) and p(A and B)."""

CLAIM_QUESTIONS: Mapping[str, TruthProbability] = {
    "A_TF_case": lambda a, b, both: a,
    "B_TF_case": lambda a, b, both: b,
    "not_A_case": lambda a, b, both: 1 - a,
    "A_or_B_case": lambda a, b, both: a + b - both,
    "A_and_B_case": lambda a, b, both: both,
    "B_and_A_case": lambda a, b, both: both,
    "if_A_then_B_case": lambda a, b, both: 1 - a + both,
}
"""Questions about A and B."""

REQUEST_QUESTIONS: Mapping[str, TruthProbability] = {
    "requested_TF_case": lambda a, b, both: a,
    "not_requested_case": lambda a, b, both: 1 - a,
    "requested_or_B_case": lambda a, b, both: a + b - both,
    "requested_and_B_case": lambda a, b, both: both,
    "B_and_requested_case": lambda a, b, both: both,
}
"""Questions about the requested fact, here called A, and B."""


def joint_probability(first: Triple, second: Triple, p: float, q: float) -> float:
    """Return the probability that two claims with probabilities *p* and *q* are both true.

    Two objects of one (subject, relation) exclude each other. Claims about different facts are taken to be independent, as the
    logical errors take them (:func:`raysweep.belief.report.metrics.logical_errors`).

    Args:
        first: fact of the one claim.
        second: fact of the other.
        p: probability of the first.
        q: probability of the second.
    """
    # A functional graph has one object per (subject, relation), so two different ones are never both true.
    if first[:2] == second[:2]:
        return p if first.object == second.object else 0.0
    return p * q


def label_probabilities(
    questions: Mapping[str, PointQuestion],
    truths: Mapping[str, TruthProbability],
    a: float,
    b: float,
    both: float,
) -> dict[str, float]:
    """Return the probability of each question's own label, for those of *truths* that the point has.

    Args:
        questions: of a point, by name.
        truths: ``CLAIM_QUESTIONS`` or ``REQUEST_QUESTIONS``.
        a: probability of A, or of the requested fact.
        b: probability of B.
        both: probability of the two together.
    """
    probabilities = {}
    for name, truth in truths.items():
        if name in questions:
            # That is p("true"); a question may ask for "false".
            p = truth(a, b, both)
            probabilities[name] = p if questions[name].target == "true" else 1 - p
    return probabilities
