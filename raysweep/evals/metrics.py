"""Metrics: pure functions of what was answered. One function here, with its decorator, adds one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Needs = Literal["target", "base"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a metric sees: ids of the target, ids answered, ids the pristine model answered, log-probability of the target."""

    labels: Sequence[int]
    answers: Sequence[int]
    base: Sequence[int]
    logprob: float


@dataclass(frozen=True, slots=True)
class Metric:
    """A named, versioned function of one :class:`Answer`.

    ``needs`` says which probes it applies to: those compared with their target, or with the pristine model's answer.
    """

    name: str
    version: int
    higher_is_better: bool
    range: tuple[float, float]
    needs: Needs
    doc: str
    function: Callable[[Answer], float]

    def __call__(self, answer: Answer) -> float | None:
        """Return the value, or None if no position was compared, or none was asked for its probability."""
        value = self.function(answer) if answer.labels else None
        return None if value is None or math.isnan(value) else value


METRICS: dict[str, Metric] = {}


def metric(
    *, version: int, needs: Needs, range: tuple[float, float] = (0.0, 1.0), higher_is_better: bool = True
) -> Callable[[Callable[[Answer], float]], Callable[[Answer], float]]:
    """Put a function into the table of metrics under its own name."""

    def enter(function: Callable[[Answer], float]) -> Callable[[Answer], float]:
        name = function.__name__
        doc = (function.__doc__ or "").strip().splitlines()[0]
        METRICS[name] = Metric(name, version, higher_is_better, range, needs, doc, function)
        return function

    return enter


@metric(version=1, needs="target")
def token_match(answer: Answer) -> float:
    """Share of target tokens that are the arg-max under teacher forcing (SimIE's Rel and Gen; editors.md §3.1)."""
    return sum(a == b for a, b in zip(answer.answers, answer.labels, strict=True)) / len(answer.labels)


@metric(version=1, needs="target")
def exact_match(answer: Answer) -> float:
    """1 if every target token is the arg-max under teacher forcing, else 0 (the paper's indicator; quirk Q44)."""
    return float(tuple(answer.answers) == tuple(answer.labels))


@metric(version=1, needs="target", range=(-math.inf, 0.0))
def target_logprob(answer: Answer) -> float:
    """Log-probability of the whole target, nats."""
    return answer.logprob


@metric(version=1, needs="target", range=(1.0, math.inf), higher_is_better=False)
def ppl(answer: Answer) -> float:
    """Perplexity of the target given the prompt, exp of the mean negative log-probability (editors.md §3.4)."""
    return math.exp(min(-answer.logprob / len(answer.labels), 700.0))


@metric(version=1, needs="base")
def agreement(answer: Answer) -> float:
    """Share of positions at which the arg-max is the pristine model's own (SimIE's Loc; editors.md §3.2)."""
    return sum(a == b for a, b in zip(answer.answers, answer.base, strict=True)) / len(answer.labels)
