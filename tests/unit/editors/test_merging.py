"""Merging: an exact fixture, and each algorithm by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raysweep.editors.wise.merging import ALGORITHMS, Algorithm, is_random, merge, slerp

ONE, TWO = torch.tensor([0.4, -0.3, 0.1, 0.0]), torch.tensor([0.2, 0.5, -0.6, 0.05])
BASE = torch.tensor([1.0, -2.0, 0.5, 3.0])


def mixed(algorithm: Algorithm, base: Tensor | None = None, **options: object) -> Tensor:
    base = torch.zeros(4) if base is None else base
    found = merge(base, [base + ONE, base + TWO], [0.5, 0.5], algorithm=algorithm, density=0.5, **options)  # type: ignore[arg-type]
    return found - base


@pytest.mark.parametrize(
    ("algorithm", "wanted"),
    [
        ("ties", [0.4, 0.5, -0.6, 0.0]),
        ("magnitude_norm", [0.2, 0.1, -0.3, 0.0]),
        ("magnitude", [0.2, 0.1, -0.3, 0.0]),
        ("sign", [0.3, 0.5, -0.6, 0.05]),
        ("linear", [0.3, 0.1, -0.25, 0.025]),
    ],
)
def test_by_hand(algorithm: Algorithm, wanted: list[float]) -> None:
    torch.testing.assert_close(mixed(algorithm), torch.tensor(wanted), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed(algorithm, BASE), torch.tensor(wanted), atol=1e-6, rtol=0)


def test_only_magnitude_norm_divides_by_the_shares() -> None:
    half = {a: merge(torch.zeros(4), [ONE], [0.5], algorithm=a, density=1.0) for a in ("magnitude", "magnitude_norm")}
    torch.testing.assert_close(half["magnitude"], ONE / 2)
    torch.testing.assert_close(half["magnitude_norm"], ONE)


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if is_random(a)])
def test_dare_drops_the_same_entries_for_the_same_generator(algorithm: Algorithm) -> None:
    base = torch.zeros(40, 50)
    copies = [base + 0.1, base + 0.1]
    first, again, other = (
        merge(base, copies, [0.5, 0.5], algorithm=algorithm, density=0.25, rng=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    expected = 0.1 * (1.0 if algorithm == "dare_ties" else 0.25)  # rescaled or not
    assert float(first.mean()) == pytest.approx(expected, rel=0.15)


def test_linear_and_slerp_use_every_memory_or_the_first_as_published() -> None:
    published = merge(BASE, [BASE + ONE, BASE + TWO], [0.5, 0.5], algorithm="linear", first_only=True)
    torch.testing.assert_close(published, 0.5 * (BASE + ONE) + 0.5 * BASE)
    for first_only in (True, False):
        one = merge(BASE, [BASE + ONE], [0.3], algorithm="slerp", first_only=first_only)
        torch.testing.assert_close(one, slerp(BASE, BASE + ONE, 0.3))
    both = merge(BASE, [BASE + ONE, BASE + TWO], [0.5, 0.5], algorithm="slerp")
    torch.testing.assert_close(both, BASE + (ONE + TWO) / 2)


def test_slerp_keeps_to_the_sphere() -> None:
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(start, end, 0.5), torch.full((2,), 0.5**0.5))
    torch.testing.assert_close(slerp(start, 2 * start, 0.25), 1.25 * start)  # parallel: a line
