"""Ridge regression that takes in keys edit by edit, in fp64: recursive inverses, the normal equations for any λ, and GCV.

A ridge regression from keys ``K [d, N]`` to values ``B [m, N]`` has the solution ``S(λ) = B Kᵀ (λI + K Kᵀ)⁻¹ = A (λI + C)⁻¹``.
SimIE solves one for every input of an edited matrix (docs/methods/simie.md), in one of two ways:

* :class:`RidgeInverse` with :func:`woodbury` follows ``P⁻¹ = (λI + Σ k kᵀ)⁻¹`` from edit to edit, for one λ (recursive least
  squares)::

      Z = X Q,  M = I + Z Xᵀ = L Lᵀ,  V = L⁻¹ Z,  Q′ = Q − Vᵀ V,  P′⁻¹ K = Vᵀ L⁻¹           X = Kᵀ, Q = P⁻¹

* :class:`NormalEquations` holds ``A`` and ``C`` (or the keys and values themselves while they are few) and solves for any λ,
  with the generalised cross-validation error of each.

Shape legend: ``d`` width of a key, ``k`` keys of one update, ``N`` keys so far, ``m`` width of all values side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raysweep.editors.linalg.chunks import add_gram, add_gram_product, append_chunk, n_rows
from raysweep.errors import SpecError


@dataclass(frozen=True, slots=True)
class RidgeInverse:
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
        """Return ``P = λI + Σ kkᵀ`` ``[d, d]``, with the rows that are not added yet."""
        return add_gram(_scaled_eye(self.lam, self.keys[0]) if self.gram is None else self.gram, self.keys)


# updates between two measurements of the drift
DRIFT_INTERVAL = 8


@dataclass(frozen=True, slots=True)
class RidgeUpdate:
    """An update made, whose check nobody has read yet: one read then serves all inputs of an edit.

    Attributes:
        state: the memory after it.
        gain: ``G = P′⁻¹ K [d, k]``.
        check: fp64, on the device: ``[1]``, 0 if ``M`` was positive definite; or ``[3]``, with ``rᵀ Q r``, ``tᵀ y`` of the drift.
    """

    state: RidgeInverse
    gain: Tensor
    check: Tensor

    def drift(self, numbers: Sequence[float]) -> float | None:
        """Return the drift, if it was measured; *numbers* are those of :attr:`check`."""
        if len(numbers) == 1:
            return None
        _, wrong, size = numbers
        if size > 0:
            return math.sqrt(abs(wrong) / size)
        return 0.0 if wrong == 0 else math.inf

    def stands(self, numbers: Sequence[float], tolerance: float) -> bool:
        """Tell whether the update may be kept, by the *numbers* of :attr:`check`; else :func:`renew` makes it."""
        drift = self.drift(numbers)
        return self.state.age == 0 or (numbers[0] == 0 and (drift is None or drift <= tolerance))


def woodbury(
    state: RidgeInverse, keys: Tensor, *, refresh: int, tolerance: float
) -> tuple[RidgeInverse, Tensor, float | None]:
    """Absorb keys and return ``(state′, G, drift)`` with ``G = P′⁻¹ K [d, k]`` in ``O(d² k)``, ``O(d N k)`` while N < d/2.

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
    update = attempt(state, keys, refresh=refresh)
    numbers = update.check.tolist()
    if not update.stands(numbers, tolerance):
        update = renew(state, keys)
        numbers = update.check.tolist()
    return update.state, update.gain, update.drift(numbers)


def attempt(state: RidgeInverse, keys: Tensor, *, refresh: int) -> RidgeUpdate:
    """Make the update of :func:`woodbury` without a look at whether it succeeds; aged inverses are made anew."""
    if state.age + 1 >= refresh:
        return renew(state, keys)
    x = keys.T.to(torch.float64).contiguous()
    # Z = X Q, M = I + Z Xᵀ = L Lᵀ: all that is d wide has only k rows.
    z = _times_inverse(state, x)
    m = torch.eye(len(x), dtype=x.dtype, device=x.device) + z @ x.T
    lower, info = torch.linalg.cholesky_ex((m + m.T) / 2)
    # V = L⁻¹ Z gives the downdate Q′ = Q − Vᵀ V, and Gᵀ = L⁻ᵀ V = M⁻¹ Z = (P′⁻¹ K)ᵀ.
    v = torch.linalg.solve_triangular(lower, z, upper=False)
    gain = torch.linalg.solve_triangular(lower.T, v, upper=True)
    after = replace(state, keys=append_chunk(state.keys, x), rows=append_chunk(state.rows, v), age=state.age + 1)
    check = [info.double()]
    if state.age % DRIFT_INTERVAL == 0:
        check += _drift(after, x, gain)
    return RidgeUpdate(_fold_rows(after), gain.T, torch.stack(check))


def renew(state: RidgeInverse, keys: Tensor) -> RidgeUpdate:
    """Absorb keys where the recursion has drifted, aged or failed: ``Q`` from ``P``, by one Cholesky factor of ``P``.

    Raises:
        SpecError: ``P`` is singular in fp64.
    """
    x = keys.T.to(torch.float64).contiguous()
    gram = replace(state, keys=append_chunk(state.keys, x)).matrix()
    inverse = torch.cholesky_inverse(_cholesky(gram, state.lam))
    after = RidgeInverse(state.lam, gram, (inverse + inverse.T) / 2)
    gain = _times_inverse(after, x)
    wrong, size = _drift(after, x, gain)
    return RidgeUpdate(after, gain.T, torch.stack([torch.zeros_like(wrong), wrong, size]))


