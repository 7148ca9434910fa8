"""Metrics: a coherent oracle scores 0, the published errors are reproduced, edits are scored by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raysweep.belief.corpus.evidence import Triple
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import (
    MODAL,
    OBJECT_ROLES,
    ORIGINAL,
    REQUESTED,
    WATCHED_FACTS,
    EvalPoint,
    TargetProbabilities,
    WatchedFact,
)
from raysweep.belief.report import metrics
from raysweep.errors import BeliefError

CASES = ("A_TF_case", "B_TF_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "not_A_case", "if_A_then_B_case")
FIVE = {"TF_coherence", "negation", "commutation", "multiplication", "disjunction"}


def coherent(p_a: np.ndarray, p_b: np.ndarray, a: np.ndarray, b: np.ndarray):  # type: ignore[no-untyped-def]
    """What a coherent model answers that gives A and B the probabilities of being true; *a*, *b*: whether they are."""
    true = {
        "A_TF_case": p_a,
        "B_TF_case": p_b,
        "A_and_B_case": p_a * p_b,
        "B_and_A_case": p_a * p_b,
        "A_or_B_case": p_a + p_b - p_a * p_b,
        "not_A_case": 1 - p_a,
        "if_A_then_B_case": 1 - p_a + p_a * p_b,
    }
    labels = dict(zip(CASES, (a, b, a & b, a & b, a | b, ~a, ~a | b), strict=True))
    return p_a, {case: np.where(labels[case], true[case], 1 - true[case]) for case in CASES}, labels


def sharp(p: float, count: int = 4000):  # type: ignore[no-untyped-def]
    """A coherent model that is right with probability *p*, on points with fair coins."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, count)) < 0.5
    return a, b, coherent(np.where(a, p, 1 - p), np.where(b, p, 1 - p), a, b)


def test_a_coherent_model_scores_nought() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 500)) < 0.5
    found = metrics.logical_errors(*coherent(*rng.random((2, 500)), a, b))
    assert set(found) == FIVE | {"implication"}
    for errors in found.values():
        assert errors.max() < 1e-12


def test_incoherence_is_measured() -> None:
    one = np.array([True])
    p = {
        "A_TF_case": 0.9,
        "B_TF_case": 0.5,
        "A_and_B_case": 0.6,
        "B_and_A_case": 0.4,
        "A_or_B_case": 0.8,
        "not_A_case": 0.3,
    }
    given = {case: np.array([value]) for case, value in p.items()}
    found = metrics.logical_errors(np.array([0.7]), given, dict.fromkeys(p, one))
    wanted = {"TF_coherence": 0.2, "negation": 0.2, "commutation": 0.2, "multiplication": 0.15, "disjunction": 0.15}
    assert {k: v[0] for k, v in found.items()} == pytest.approx(wanted)


def test_published_multiplication_error() -> None:
    """C1: a coherent model with p = .9 scores .72 where A is false and B true, .20 on average."""
    a, b, given = sharp(0.9)
    fixed = metrics.logical_errors(*given)
    published = metrics.logical_errors(*given, parity=ParitySpec(mult_label_prob=True))
    assert published["multiplication"][~a & b] == pytest.approx(0.72)
    assert published["multiplication"].mean() == pytest.approx(0.20, abs=0.02)
    for name in FIVE - {"multiplication"}:
        assert (published[name] == fixed[name]).all()


def test_published_labels_of_the_first_point() -> None:
    """C2: with the labels of the batch's first point a sharp coherent model scores about .45; negation is unaffected."""
    _, _, given = sharp(0.95)
    published = metrics.logical_errors(*given, parity=ParitySpec(labels_of_first_point=True), batch=64)
    assert published["TF_coherence"].mean() == pytest.approx(0.45, abs=0.03)
    assert published["commutation"].max() < 1e-12
    alone = metrics.logical_errors(*given, parity=ParitySpec(labels_of_first_point=True), batch=1)
    assert max(errors.max() for errors in alone.values()) < 1e-12
    with pytest.raises(BeliefError, match="needs the batch size"):
        metrics.logical_errors(*given, parity=ParitySpec(labels_of_first_point=True))


