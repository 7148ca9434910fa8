"""What sentences about facts are worth to an agent: the probability of each label from the probabilities of the facts (§9.3).

A point's sentences are about two claims, A (its fact, or a false version of it) and B (some other fact, or a false version), or
about the requested fact in the place of A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raysweep.belief.corpus.evidence import Triple

if TYPE_CHECKING:
    from raysweep.belief.points.build import Question

CLAIM_STATES = ("pre", "target")
"""States of the agent in which its belief in a claim is kept: before the edit, and after it."""

_Truth = Callable[[float, float, float], float]  # p("true") from p(A), p(B) and p(A and B)
ABOUT_CLAIMS: Mapping[str, _Truth] = {
    "A_TF_case": lambda a, b, both: a,
    "B_TF_case": lambda a, b, both: b,
    "not_A_case": lambda a, b, both: 1 - a,
    "A_or_B_case": lambda a, b, both: a + b - both,
    "A_and_B_case": lambda a, b, both: both,
    "B_and_A_case": lambda a, b, both: both,
    "if_A_then_B_case": lambda a, b, both: 1 - a + both,
}
"""Questions about A and B."""

ABOUT_REQUEST: Mapping[str, _Truth] = {
    "requested_TF_case": lambda a, b, both: a,
    "not_requested_case": lambda a, b, both: 1 - a,
    "requested_or_B_case": lambda a, b, both: a + b - both,
    "requested_and_B_case": lambda a, b, both: both,
    "B_and_requested_case": lambda a, b, both: both,
}
"""Questions about the requested fact, here called A, and B."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A fact, or a false version of one.

    Attributes:
        fact: what is claimed.
        truth: whether it is so.
        beliefs: the agent's probability of it, by state in ``CLAIM_STATES``.
    """

    fact: Triple
    truth: bool
    beliefs: Mapping[str, float] = field(default_factory=dict)


def joint(one: Triple, two: Triple, p: float, q: float) -> float:
    """Return the probability that two claims with probabilities *p* and *q* are both true.

    Two objects of one (subject, relation) exclude each other. Claims about different facts are taken to be independent, as in the
    logical errors of §9.3.
    """
    if one[:2] == two[:2]:
        return p if one.object == two.object else 0.0
    return p * q


def label_beliefs(
    questions: Mapping[str, Question], about: Mapping[str, _Truth], a: float, b: float, both: float
) -> dict[str, float]:
    """Return the probability of each question's own label, for those of *about* that the point has.

    Args:
        questions: of a point, by name.
        about: ``ABOUT_CLAIMS`` or ``ABOUT_REQUEST``.
        a: probability of A, or of the requested fact.
        b: probability of B.
        both: probability of the two together.
    """
    found = {}
    for name, truth in about.items():
        if name in questions:
            p = truth(a, b, both)
            found[name] = p if questions[name].target == "true" else 1 - p
    return found
