"""Ways to merge several fine-tuned copies of one weight: TIES, magnitude, sign, DARE, linear, slerp (docs/methods/wise.md).

With changes ``τ_i = W_i − W_0``, shares ``w_i`` and what is left of each change, ``τ̂_i``::

    W = W_0 + Σ_i w_i τ̂_i [sign τ̂_i = sign Σ_j w_j τ̂_j] / norm        entry by entry

An algorithm drops the small entries (TIES, Yadav et al. 2023; magnitude) or random ones (DARE, Yu et al. 2024) from each change,
does or does not ask for the agreed sign, and does or does not divide by the shares that are left.

Shape legend: all tensors have the weight's shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Algorithm = Literal["ties", "magnitude_norm", "magnitude", "sign", "dare_ties", "dare_linear", "linear", "slerp"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
# abs(cosine) above which slerp is a straight line
_PARALLEL = 0.9995


@dataclass(frozen=True, slots=True)
class _Rule:
    """What is left of each change, whether signs must agree, whether the sum is divided by the shares that are left."""

    sparsify: Literal["none", "magnitude", "random", "random_rescaled"]
    consensus: bool
    normalise: bool


_RULES = {
    "ties": _Rule("magnitude", consensus=True, normalise=True),
    "magnitude_norm": _Rule("magnitude", consensus=False, normalise=True),
    "magnitude": _Rule("magnitude", consensus=False, normalise=False),
    "sign": _Rule("none", consensus=True, normalise=True),
    "dare_ties": _Rule("random_rescaled", consensus=True, normalise=False),
    "dare_linear": _Rule("random", consensus=False, normalise=False),
    "linear": _Rule("none", consensus=False, normalise=False),
}


def is_random(algorithm: Algorithm) -> bool:
    """Return whether *algorithm* draws random numbers."""
    return algorithm.startswith("dare")


def merge(
    base: Tensor,
    weights: Sequence[Tensor],
    shares: Sequence[float],
    *,
    algorithm: Algorithm = "ties",
    density: float = 0.53,
    rng: torch.Generator | None = None,
    first_only: bool = False,
) -> Tensor:
    """Return the merger of *weights*, all copies of *base* that were changed.

    Args:
        base: what they started from.
        weights: the copies.
        shares: one factor per copy.
        algorithm: one of :data:`ALGORITHMS`, docs/methods/wise.md.
        density: share of each change's entries that survives (where the algorithm drops any).
        rng: on the CPU, for the DARE family.
        first_only: ``linear`` and ``slerp`` use only the first copy (as published; quirk Q32).
    """
    # The published code reads the first memory only (quirk Q32).
    if first_only and algorithm in ("linear", "slerp"):
        weights, shares = weights[:1], shares[:1]
    if algorithm == "slerp":
        total = sum(shares)
        # Interpolate towards the mean of the copies, by as much as their shares add up to.
        target = sum((s / total * w for s, w in zip(shares, weights, strict=True)), start=torch.zeros_like(base))
        return slerp(base, target, total)
    # The others differ in three choices: what is dropped, whether signs must agree, what the sum is divided by.
    rule = _RULES[algorithm]
    changes = [_sparse(w - base, rule, density, rng) for w in weights]
    mixed = torch.zeros_like(base)
    norm = torch.zeros_like(base) if rule.consensus else torch.full((), float(sum(shares)), device=base.device)
    major = torch.ones(())
    if rule.consensus:
        # a tie counts as +; entries that were dropped have sign 0 and so never agree
        agreed = sum((s * c for s, c in zip(shares, changes, strict=True)), start=torch.zeros_like(base))
        major = torch.where(agreed >= 0, 1.0, -1.0)
    for share, change in zip(shares, changes, strict=True):
        agrees = change.sign() == major if rule.consensus else torch.ones_like(change, dtype=torch.bool)
        mixed += torch.where(agrees, share * change, 0.0)
        if rule.consensus:
            norm += agrees * share
    if rule.normalise:
        mixed /= torch.where(norm == 0, 1.0, norm)
    return base + mixed


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Return the spherical interpolation between two tensors, taken for flat vectors; a straight line if they are nearly parallel.

    Args:
        start: the result at ``t = 0``.
        end: the result at ``t = 1``.
        t: how far to go.
    """
    cosine = float((start.double() / start.double().norm() * (end.double() / end.double().norm())).sum())
    if abs(cosine) > _PARALLEL:
        return start + t * (end - start)
    # sin((1 − t) φ) / sin φ · W_0 + sin(t φ) / sin φ · W, φ the angle between them
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * start + math.sin(t * angle) * end) / math.sin(angle)


def _sparse(change: Tensor, rule: _Rule, density: float, rng: torch.Generator | None) -> Tensor:
    """Drop entries of *change*: the smallest of the whole tensor, or random ones."""
    if rule.sparsify == "none" or density >= 1:
        return change
    if rule.sparsify == "magnitude":
        flat = change.flatten()
        largest = flat.abs().topk(int(density * flat.numel())).indices
        return torch.zeros_like(flat).scatter_(0, largest, flat[largest]).reshape(change.shape)
    chance = torch.full(change.shape, density)
    survives = torch.bernoulli(chance, generator=rng).to(change.device, change.dtype)
    return change * survives / (density if rule.sparsify == "random_rescaled" else 1.0)
