"""How well a model's answers and probabilities fit the truth, the agent, and each other; plain arrays, no model.

*Generative accuracy*: the output contains the target. *Probabilistic coherence*: the distance |p(o) − target(o)| from one of seven
targets. *Logical coherence*: absolute errors of the axioms of probability on sentences, 0 for a coherent model. *Coherence of an
edit*: the distance of the model's probability from the agent's, at the edited fact and at three facts beside it.

Source: Hase et al. 2024 (arXiv 2406.19354); equations and deviations in docs/methods/belief.md.

Shapes: N points. Probabilities are fp64; NaN (or None) marks a target that is not defined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raysweep.belief.corpus.statements import read_label
from raysweep.belief.graph.graph import Bools, Floats
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import MODAL, ORIGINAL, REQUESTED, SAME_SAME, EvalPoint, TargetProbabilities
from raysweep.errors import BeliefError

PROBABILITIES = TargetProbabilities._fields[:7]
"""The seven targets of probabilistic coherence."""


# ------------------------------------------------------------------------------------------ generative accuracy


def normalise_text(text: str) -> str:
    """Return *text* in lower case, without outer white space and without any full stop."""
    return text.lower().strip().replace(".", "")


def contains_answer(output: str, label: str) -> bool:
    """Say whether a generated *output* (prompt removed) contains *label*: the published, lenient accuracy.

    >>> contains_answer(" Southland and more", "southland")
    True
    """
    return normalise_text(label) in normalise_text(output)


def is_exact_answer(output: str, label: str) -> bool:
    """Say whether *output* up to its first full stop is *label* (ruling C3).

    >>> is_exact_answer(" Southland. Ada", "Southland"), is_exact_answer("Southland and more", "Southland")
    (True, False)
    """
    return output.partition(".")[0].strip().lower() == label.strip().lower()


def is_new_request(output: str, requested: str) -> bool:
    """Say whether the unedited *output* lacks the requested object, parentheses left out of account (ruling G7)."""
    without_parentheses = str.maketrans("", "", "()")
    return normalise_text(requested.translate(without_parentheses)) not in normalise_text(
        output.translate(without_parentheses)
    )


# --------------------------------------------------------------------------------------- probabilistic coherence


def probabilistic_errors(model: Floats, targets: Sequence[TargetProbabilities]) -> dict[str, Floats]:
    """Return model − target, signed, for each of the seven targets; NaN where a target is not defined.

    Args:
        model: the model's probability of each point's true object, [N].
        targets: what is to be believed of it.
    """
    if len(model) != len(targets):
        raise BeliefError(f"{len(model)} probabilities for {len(targets)} points")
    errors = {}
    for i, name in enumerate(PROBABILITIES):
        target = np.array([np.nan if t[i] is None else t[i] for t in targets], dtype=np.float64)
        errors[name] = model - target
    return errors


def mean_absolute_error(errors: Floats) -> float | None:
    """Return the mean of \\|errors\\|, NaN left out; None if nothing is left (ruling C6)."""
    absolute = np.abs(errors[~np.isnan(errors)])
    return float(absolute.mean()) if len(absolute) else None


# --------------------------------------------------------------------------------------------- logical coherence


def truth_probability(label_probability: Floats, label: Bools) -> Floats:
    """Return p("true") from the probability of each point's label: p, or 1 − p where the label is ``false``."""
    return np.where(label, label_probability, 1 - label_probability)


def parse_labels(words: Sequence[str]) -> Bools:
    """Return label words as booleans.

    Raises:
        BeliefError: one is neither ``true`` nor ``false``.
    """
    return np.array([read_label(word) for word in words], dtype=np.bool_)


