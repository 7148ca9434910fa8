"""Solves with symmetric positive definite matrices in fp64: Cholesky factors and the low-rank identities built on them.

The editors solve with ``w C + K Kᵀ``, where ``C [d, d]`` (second moments, a projector, an inverse) does not change during a run and
``K [d, n]`` is a handful of keys. Two identities make an edit cost ``O(d² n)`` where a direct solve costs ``O(d³)``::

    (w C + K Kᵀ)⁻¹ K = C⁻¹ K (w I + Kᵀ C⁻¹ K)⁻¹                          push-through
    (R⁻¹ + K Kᵀ)⁻¹   = R − R K (I + Kᵀ R K)⁻¹ Kᵀ R                       Sherman–Morrison–Woodbury

Shape legend: ``d`` width of a key, ``n`` keys of a batch (columns), ``k`` keys of one update (columns), ``m`` right-hand sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Factor:
    """A symmetric positive definite matrix ``A [d, d]``, ready to be solved with, in fp64.

    Attributes:
        matrix: its lower Cholesky factor, or on an accelerator its inverse.
        is_inverse: which of the two.
    """

    matrix: Tensor
    is_inverse: bool = False

    def solve(self, right: Tensor) -> Tensor:
        """Return ``A⁻¹ B`` for *right* ``B [d, m]``, in fp64."""
        right = right.to(torch.float64)
        return self.matrix @ right if self.is_inverse else torch.cholesky_solve(right, self.matrix)


def factor(matrix: Tensor, *, damping: float = 0.0) -> Factor:
    """Factor ``A + damping · mean(diag A) · I`` in fp64.

    Raises:
        ArtifactError: the matrix is not positive definite (too few tokens for its width).
    """
    full = matrix.to(torch.float64)
    # Sums of outer products are symmetric but for rounding; the factor reads one half only.
    full = (full + full.T) / 2
    if damping:
        full = full + damping * full.diagonal().mean() * torch.eye(full.shape[0], dtype=full.dtype, device=full.device)
    lower, info = torch.linalg.cholesky_ex(full)
    if int(info) != 0:
        raise ArtifactError(
            f"second moments [{full.shape[0]} x {full.shape[0]}] are not positive definite",
            hint="take more tokens (moments.tokens), or set moments.damping (1e-3, say)",
        )
    if lower.is_cpu:
        return Factor(lower)
    # A triangular solve goes down the rows block by block, each waiting for the one before. A product with the inverse is one step,
    # and in fp64 as exact as the edits need by far.
    return Factor(torch.cholesky_inverse(lower), is_inverse=True)


def low_rank_update(moments: Factor, weight: float, keys: Tensor) -> Tensor:
    """Return ``(w C + K Kᵀ)⁻¹ K`` ``[d, n]`` without a ``d x d`` solve per edit.

    It equals ``C⁻¹ K (w I + Kᵀ C⁻¹ K)⁻¹`` (push-through identity); for n = 1 this is the rank-one shortcut
    ``C⁻¹k / (w + kᵀC⁻¹k)`` of MEMIT (docs/methods/memit.md).

    Args:
        moments: factor of ``C``.
        weight: ``w`` = ``mom2_update_weight``.
        keys: ``K [d, n]``.
    """
    keys = keys.to(torch.float64)
    return push_through(moments.solve(keys), keys, weight)


def push_through(solved: Tensor, keys: Tensor, weight: float) -> Tensor:
    """Return ``S (w I + Kᵀ S)⁻¹`` ``[d, n]`` for ``S = A K``, ``A`` symmetric: it equals ``(w I + A K Kᵀ)⁻¹ A K``.

    ``A = C⁻¹`` is MEMIT's solve, ``A`` a null-space projector AlphaEdit's
    (docs/methods/alphaedit.md), ``A`` an inverse a recursive update.
    """
    small = weight * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ solved
    # X = S small⁻¹ is small Xᵀ = Sᵀ, since small is symmetric but for rounding, which the mean with its transpose removes.
    transposed: Tensor = torch.linalg.solve((small + small.T) / 2, solved.T)
    return transposed.T


def downdate(inverse: Tensor, keys: Tensor) -> Tensor:
    """Return ``R − R K (I + Kᵀ R K)⁻¹ Kᵀ R`` for symmetric ``R [d, d]`` and keys ``[d, k]`` in fp64; symmetric by construction.

    If ``R = (P G + w I)⁻¹ P``, the result is the same with ``G + K Kᵀ`` in place of ``G``, for any symmetric ``P``.
    """
    z = inverse @ keys
    m = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ z
    # With M = L Lᵀ and V = L⁻¹ Zᵀ, what is taken off is Z M⁻¹ Zᵀ = Vᵀ V: symmetric, so no skew part can grow.
    v = torch.linalg.solve_triangular(torch.linalg.cholesky((m + m.T) / 2), z.T, upper=False)
    after: Tensor = inverse - v.T @ v
    return after
