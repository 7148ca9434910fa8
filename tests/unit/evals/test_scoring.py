"""Scores do not depend on batch size, order or company; metrics are what their names say."""

from __future__ import annotations

import math

import pytest
import torch

from raysweep.evals.generation import score_generated
from raysweep.evals.scoring import score
from raysweep.metrics import METRICS, NON_FINITE, Answer
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe, ProbeKind
from raysweep.testing.fixtures import FAMILIES, tiny_lm

PROBES = [
    Probe(kind=ProbeKind.EFFICACY, prompt=p, target=t)
    for p, t in [("A is", "b"), ("A longer prompt is", "some words"), ("Q ", " sp"), ("A is", "b"), ("X", "yy")]
]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_scores_by_hand(family: str) -> None:
    """five pairs, incl. a target with a leading space and a prompt with a trailing one."""
    lm = tiny_lm(family, bos=family == "llama")
    for probe, found in zip(PROBES, score(lm, PROBES), strict=True):
        ids = tokens.encode(lm, f"{probe.prompt} {probe.target}")
        start = len(tokens.encode(lm, probe.prompt))
        with torch.no_grad():
            logits = lm.module(torch.tensor([ids])).logits[0]
        assert found.labels == tuple(ids[start:])
        assert found.answers == tuple(logits[start - 1 : -1].argmax(-1).tolist())
        logp = logits.log_softmax(-1)
        total = sum(float(logp[j - 1, ids[j]]) for j in range(start, len(ids)))
        assert found.logprob == pytest.approx(total, abs=1e-4)


def test_scores_do_not_depend_on_the_batch() -> None:
    lm = tiny_lm("gpt2")
    one, all_, back = score(lm, PROBES, batch=1), score(lm, PROBES, batch=64), score(lm, PROBES[::-1], batch=2)[::-1]
    for a, b, c in zip(one, all_, back, strict=True):
        assert a.answers == b.answers == c.answers
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert a.logprob == pytest.approx(c.logprob, abs=1e-4)


def test_metrics_by_hand() -> None:
    answer = Answer(labels=(1, 2, 3, 4), answers=(1, 2, 9, 9), base=(1, 9, 9, 9), logprob=-2.0)
    values = {name: m(answer) for name, m in METRICS.items()}
    assert values == {
        "token_match": 0.5,
        "exact_match": 0.0,
        "target_logprob": -2.0,
        "ppl": pytest.approx(math.exp(0.5)),
        "agreement": 0.75,
        "any_match": 0.0,
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda m: m.name)
def test_metric_contract(metric: object) -> None:
    """Within its range, 1 or more positions; nothing to compare is a missing value, not 0."""
    assert metric(Answer((), (), (), 0.0)) is None  # type: ignore[operator]
    value = metric(Answer((1, 2), (1, 3), (1, 3), -1.0))  # type: ignore[operator]
    low, high = metric.range  # type: ignore[attr-defined]
    assert low <= value <= high


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_pristine_model_agrees_with_itself(family: str) -> None:
    """locality of θ_0, asked twice in other company, is 1."""
    lm = tiny_lm(family, bos=family == "llama")
    twice = zip(score(lm, PROBES), score(lm, PROBES[::-1], batch=1)[::-1], strict=True)
    assert [METRICS["agreement"](Answer(a.labels, b.answers, a.answers, b.logprob)) for a, b in twice] == [1.0] * 5


def broken(family: str, value: float) -> LanguageModel:
    """Return a tiny model with one entry of *value* in the last norm: every logit of every row depends on it."""
    lm = tiny_lm(family)
    with torch.no_grad():
        lm.part(lm.layout.norm).weight[0] = value
    return lm


@pytest.mark.parametrize("asking", ["teacher_forced", "generation", "generation_ref"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_of_logits_that_are_not_finite_are_undefined(family: str, value: float, asking: str) -> None:
    """The arg-max of NaN or infinity is some token; it says nothing, so no metric may count it as wrong or as right."""
    lm = broken(family, value)
    found = score(lm, PROBES) if asking == "teacher_forced" else score_generated(lm, PROBES, published="ref" in asking)
    pristine = score(tiny_lm(family), PROBES)
    for scores, base in zip(found, pristine, strict=True):
        assert not scores.finite
        assert NON_FINITE in scores.answers
        answer = Answer(scores.labels, scores.answers, base.answers[: len(scores.labels)], scores.logprob)
        for metric in METRICS.values():
            if metric.needs == "target" or len(base.answers) == len(scores.labels):
                value_ = metric(answer)
                assert value_ is not None, metric.name
                assert math.isnan(value_), metric.name
    assert all(scores.finite for scores in pristine)


def test_half_precision_that_overflows_is_undefined() -> None:
    """Every weight is finite, but what is computed with them is not."""
    lm = tiny_lm("llama")
    lm.module.to(torch.float16)
    with torch.no_grad():
        lm.part(lm.layout.norm).weight.fill_(60000.0)
    assert all(bool(p.isfinite().all()) for p in lm.module.parameters())
    assert not any(found.finite for found in score(lm, PROBES))


def test_a_pristine_answer_that_is_undefined_leaves_nothing_to_agree_with() -> None:
    answer = Answer(labels=(1, 2), answers=(1, 2), base=(NON_FINITE, 2), logprob=-1.0)
    assert math.isnan(METRICS["agreement"](answer) or 0.0)
    assert METRICS["token_match"](answer) == 1.0


def test_missing_answers_and_probabilities_are_no_collapse() -> None:
    """A row that ended early counts as wrong; a probability that nobody asked for is missing."""
    answer = Answer(labels=(1, 2), answers=(1, -1), base=(1, 2), logprob=math.nan)
    assert METRICS["token_match"](answer) == 0.5
    assert METRICS["target_logprob"](answer) is None
    assert METRICS["ppl"](answer) is None


@pytest.mark.parametrize(("logprob", "perplexity"), [(-1400.0, math.exp(700)), (-1401.0, math.inf), (-1e30, math.inf)])
def test_a_perplexity_beyond_fp64_is_infinite(logprob: float, perplexity: float) -> None:
    assert METRICS["ppl"](Answer((1, 2), (1, 3), (1, 3), logprob)) == perplexity
