"""Least squares of the editing family, in fp64: Cholesky factors, residual spreading, recursive ridge inverses.

Shape legend: ``d`` width of a key, ``n`` keys of a batch (columns), ``k`` keys of one SimIE update (columns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
class Inverse:
    """Memory of a recursive ridge regression: ``Q = P⁻¹`` of ``P = λI + Σ kkᵀ``, in fp64, taking in keys at little cost.

    ``P = gram + Σ XᵀX`` and ``Q = inverse − Σ VᵀV`` over chunks of rows ``[n_i, d]`` that are not added yet; None stands for
    ``λI`` and ``I/λ``. So nothing is ``d x d`` until about d/2 keys are in (where the rows begin to cost more than the matrix),
    and then d/8 keys at a time are added by one large product.

    Attributes:
        lam: ``λ > 0``.
        gram: ``[d, d]``.
        inverse: ``[d, d]``.
        keys: ``X``, the keys themselves.
        rows: ``V = L⁻¹ X Q`` with ``L Lᵀ = I + X Q Xᵀ``.
        age: updates since ``inverse`` was last computed from ``P``.
    """

    lam: float
    gram: Tensor | None = None
    inverse: Tensor | None = None
    keys: Sequence[Tensor] = ()
    rows: Sequence[Tensor] = ()
    age: int = 0

    def matrix(self) -> Tensor:
        """Return ``P``."""
        return squared(_scaled_eye(self.lam, self.keys[0]) if self.gram is None else self.gram, self.keys)


CHECKED = 8  # updates between two looks at the drift


def woodbury(state: Inverse, keys: Tensor, *, refresh: int, tolerance: float) -> tuple[Inverse, Tensor, float | None]:
    """Absorb keys and return ``(state′, G, drift)`` with ``G = P′⁻¹ K [d, k]`` in ``O(d² k)``, ``O(d N k)`` while N < d/2 (§13.10).

    ``Z = X Q; M = I + Z Xᵀ = L Lᵀ; V = L⁻¹ Z; Q′ = Q − Vᵀ V; Gᵀ = L⁻ᵀ V``; the downdate is symmetric by construction.

    At the first update and every eighth after it the *drift* of one mixture of the keys is measured, ``y = G w`` for ``t = K w``
    (signs ``w`` alternate): ``√(rᵀ Q r / tᵀ y)`` with ``r = P′ y − t``, the relative error of ``y`` in the norm ``‖·‖_P`` that the
    regression minimises. (``‖r‖ / ‖t‖`` would weigh an error along a very long key by that key's square, and cry wolf.) Beyond
    *tolerance*, at every *refresh*-th update, or if ``M`` is not positive definite, ``Q`` is computed anew from ``P``.

    Args:
        state: before the update; not modified.
        keys: ``K = Xᵀ [d, k]``.
        refresh: recompute after this many updates.
        tolerance: recompute beyond this drift.

    Returns:
        The memory, the gain, and the drift if it was measured.

    Raises:
        SpecError: ``P`` is singular in fp64.
    """
    x = keys.T.to(torch.float64).contiguous()
    z = _under(state, x)
    m = torch.eye(len(x), dtype=x.dtype, device=x.device) + z @ x.T
    lower, info = torch.linalg.cholesky_ex((m + m.T) / 2)
    after = replace(state, keys=pushed(state.keys, x), age=state.age + 1)
    if int(info) == 0 and after.age < refresh:
        v = torch.linalg.solve_triangular(lower, z, upper=False)
        gain = torch.linalg.solve_triangular(lower.T, v, upper=True)
        after = replace(after, rows=pushed(state.rows, v))
        drift = _drift(after, x, gain) if state.age % CHECKED == 0 else None
        if drift is None or drift <= tolerance:
            return _settled(after), gain.T, drift
    gram = after.matrix()
    inverse = torch.cholesky_inverse(_cholesky(gram, state.lam))
    after = Inverse(state.lam, gram, (inverse + inverse.T) / 2)
    gain = _under(after, x)
    return after, gain.T, _drift(after, x, gain)


def _under(state: Inverse, rows: Tensor) -> Tensor:
    """Return ``x Q`` of rows ``x [k, d]``."""
    total = rows / state.lam if state.inverse is None else rows @ state.inverse.T  # symmetric; this way round is faster
    return through(total, rows, state.rows, state.rows, scale=-1.0)


def _settled(state: Inverse) -> Inverse:
    """Return *state* with its rows added to its matrices, if there are enough of them."""
    rows, d = state.rows, state.rows[0].shape[1]
    if length(rows) < d // (2 if state.inverse is None else 8):
        return state
    base = _scaled_eye(1 / state.lam, rows[0]) if state.inverse is None else state.inverse
    return Inverse(state.lam, state.matrix(), squared(base, rows, scale=-1.0), age=state.age)


def _drift(state: Inverse, x: Tensor, gain: Tensor) -> float:
    """Return ``√(rᵀ Q r / tᵀ y)`` with ``r = P y − t`` for a mixture ``y = G w`` of the gains, ``t = K w`` (:func:`woodbury`)."""
    signs = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
    signs[:, 1::2] = -1.0
    y, t = signs @ gain, signs @ x
    product = state.lam * y if state.gram is None else y @ state.gram
    r = through(product, y, state.keys, state.keys) - t
    wrong, size = float((_under(state, r) * r).sum()), float((t * y).sum())
    if size > 0:
        return math.sqrt(abs(wrong) / size)
    return 0.0 if wrong == 0 else math.inf


def _scaled_eye(scale: float, like: Tensor) -> Tensor:
    return scale * torch.eye(like.shape[1], dtype=like.dtype, device=like.device)


def _cholesky(matrix: Tensor, lam: float) -> Tensor:
    """Return the lower factor of *matrix*, which has λ on its diagonal already."""
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        size = float(matrix.diagonal().max())
        raise SpecError(f"λ = {lam:g} is too small beside keys of energy {size:.3g}", hint="take a larger lam")
    return lower


def cholesky_gain(gram: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb keys ``[d, k]`` into ``P [d, d]``; return ``(P′, P′⁻¹ K)`` by one Cholesky of ``P′`` and ``k`` right-hand sides."""
    gram = gram + keys @ keys.T
    return gram, torch.cholesky_solve(keys, torch.linalg.cholesky(gram))


def pinv_gain(gram: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb keys ``[d, k]`` into ``P [d, d]``; return ``(P′, P′⁺ K)`` by the hermitian pseudo-inverse (the published ``SVD``)."""
    gram = gram + keys @ keys.T
    return gram, torch.linalg.pinv(gram, hermitian=True) @ keys


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


def through(
    total: Tensor, rows: Tensor, right: Sequence[Tensor], left: Sequence[Tensor], *, scale: float = 1.0
) -> Tensor:
    """Add ``scale Σ x Rᵀ L`` to *total* ``[k, d_l]`` (in place) and return it; no matrix ``Rᵀ L`` is formed.

    Args:
        total: what to add to.
        rows: ``x [k, d_r]``.
        right: chunks ``R [n_i, d_r]``.
        left: chunks ``L [n_i, d_l]`` of the same lengths.
        scale: of what is added.
    """
    for one, other in zip(right, left, strict=True):
        total.addmm_(rows @ one.T, other, alpha=scale)
    return total


def folded(base: Tensor | None, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return ``base + Σ Lᵀ R`` ``[d_l, d_r]`` for chunks ``L [n_i, d_l]``, ``R [n_i, d_r]`` of like lengths; None is 0."""
    total = right[0].new_zeros(left[0].shape[1], right[0].shape[1]) if base is None else base.clone()
    for one, other in zip(left, right, strict=True):
        total.addmm_(one.T, other)
    return total


def squared(base: Tensor | None, chunks: Sequence[Tensor], *, scale: float = 1.0) -> Tensor:
    """Return ``base + scale Σ Rᵀ R`` ``[d, d]`` for chunks ``R [n_i, d]`` and symmetric *base*; None is 0.

    Blocks on and below the diagonal are computed, the others copied.
    """
    if base is not None and not chunks:
        return base
    rows = torch.cat(list(chunks))
    d, block = rows.shape[1], 384
    total = rows.new_zeros(d, d) if base is None else base.clone()
    for start in range(0, d, block):
        stop = min(start + block, d)
        total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop], alpha=scale)
        total[:start, start:stop] = total[start:stop, :start].T
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
        return torch.cholesky_solve(self.right, _cholesky(shifted, lam))

    def gcv(self, lams: Sequence[float], count: int, square: float) -> list[float]:
        """Return the generalised cross-validation of each λ: ``(‖S_λ K − B‖² / N) / (1 − tr H_λ / N)²`` (editors.md §13.8).

        It is the mean squared leave-one-out error after a rotation of the data that gives all columns the same leverage
        (Golub, Heath, Wahba 1979). One eigendecomposition serves all λ: with eigenvalues ``s_i`` of ``C``, and ``w_i`` the energy
        of B in the direction of each, ``‖S_λ K − B‖² = Σ w_i (λ / (s_i + λ))² + (‖B‖² − Σ w_i)`` and
        ``tr H_λ = Σ s_i / (s_i + λ)``.

        Args:
            lams: λ > 0.
            count: ``N``, all keys, equal ones too.
            square: ``‖B‖²``, of all values.
        """
        values, vectors = torch.linalg.eigh(self.matrix)
        energy = (vectors.T @ self.right).square().sum(1)
        if self.keys is None:  # right = Aᵀ, and A u = √s B v
            tiny = values[-1] * len(values) * torch.finfo(values.dtype).eps
            energy = torch.where(values > tiny, energy / values.clamp(min=tiny), 0.0)
        outside = max(square - float(energy.sum()), 0.0)
        found = []
        for lam in lams:
            left = lam / (values.clamp(min=0) + lam)
            free = 1 - float((1 - left).sum()) / count
            found.append((float((energy * left.square()).sum()) + outside) / count / free**2 if free > 0 else math.inf)
        return found


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
