"""Whether one answer is likelier than another, as MEMIT's published evaluation counts it (docs/protocols.md, ``memit_compat``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysweep.evals.scoring import Scores, score
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe, ProbeKind


@dataclass(frozen=True, slots=True)
class Likelier:
    """Two answers to one question.

    Attributes:
        right: geometric mean of the probabilities of the tokens of the answer that should be likelier; NaN = logits not finite.
        wrong: the same of the other one.
        accuracy: share of the right answer's tokens that are the arg-max under teacher forcing.
        n_tokens: how many tokens the right answer has.
        text: the arg-max tokens at its positions, decoded.
    """

    right: float
    wrong: float
    accuracy: float
    n_tokens: int
    text: str

    @property
    def success(self) -> float:
        """1 if the right answer is the likelier one, else 0; NaN where that cannot be told."""
        return math.nan if math.isnan(self.right + self.wrong) else float(self.right > self.wrong)


def compare(lm: LanguageModel, questions: Sequence[tuple[str, str, str]], *, batch: int = 64) -> list[Likelier]:
    """Return how the right and the wrong answer do, for each of *questions*: prompt, right answer, wrong answer."""
    # the kind of a probe is never looked at by whoever asks it
    pairs = [
        Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target)
        for prompt, right, wrong in questions
        for target in (right, wrong)
    ]
    scores = score(lm, pairs, batch=batch)
    return [_likelier(right, wrong) for right, wrong in zip(scores[::2], scores[1::2], strict=True)]


def _likelier(right: Scores, wrong: Scores) -> Likelier:
    accuracy = math.nan
    if right.finite and right.labels:
        accuracy = sum(a == b for a, b in zip(right.answers, right.labels, strict=True)) / len(right.labels)
    return Likelier(_probability(right), _probability(wrong), accuracy, len(right.labels), right.text)


def _probability(scores: Scores) -> float:
    """Return the geometric mean of the probabilities of the tokens; published as exp of minus the mean negative log-probability."""
    if not scores.labels or not math.isfinite(scores.logprob):
        return math.nan
    return math.exp(scores.logprob / len(scores.labels))
