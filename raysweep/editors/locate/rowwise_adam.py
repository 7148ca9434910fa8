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
        self.mean = self.mean + (gradient - self.mean) * (1 - 0.9)
        self.square = self.square * 0.999 + gradient * gradient * (1 - 0.999)
        scale: Tensor = (self.square.sqrt() / (1 - 0.999**self.count) ** 0.5) + 1e-8
        moved: Tensor = value - (self.lr / (1 - 0.9**self.count)) * self.mean / scale
        return moved
