"""Muon, the optimiser with which the small models of this repository are trained (Jordan et al. 2024, https://kellerjordan.github.io).

    M ← β M + (1 − β) G           momentum
    O ≈ U Vᵀ  of  (1 − β) G + β M = U S Vᵀ
    W ← (1 − η ω) W − η 0.2 √max(d_out, d_in) O

The last factor gives an update about the size of Adam's (Liu et al. 2025, arXiv 2502.16982), so one rate serves both.

Shape legend: ``W``, ``G``, ``M`` and ``O`` are ``[d_out, d_in]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Muon:
    """Momentum with orthogonalised updates, for matrices, in fp32; matrices of equal shape are stacked and updated together.

    Args:
        params: matrices ``[d_out, d_in]``; their gradients must be there when :meth:`step` is called.
        lr: peak rate ``η``.
        weight_decay: ``ω``, decoupled.
        momentum: ``β``.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        # sorted, so that the groups' order does not depend on hashing
        shapes = sorted({tuple(p.shape) for p in params})
        self.groups = [[p for p in params if tuple(p.shape) == shape] for shape in shapes]
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply one update at *scale* times the peak rate."""
        lr = self.lr * scale
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            # all matrices of one shape: [number, d_out, d_in]
            grad = torch.stack([p.grad for p in group if p.grad is not None])
            # M ← β M + (1 − β) G
            buffer.lerp_(grad, 1 - self.momentum)
            # Nesterov: of (1 − β) G + β M
            update = _orthogonal(grad.lerp(buffer, self.momentum))
            # an orthogonal d_out × d_in matrix has entries of about 1 / √max(d_out, d_in); 0.2 is Adam's usual size
            size = 0.2 * max(group[0].shape) ** 0.5
            for param, delta in zip(group, update, strict=True):
                param.mul_(1 - lr * self.weight_decay).add_(delta, alpha=-lr * size)


def _orthogonal(grads: Tensor) -> Tensor:
    """Approximate ``U Vᵀ`` of each matrix ``U S Vᵀ`` by five Newton-Schulz steps, ``[number, rows, columns]``.

    Each step is ``X ← a X + (b X Xᵀ + c (X Xᵀ)²) X``, an odd polynomial of the singular values that drives them towards 1.
    """
    # X Xᵀ of the wide orientation is the smaller one; dividing by the Frobenius norm brings all singular values below 1
    wide = grads.shape[-2] <= grads.shape[-1]
    x: Tensor = grads if wide else grads.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        # 3.4445, −4.7750 and 2.0315 make the slope at zero steep: few steps, singular values end in 0.7 … 1.2
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.mT