def test_absent_cases_are_absent_and_tf_is_needed() -> None:
    objects, probabilities, labels = sharp(0.9, 5)[2]
    few = {case: probabilities[case] for case in ("A_TF_case", "B_TF_case", "A_and_B_case")}
    assert set(metrics.logical_errors(objects, few, labels)) == {"TF_coherence", "multiplication"}
    with pytest.raises(BeliefError, match="needs the cases A_TF_case and B_TF_case"):
        metrics.logical_errors(objects, {"not_A_case": probabilities["not_A_case"]}, labels)
    with pytest.raises(BeliefError, match="case A_and_B_case: 4 probabilities, 5 labels, 5 points"):
        metrics.logical_errors(objects, {**few, "A_and_B_case": probabilities["A_and_B_case"][:4]}, labels)


def test_label_words() -> None:
    assert metrics.parse_labels(["true", "false"]).tolist() == [True, False]
    with pytest.raises(BeliefError, match="'maybe' is no label"):
        metrics.parse_labels(["true", "maybe"])


@pytest.mark.parametrize(
    ("output", "label", "lenient", "exact"),
    [
        (" Southland", "Southland", True, True),
        ("southland. Ada lives", "Southland", True, True),
        ("Southland City", "Southland", True, False),
        ("St. Ives", "St Ives", True, False),
        ("Northland", "Southland", False, False),
        ("true", "true", True, True),
    ],
)
def test_accuracy(output: str, label: str, lenient: bool, exact: bool) -> None:
    assert metrics.contains_answer(output, label) is lenient
    assert metrics.is_exact_answer(output, label) is exact


def test_new_requests_are_matched_as_text() -> None:
    assert metrics.is_new_request("Velm", "V(e)lm") is False
    assert metrics.is_new_request("Velm", "V.lm") is True  # no regular expression
    assert metrics.is_new_request("Orrin (the old one)", "orrin the") is False


def test_probabilistic_errors_are_signed_and_skip_what_is_not_defined() -> None:
    targets = [
        TargetProbabilities(0.5, 0.6, 0.7, None, None, None, None, 9.0),
        TargetProbabilities(None, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 9.0),
    ]
    found = metrics.probabilistic_errors(np.array([0.6, 0.3]), targets)
    assert list(found) == list(TargetProbabilities._fields[:7])
    assert found["posterior_prob_o_given_s_r"] == pytest.approx([-0.1, 0.0])
    assert metrics.mean_absolute_error(found["posterior_prob_o_given_s_r"]) == pytest.approx(0.05)
    assert metrics.mean_absolute_error(found["generative_prob"]) == pytest.approx(0.1)
    assert metrics.mean_absolute_error(found["posterior_prob_marginalized"]) == pytest.approx(0.2)
    assert metrics.mean_absolute_error(np.array([np.nan])) is None
    with pytest.raises(BeliefError, match="1 probabilities for 2 points"):
        metrics.probabilistic_errors(np.array([0.6]), targets)


def point(edit: bool = True) -> EvalPoint:
    """A point whose targets encode where they come from: state.role, marginal = pair / 2 where there is a parent."""

    def target(state: int, role: int, parent: bool) -> TargetProbabilities:
        pair = 0.1 * state + 0.01 * role
        return TargetProbabilities(None, 0.0, pair, None, pair / 2 if parent else None, None, None, 1.0)

    watched = {
        name: WatchedFact(
            Triple(0, 0, 0),
            dict.fromkeys(OBJECT_ROLES, 0),
            {
                s: {o: target(i, j, name != WATCHED_FACTS[3]) for j, o in enumerate(OBJECT_ROLES)}
                for s, i in (("pre", 2), ("target", 8))
            },
        )
        for name in WATCHED_FACTS
    }
    return EvalPoint(
        0, Triple(0, 0, 0), ("s", "r", "o"), True, False, target(2, 0, True), {}, (), None, watched if edit else None
    )


def test_edits_are_scored_against_pair_and_marginals() -> None:
    found = metrics.edit_targets(point())
    assert found["same_s_same_r"] == pytest.approx((0.1, 0.81))  # after: pair posterior of the requested object
    assert found["same_s_diff_r"] == pytest.approx((0.1, 0.41))  # marginal of the new modal object
    assert found["diff_s_diff_r"] == pytest.approx((0.2, 0.82))  # no parent: pair
    scores = metrics.edit_coherence(point(), "diff_s_same_r", {MODAL: 0.5, REQUESTED: 0.0, ORIGINAL: 0.3})
    assert scores == pytest.approx({"coherence_new_modal": 0.09, "coherence_requested": 0.41, "coherence_orig": 0.2})
    assert metrics.probability_delta(point()) == pytest.approx(0.6)
    for ask in (metrics.edit_targets, metrics.probability_delta):
        with pytest.raises(BeliefError, match="point 0 has no edit"):
            ask(point(edit=False))
