"""Adam on the rows of one matrix, which stop at different times (Kingma and Ba 2015, Algorithm 1).

``torch.optim.Adam`` would go on moving a row that has stopped, by its momentum. The arithmetic, and its order, are its own::

    m ← m + (g − m)(1 − β₁),   v ← β₂ v + (1 − β₂) g²,   x ← x − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

Shape legend: ``n`` rows, ``d`` entries of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RowwiseAdam:
    """Moments of Adam for ``n`` rows, with ``torch.optim.Adam``'s constants (β = 0.9, 0.999; ε = 1e-8)."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr = lr
        self.mean = torch.zeros_like(like)
        self.square = torch.zeros_like(like)
        self.count = 0

    def step(self, value: Tensor, gradient: Tensor, active: Tensor) -> Tensor:
        """Return *value* after one update.

        Args:
            value: ``[n, d]``; not modified.
            gradient: ``[n, d]``.
            active: ``[n]`` bool; rows that are not active get no gradient, and it is the caller's to keep their old values.
        """
        self.count += 1
        # Rows that have stopped get no gradient; their moments decay, which nobody reads.
        gradient = torch.where(active[:, None], gradient, torch.zeros_like(gradient))
        self.mean, self.square = moments(self.mean, self.square, gradient)
        return moved(value, self.mean, self.square, *factors(self.lr, self.count))


def factors(lr: float, count: int) -> tuple[float, float]:
    """Return ``lr / (1 − β₁ᵗ)`` and ``√(1 − β₂ᵗ)`` of update ``t`` = *count*, from 1."""
    return lr / (1 - 0.9**count), (1 - 0.999**count) ** 0.5


def moments(mean: Tensor, square: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``m`` and ``v`` with one more *gradient* in them, ``[n, d]`` each."""
    return mean + (gradient - mean) * (1 - 0.9), square * 0.999 + gradient * gradient * (1 - 0.999)


def moved(value: Tensor, mean: Tensor, square: Tensor, rate: float | Tensor, root: float | Tensor) -> Tensor:
    """Return *value* ``[n, d]`` after an update with moments *mean* and *square*; *rate* and *root* are its :func:`factors`."""
    scale: Tensor = (square.sqrt() / root) + 1e-8
    after: Tensor = value - rate * mean / scale
    return after


def clamped(value: Tensor, limit: Tensor) -> Tensor:
    """Return the rows of *value* ``[n, d]`` projected onto balls of radius ``limit [n, 1]``."""
    norm = value.norm(dim=1, keepdim=True)
    return torch.where(norm > limit, value * limit / norm, value)