def logical_errors(
    object_probability: Floats,
    label_probability: Mapping[str, Floats],
    labels: Mapping[str, Bools],
    *,
    parity: ParitySpec | None = None,
    batch: int = 0,
) -> dict[str, Floats]:
    """Return the absolute errors of logical coherence for the cases at hand; 0 is coherent.

    ==================  ==========================================================================
    ``TF_coherence``    | p(object of A | S R) − pT(A) |
    ``negation``        | pT(A) − (1 − pT(¬A)) |
    ``commutation``     | pT(B∧A) − pT(A∧B) |
    ``multiplication``  | pT(A∧B) − pT(A) pT(B) |, independence assumed
    ``disjunction``     | pT(A∨B) − (pT(A) + pT(B) − pT(A) pT(B)) |, independence assumed
    ``implication``     | pT(A→B) − (1 − pT(A) + pT(A) pT(B)) |, independence assumed; not published
    ==================  ==========================================================================

    Args:
        object_probability: p(object of A | S R), [N].
        label_probability: by case name (``A_TF_case`` …), the probability of the case's label, [N].
        labels: by case name, whether the label is ``true``, [N].
        parity: ``mult_label_prob`` and ``labels_of_first_point`` score as published.
        batch: points per batch; needed for ``labels_of_first_point`` only.

    Raises:
        BeliefError: there are no true/false cases, lengths differ, or parity needs a batch size.
    """
    parity = parity or ParitySpec()
    if not {"A_TF_case", "B_TF_case"} <= label_probability.keys():
        raise BeliefError("logical coherence needs the cases A_TF_case and B_TF_case", hint="corpus.true_false: true")
    count = len(object_probability)
    _check_lengths(label_probability, labels, count)
    # Whose label turns the probability of each point's label into pT.
    label_row = np.arange(count)
    if parity.labels_of_first_point:
        if batch < 1:
            raise BeliefError("labels_of_first_point needs the batch size")
        # (C2) The row of the first point of each point's batch.
        label_row = label_row // batch * batch
    p = {case: truth_probability(values, labels[case][label_row]) for case, values in label_probability.items()}
    a, b = p["A_TF_case"], p["B_TF_case"]
    # The object's probability and the sentence's must agree on A.
    errors = {"TF_coherence": np.abs(object_probability - a)}
    if "not_A_case" in p:
        errors["negation"] = np.abs(a - (1 - p["not_A_case"]))
    if "A_and_B_case" in p:
        # (C1) As published: p of A's label, which is 1 − pT(A) where A is false.
        factor = label_probability["A_TF_case"] if parity.mult_label_prob else a
        errors["multiplication"] = np.abs(p["A_and_B_case"] - factor * b)
        if "B_and_A_case" in p:
            errors["commutation"] = np.abs(p["B_and_A_case"] - p["A_and_B_case"])
    if "A_or_B_case" in p:
        errors["disjunction"] = np.abs(p["A_or_B_case"] - (a + b - a * b))
    if "if_A_then_B_case" in p:
        errors["implication"] = np.abs(p["if_A_then_B_case"] - (1 - a + a * b))
    return errors


def _check_lengths(probabilities: Mapping[str, Floats], labels: Mapping[str, Bools], count: int) -> None:
    """Refuse cases without labels, or with other numbers than *count* of them."""
    for case, values in probabilities.items():
        if case not in labels or not len(values) == len(labels[case]) == count:
            raise BeliefError(
                f"case {case}: {len(values)} probabilities, {len(labels.get(case, ()))} labels, {count} points"
            )


# ------------------------------------------------------------------------------------------------------- edits


def agent_probability(target: TargetProbabilities) -> float:
    """Return the marginal posterior, or the pair posterior where there is no parent."""
    marginal = target.posterior_prob_marginalized
    return target.posterior_prob_o_given_s_r if marginal is None else marginal


def edit_targets(point: EvalPoint) -> dict[str, tuple[float, float]]:
    """Return, for each watched fact, what the model should believe before and after the edit.

    Before: of the original object. After: of the requested object by the pair posterior for the edited fact (the marginal would
    dilute it, ruling B5), of the new modal object for the others.

    Raises:
        BeliefError: the point has no edit.
    """
    if point.watched is None:
        raise BeliefError(f"point {point.id} has no edit", hint="points.editing: true")
    targets = {}
    for name, watch in point.watched.items():
        # State of the agent given the update of the strength that reaches `points.target`.
        after = watch.targets["target"]
        edited = after[REQUESTED].posterior_prob_o_given_s_r
        targets[name] = (
            agent_probability(watch.targets["pre"][ORIGINAL]),
            edited if name == SAME_SAME else agent_probability(after[MODAL]),
        )
    return targets


def edit_coherence(point: EvalPoint, name: str, probability: Mapping[str, float]) -> dict[str, float]:
    """Return the distances of the model from the agent at one watched fact.

    Args:
        point: with an edit.
        name: of the watched fact.
        probability: the model's, by name of the object (``orig_GT_obj``, ``requested_obj``, ``new_modal_obj``).

    Returns:
        ``coherence_new_modal``, ``coherence_requested`` and ``coherence_orig``.
    """
    # What the agent believes of the fact before the edit, and what it answers after it.
    before, after = edit_targets(point)[name]
    return {
        "coherence_new_modal": abs(probability[MODAL] - after),
        "coherence_requested": abs(probability[REQUESTED] - after),
        "coherence_orig": abs(probability[ORIGINAL] - before),
    }


def probability_delta(point: EvalPoint) -> float:
    """Return by how much the targeted update lifts the requested object's pair posterior.

    Raises:
        BeliefError: the point has no edit.
    """
    if point.watched is None:
        raise BeliefError(f"point {point.id} has no edit", hint="points.editing: true")
    targets = point.watched[SAME_SAME].targets
    return (
        targets["target"][REQUESTED].posterior_prob_o_given_s_r - targets["pre"][REQUESTED].posterior_prob_o_given_s_r
    )
