"""Least squares of the editing family, in fp64: Cholesky factors, residual spreading, recursive ridge inverses.

Shape legend: ``d`` width of a key, ``n`` keys of a batch (columns), ``k`` keys of one SimIE update (columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.errors import ArtifactError, SpecError


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


def pushed(chunks: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """Return *chunks* ``[n_i, d]`` with *rows* ``[k, d]`` at their end; no tensor is written to.

    Neighbours are joined as a binary counter carries, so there are O(log N) chunks and each row is copied O(log N) times.
    """
    kept = [*chunks, rows.contiguous()]
    while len(kept) > 1 and len(kept[-2]) <= len(kept[-1]):
        last = kept.pop()
        kept[-1] = torch.cat([kept[-1], last])
    return kept


def length(chunks: Sequence[Tensor]) -> int:
    """Return how many rows *chunks* have."""
    return sum(len(c) for c in chunks)


def folded(base: Tensor | None, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return ``base + Σ Lᵀ R`` ``[d_l, d_r]`` for chunks ``L [n_i, d_l]``, ``R [n_i, d_r]`` of like lengths; None is nought."""
    total = right[0].new_zeros(left[0].shape[1], right[0].shape[1]) if base is None else base.clone()
    for one, other in zip(left, right, strict=True):
        total.addmm_(one.T, other)
    return total


@dataclass(frozen=True, slots=True)
class Normal:
    """The normal equations of a ridge regression, for any ``λ``, in fp64: ``S(λ) = A (λI + C)⁻¹`` (editors.md §13.8).

    ``m`` is the width of all values side by side. *Primal*: ``matrix = C [d, d]``, ``right = Aᵀ [d, m]``. *Dual*, for fewer than
    d keys: over the ``n`` distinct keys as rows ``K̃ [n, d]``, ``matrix = K̃ K̃ᵀ [n, n]`` and ``right = B̃ [n, m]``.
    """

    matrix: Tensor
    right: Tensor
    keys: Tensor | None = None

    @staticmethod
    def dual(keys: Tensor, values: Tensor) -> Normal:
        """Return the equations of keys ``[N, d]`` and values ``[N, m]``, rows of equal keys merged."""
        keys, values = merged(keys, values)
        return Normal(keys @ keys.T, values, keys)

    def solve(self, lam: float) -> Tensor:
        """Return ``X [n, m]`` with ``S(λ) = Xᵀ`` (primal) or ``Xᵀ K̃`` (dual).

        Raises:
            SpecError: the equations are singular in fp64.
        """
        shifted = self.matrix.clone()
        shifted.diagonal().add_(lam)
        lower, info = torch.linalg.cholesky_ex(shifted)
        if int(info) != 0:
            size = float(self.matrix.diagonal().max())
            raise SpecError(f"λ = {lam:g} is too small beside keys of energy {size:.3g}", hint="take a larger lam")
        return torch.cholesky_solve(self.right, lower)


def merged(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Merge equal keys, exactly: μ equal rows become one, times ``√μ``; their values become their sum over ``√μ`` (§13.8).

    Args:
        keys: ``[N, d]``.
        values: ``[N, m]``.
    """
    distinct, where, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    root = counts.to(values.dtype).sqrt()[:, None]
    summed = values.new_zeros(len(distinct), values.shape[1]).index_add_(0, where, values)
    return distinct * root, summed / root


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
