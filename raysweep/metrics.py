"""Metrics: pure functions of what was answered (docs/methods/evaluation.md). One function here, with its decorator, adds one.

For the ``m`` answer tokens of a probe with labels ``y_j``, answered ids ``ŷ_j`` and the pristine model's ids ``b_j``::

    token_match = mean_j [ŷ_j = y_j]      exact_match = [ŷ = y]      agreement = mean_j [ŷ_j = b_j]
    target_logprob = Σ_j log p(y_j | x, y_{<j})                      ppl = exp(−target_logprob / m)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from raysweep.errors import NameUnknownError, PluginError, nearest
from raysweep.registry import Registry

Needs = Literal["target", "base"]
# Not -1, which is an answer that is missing; no token has a negative id.
NON_FINITE = -2
"""Stands for the answered id where the logits were not finite: the arg-max of NaN or infinity says nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a metric sees: ids of the target, ids answered, ids the pristine model answered, log-probability of the target.

    An id of -1 stands for an answer that is missing, :data:`NON_FINITE` for one that cannot be told. ``matched`` tells whether one
    of the probe's alternatives was answered, ``counts`` whether the unedited model knew what it must for the probe to count.
    """

    labels: Sequence[int]
    answers: Sequence[int]
    base: Sequence[int]
    logprob: float
    matched: bool = False
    counts: bool = True


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
        """Return the value; None if no position was compared, or none was asked for its probability.

        NaN says that the value is undefined: the logits behind an answer, or behind the pristine answer that it is compared
        with, were not finite.
        """
        if not answer.labels:
            return None
        if NON_FINITE in answer.answers or (self.needs == "base" and NON_FINITE in answer.base):
            return math.nan
        value = self.function(answer)
        # NaN from a metric means that there is no value; undefined ones were told apart above.
        return None if math.isnan(value) else value


METRICS: dict[str, Metric] = {}
PLUGINS: Registry[Callable[[Answer], float]] = Registry("metric", {})
"""Metrics of other people's packages: functions with the decorator :func:`metric`, imported when they are asked for."""
DEFAULT_METRICS = ("token_match", "exact_match", "target_logprob", "ppl", "agreement")
"""What a protocol measures that names no metrics. It must not grow: every past trial would get another key and not be done."""


def metric(
    *, version: int, needs: Needs, range: tuple[float, float] = (0.0, 1.0), higher_is_better: bool = True
) -> Callable[[Callable[[Answer], float]], Callable[[Answer], float]]:
    """Return a decorator that puts a function into the table of metrics under its own name.

    Args:
        version: of its numbers, a part of the key; raise it when they change.
        needs: probes that it applies to, those compared with their ``target`` or with the pristine model's answer (``base``).
        range: least and largest value.
        higher_is_better: which way is up.
    """

    def enter(function: Callable[[Answer], float]) -> Callable[[Answer], float]:
        name = function.__name__
        known = METRICS.get(name)
        # A second function of one name would change what that name means, in results that are there already too.
        if known is not None and known.function.__module__ != function.__module__:
            modules = f"{known.function.__module__} and {function.__module__}"
            raise PluginError(f"metric '{name}' is defined twice: {modules}", hint="give one of them another name")
        doc = (function.__doc__ or "").strip().splitlines()[0]
        METRICS[name] = Metric(name, version, higher_is_better, range, needs, doc, function)
        return function

    return enter


@metric(version=2, needs="target")
def token_match(answer: Answer) -> float:
    """Share of target tokens that are the arg-max under teacher forcing (SimIE's Rel and Gen)."""
    return sum(a == b for a, b in zip(answer.answers, answer.labels, strict=True)) / len(answer.labels)


@metric(version=2, needs="target")
def exact_match(answer: Answer) -> float:
    """1 if every target token is the arg-max under teacher forcing, else 0 (the paper's indicator; quirk Q44)."""
    return float(tuple(answer.answers) == tuple(answer.labels))


@metric(version=2, needs="target", range=(-math.inf, 0.0))
def target_logprob(answer: Answer) -> float:
    """Log-probability of the whole target, nats."""
    return answer.logprob


@metric(version=2, needs="target", range=(1.0, math.inf), higher_is_better=False)
def ppl(answer: Answer) -> float:
    """Perplexity of the target given the prompt, exp of the mean negative log-probability (docs/methods/evaluation.md).

    It is infinite where fp64 cannot hold it (above exp(700)).
    """
    # exp(700) is the largest power of e, in round numbers, that fp64 holds.
    surprise = -answer.logprob / len(answer.labels)
    return math.inf if surprise > 700.0 else math.exp(surprise)


@metric(version=2, needs="base")
def agreement(answer: Answer) -> float:
    """Share of positions at which the arg-max is the pristine model's own (SimIE's Loc)."""
    return sum(a == b for a, b in zip(answer.answers, answer.base, strict=True)) / len(answer.labels)


@metric(version=1, needs="target")
def any_match(answer: Answer) -> float:
    """1 if the target or one of the probe's alternatives is the arg-max in every token; missing where the probe does not count."""
    if not answer.counts:
        return math.nan
    return float(answer.matched or tuple(answer.answers) == tuple(answer.labels))


# Taken here, before any plugin can enter one: the order of the shipped metrics is in keys.
_SHIPPED = tuple(METRICS)


def metric_of(name: str) -> Metric:
    """Return the metric called *name*; one of somebody's package is imported first.

    Raises:
        NameUnknownError: there is none.
        PluginError: it cannot be imported.

    >>> metric_of("token_match").needs
    'target'
    """
    if name not in METRICS:
        if name not in PLUGINS:
            raise NameUnknownError(f"unknown metric '{name}'", hint=nearest(name, [*METRICS, *PLUGINS.names()]))
        # Importing its module runs the decorator, which enters it.
        PLUGINS.get(name)
        if name not in METRICS:
            raise PluginError(
                f"the entry point '{name}' ({PLUGINS.origin(name)}) enters no metric of that name",
                hint="name the entry point after the function, and give that the decorator @metric(version=…, needs=…)",
            )
    return METRICS[name]


def every_metric() -> tuple[dict[str, Metric], dict[str, PluginError]]:
    """Return all metrics by name, those of other people's packages last, and why some of these cannot be used."""
    faults = {}
    for name in PLUGINS.names():
        try:
            # One package that cannot be imported must not hide the metrics of the others.
            metric_of(name)
        except PluginError as error:
            faults[name] = error
    return {name: METRICS[name] for name in in_table_order(METRICS)}, faults


def in_table_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return *names*, each once: those that are shipped in the order of the table, then the others in that of the alphabet.

    So the order depends neither on who asks nor on what was imported first.
    """
    chosen = set(names)
    return (*(name for name in _SHIPPED if name in chosen), *sorted(chosen.difference(_SHIPPED)))
