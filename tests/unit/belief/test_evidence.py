"""How a weight becomes evidence over K objects, and how equal items are grouped."""

from __future__ import annotations

import numpy as np
import pytest

from raysweep.belief.corpus.evidence import Evidence, encode_weights, evidence_table
from raysweep.errors import BeliefError


@pytest.mark.parametrize(  # appendix B.1, K = 4
    ("weight", "obj", "vector"),
    [
        (1, 0, [1, 0, 0, 0]),
        (-1, 1, [1 / 3, 0, 1 / 3, 1 / 3]),
        (2 / 3, 0, [0.666667, 0.111111, 0.111111, 0.111111]),
        (1 / 3, 2, [0.222222, 0.222222, 0.333333, 0.222222]),
        (5, 3, [0, 0, 0, 5]),
    ],
)
def test_published_vectors(weight: float, obj: int, vector: list[float]) -> None:
    (background,), (excess,), (total,) = encode_weights(np.array([weight], dtype=float), 4)
    dense = np.full(4, background)
    dense[obj] += excess
    assert dense == pytest.approx(vector, abs=1e-6)
    assert dense.sum() == pytest.approx(total)
    assert total == (weight if weight >= 1 else 1)


@pytest.mark.parametrize("weight", [0.0, -0.5, -2.0, float("nan"), float("inf")])
def test_other_weights_say_nothing(weight: float) -> None:
    with pytest.raises(BeliefError, match="is no evidence weight"):
        Evidence(0, 0, 0, weight)


def test_bounds() -> None:
    with pytest.raises(BeliefError, match=r"mass -1\.0 is not"):
        Evidence(0, 0, 0, -1.0, kind="mass")
    with pytest.raises(BeliefError, match="cannot count 0 times"):
        Evidence(0, 0, 0, count=0)
    with pytest.raises(BeliefError, match="at least 2 objects"):
        encode_weights(np.ones(1), 1)
    with pytest.raises(BeliefError, match="holds items only"):
        evidence_table([Evidence(0, 0, 0, kind="mass")])
    assert Evidence(0, 0, 0, 0.0, kind="mass").amount == 0


def test_equal_items_are_grouped_in_one_order() -> None:
    rows = [Evidence(1, 0, 2), Evidence(0, 1, 1, -1), Evidence(1, 0, 2), Evidence(0, 1, 1), Evidence(1, 0, 2, 2 / 3)]
    for order in (rows, rows[::-1]):
        made = evidence_table(order)
        assert list(zip(made.subject, made.relation, made.object, made.weight, made.count, strict=True)) == [
            (0, 1, 1, -1.0, 1),
            (0, 1, 1, 1.0, 1),
            (1, 0, 2, 2 / 3, 1),
            (1, 0, 2, 1.0, 2),
        ]
    assert (len(made), made.items, made.repeat(5).items) == (4, 5, 25)
    assert len(evidence_table([])) == 0
