"""Least squares of the editing family, in fp64: Cholesky factors, residual spreading, recursive ridge inverses.

Shape legend: ``d`` width of a key, ``n`` keys of a batch (columns), ``k`` keys of one SimIE update (columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Factor:
    """Lower Cholesky factor ``[d, d]`` (fp64) of a symmetric positive definite matrix."""

    lower: Tensor

    def solve(self, right: Tensor) -> Tensor:
        """Return ``A⁻¹ B`` for *right* ``B [d, m]``, in fp64."""
        return torch.cholesky_solve(right.to(torch.float64), self.lower)


def factor(matrix: Tensor, *, damping: float = 0.0) -> Factor:
    """Factor ``A + damping · mean(diag A) · I`` in fp64.

    Raises:
        ArtifactError: the matrix is not positive definite (too few tokens for its width).
    """
    full = matrix.to(torch.float64)
    full = (full + full.T) / 2
    if damping:
        full = full + damping * full.diagonal().mean() * torch.eye(full.shape[0], dtype=full.dtype, device=full.device)
    lower, info = torch.linalg.cholesky_ex(full)
    if int(info) != 0:
        raise ArtifactError(
            f"second moments [{full.shape[0]} x {full.shape[0]}] are not positive definite",
            hint="take more tokens (moments.tokens), or set moments.damping (1e-3, say)",
        )
    return Factor(lower)


def spread(moments: Factor, weight: float, keys: Tensor) -> Tensor:
    """Return ``(w C + K Kᵀ)⁻¹ K`` ``[d, n]`` without a ``d x d`` solve per edit.

    It equals ``C⁻¹ K (w I + Kᵀ C⁻¹ K)⁻¹`` (push-through identity); for n = 1 this is the rank-one shortcut
    ``C⁻¹k / (w + kᵀC⁻¹k)`` of MEMIT (MEMIT §4.2; editors.md §7.5).

    Args:
        moments: factor of ``C``.
        weight: ``w`` = ``mom2_update_weight``.
        keys: ``K [d, n]``.
    """
    keys = keys.to(torch.float64)
    return push_through(moments.solve(keys), keys, weight)


def push_through(solved: Tensor, keys: Tensor, weight: float) -> Tensor:
    """Return ``S (w I + Kᵀ S)⁻¹`` ``[d, n]`` for ``S = A K``, ``A`` symmetric: it equals ``(w I + A K Kᵀ)⁻¹ A K``.

    ``A = C⁻¹`` is MEMIT's solve, ``A`` a null-space projector AlphaEdit's (§8.5), ``A`` an inverse a recursive update.
    """
    small = weight * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ solved
    found: Tensor = torch.linalg.solve((small + small.T) / 2, solved.T)
    return found.T


def downdate(inverse: Tensor, keys: Tensor) -> Tensor:
    """Return ``R − R K (I + Kᵀ R K)⁻¹ Kᵀ R`` for symmetric ``R [d, d]`` and keys ``[d, k]`` in fp64; symmetric by construction.

    If ``R = (P G + w I)⁻¹ P``, the result is the same with ``G + K Kᵀ`` in place of ``G``, for any symmetric ``P``.
    """
    z = inverse @ keys
    m = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ z
    v = torch.linalg.solve_triangular(torch.linalg.cholesky((m + m.T) / 2), z.T, upper=False)
    after: Tensor = inverse - v.T @ v
    return after


@dataclass(frozen=True, slots=True)
class RidgeState:
    """Memory of a recursive ridge regression: ``P = λI + Σ K Kᵀ`` and, for Woodbury, ``Q = P⁻¹``; all ``[d, d]``.

    ``age`` counts updates since ``Q`` was last computed from ``P``.
    """

    lam: float
    gram: Tensor
    inverse: Tensor | None
    age: int = 0


def ridge_begin(d: int, lam: float, *, inverse: bool, dtype: torch.dtype, device: torch.device) -> RidgeState:
    """Return ``P = λI`` (and ``Q = I/λ`` if *inverse*)."""
    eye = torch.eye(d, dtype=dtype, device=device)
    return RidgeState(lam, lam * eye, eye / lam if inverse else None)


def woodbury(state: RidgeState, keys: Tensor, *, refresh: int, tolerance: float) -> tuple[RidgeState, Tensor, float]:
    """Absorb keys and return ``(state′, G, drift)`` with ``G = P′⁻¹ K [d, k]`` in ``O(d² k)`` (editors.md §13.10).

    ``Z = Q K; M = I + KᵀZ = L Lᵀ; V = L⁻¹ Zᵀ; Q′ = Q − Vᵀ V``; the downdate is symmetric by construction. The drift
    ``‖P′ G − K‖ / ‖K‖`` is measured each time; beyond *tolerance*, or every *refresh* updates, ``Q`` is computed anew from ``P``.

    Args:
        state: before the update; not modified.
        keys: ``K [d, k]`` in fp64.
        refresh: recompute after this many updates.
        tolerance: recompute beyond this drift.
    """
    assert state.inverse is not None
    gram = state.gram + keys @ keys.T
    z = state.inverse @ keys
    m = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ z
    lower, info = torch.linalg.cholesky_ex((m + m.T) / 2)
    if int(info) == 0 and state.age + 1 < refresh:
        v = torch.linalg.solve_triangular(lower, z.T, upper=False)
        gain = torch.linalg.solve_triangular(lower.T, v, upper=True).T
        drift = float((gram @ gain - keys).norm() / keys.norm())
        if drift <= tolerance:
            return RidgeState(state.lam, gram, state.inverse - v.T @ v, state.age + 1), gain, drift
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    inverse = (inverse + inverse.T) / 2
    gain = inverse @ keys
    drift = float((gram @ gain - keys).norm() / keys.norm())
    return RidgeState(state.lam, gram, inverse, 0), gain, drift


def cholesky_gain(state: RidgeState, keys: Tensor) -> tuple[RidgeState, Tensor]:
    """Absorb keys and return ``(state′, P′⁻¹ K)`` by one Cholesky of ``P′`` and ``k`` right-hand sides."""
    gram = state.gram + keys @ keys.T
    return RidgeState(state.lam, gram, None), torch.cholesky_solve(keys, torch.linalg.cholesky(gram))


def pinv_gain(state: RidgeState, keys: Tensor) -> tuple[RidgeState, Tensor]:
    """Absorb keys and return ``(state′, P′⁺ K)`` by the hermitian pseudo-inverse (the published ``SVD`` solver)."""
    gram = state.gram + keys @ keys.T
    return RidgeState(state.lam, gram, None), torch.linalg.pinv(gram, hermitian=True) @ keys


def closed_form(sums: Tensor, gram: Tensor, lam: float) -> Tensor:
    """Return ``A (λI + C)⁻¹ [d_out, d]``, the λ-regularised ideal editor (editors.md §13.8).

    Args:
        sums: ``A = Σ Δ_t K_t K_tᵀ [d_out, d]``.
        gram: ``C = Σ K_t K_tᵀ [d, d]``.
        lam: ``λ > 0``.
    """
    eye = torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)
    lower = torch.linalg.cholesky(gram.to(torch.float64) + lam * eye)
    return torch.cholesky_solve(sums.to(torch.float64).T, lower).T