def _times_inverse(state: RidgeInverse, rows: Tensor) -> Tensor:
    """Return ``x Q`` of rows ``x [k, d]``."""
    # Q is symmetric, and a product with a transposed right factor is the faster one here.
    total = rows / state.lam if state.inverse is None else rows @ state.inverse.T
    return add_gram_product(total, rows, state.rows, state.rows, scale=-1.0)


def _fold_rows(state: RidgeInverse) -> RidgeInverse:
    """Return *state* with its rows added to its matrices, if there are enough of them."""
    rows, d = state.rows, state.rows[0].shape[1]
    if n_rows(rows) < d // (2 if state.inverse is None else 8):
        return state
    # Before the first sum both matrices are multiples of the identity, which are never formed.
    base = _scaled_eye(1 / state.lam, rows[0]) if state.inverse is None else state.inverse
    return RidgeInverse(state.lam, state.matrix(), add_gram(base, rows, scale=-1.0), age=state.age)


def _drift(state: RidgeInverse, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``rᵀ Q r`` and ``tᵀ y``, ``r = P y − t``, for a mixture ``y = G w`` of the gains, ``t = K w`` (:func:`woodbury`)."""
    # w = (1, −1, 1, …): a mixture in which keys that nearly coincide do not only add up.
    signs = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
    signs[:, 1::2] = -1.0
    y, t = signs @ gain, signs @ x
    product = state.lam * y if state.gram is None else y @ state.gram
    r = add_gram_product(product, y, state.keys, state.keys) - t
    return (_times_inverse(state, r) * r).sum(), (t * y).sum()


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


@dataclass(frozen=True, slots=True)
class NormalEquations:
    """The normal equations of a ridge regression, for any ``λ``, in fp64: ``S(λ) = A (λI + C)⁻¹``.

    ``m`` is the width of all values side by side. *Primal*: ``matrix = C [d, d]``, ``right = Aᵀ [d, m]``. *Dual*, for fewer than
    d keys: over the ``n`` distinct keys as rows ``K̃ [n, d]``, ``matrix = K̃ K̃ᵀ [n, n]`` and ``right = B̃ [n, m]``.
    """

    matrix: Tensor
    right: Tensor
    keys: Tensor | None = None

    @staticmethod
    def dual(keys: Tensor, values: Tensor) -> NormalEquations:
        """Return the equations of keys ``[N, d]`` and values ``[N, m]``, rows of equal keys merged."""
        keys, values = merge_equal_keys(keys, values)
        return NormalEquations(keys @ keys.T, values, keys)

    def solve(self, lam: float) -> Tensor:
        """Return ``X [n, m]`` with ``S(λ) = Xᵀ`` (primal) or ``Xᵀ K̃`` (dual).

        Raises:
            SpecError: the equations are singular in fp64.
        """
        shifted = self.matrix.clone()
        shifted.diagonal().add_(lam)
        return torch.cholesky_solve(self.right, _cholesky(shifted, lam))

    def gcv(self, lams: Sequence[float], count: int, square: float) -> list[float]:
        """Return the generalised cross-validation of each λ: ``(‖S_λ K − B‖² / N) / (1 − tr H_λ / N)²``.

        It is the mean squared leave-one-out error after a rotation of the data that gives all columns the same leverage
        (Golub, Heath, Wahba 1979). One eigendecomposition serves all λ: with eigenvalues ``s_i`` of ``C``, and ``w_i`` the energy
        of B in the direction of each, ``‖S_λ K − B‖² = Σ w_i (λ / (s_i + λ))² + (‖B‖² − Σ w_i)`` and
        ``tr H_λ = Σ s_i / (s_i + λ)``.

        Args:
            lams: λ > 0.
            count: ``N``, all keys, equal ones too.
            square: ``‖B‖²``, of all values.
        """
        # One eigendecomposition, O(n³), then O(n) for each λ.
        values, vectors = torch.linalg.eigh(self.matrix)
        energy = (vectors.T @ self.right).square().sum(1)
        # Primal: right = Aᵀ, and A u_i = √s_i B v_i for the singular vectors u_i, v_i of K; a direction without keys has no energy.
        if self.keys is None:
            tiny = values[-1] * len(values) * torch.finfo(values.dtype).eps
            energy = torch.where(values > tiny, energy / values.clamp(min=tiny), 0.0)
        outside = max(square - float(energy.sum()), 0.0)
        errors = []
        for lam in lams:
            # λ / (s_i + λ), so tr H_λ = Σ (1 − residual)
            residual = lam / (values.clamp(min=0) + lam)
            free = 1 - float((1 - residual).sum()) / count
            misfit = float((energy * residual.square()).sum()) + outside
            errors.append(misfit / count / free**2 if free > 0 else math.inf)
        return errors


def merge_equal_keys(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Merge equal keys, exactly: μ equal rows become one, times ``√μ``; their values become their sum over ``√μ``.

    Args:
        keys: ``[N, d]``.
        values: ``[N, m]``.
    """
    # Keys of shared prefixes are equal to the last bit: same tokens, same pristine model.
    distinct, where, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    root = counts.to(values.dtype).sqrt()[:, None]
    summed = values.new_zeros(len(distinct), values.shape[1]).index_add_(0, where, values)
    return distinct * root, summed / root


def closed_form(sums: Tensor, gram: Tensor, lam: float) -> Tensor:
    """Return ``A (λI + C)⁻¹ [d_out, d]``, the λ-regularised ideal editor.

    Args:
        sums: ``A = Σ Δ_t K_t K_tᵀ [d_out, d]``.
        gram: ``C = Σ K_t K_tᵀ [d, d]``.
        lam: ``λ > 0``.
    """
    eye = torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)
    lower = torch.linalg.cholesky(gram.to(torch.float64) + lam * eye)
    return torch.cholesky_solve(sums.to(torch.float64).T, lower).T
