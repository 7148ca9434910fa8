"""What an editor proposes: changes of weights, or modules that take the place of others.

A change is written in the *logical* orientation ``[d_out, d_in]``: ``d_in`` is the width of a key (the input of the edited
linear map) and ``d_out`` the width of a value (its output). How a checkpoint stores the parameter, possibly transposed, is known to
``models/ledger.py`` alone, which is the one place that writes weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


@dataclass(frozen=True, slots=True)
class LowRank:
    """``left @ right``: a change of a weight in logical orientation.

    Shape: left ``[d_out, r]``, right ``[r, d_in]``, in fp32 or fp64 on the model's device.
    """

    left: Tensor
    right: Tensor

    def to(self, device: torch.device) -> LowRank:
        """Return the change with its factors on *device*."""
        return LowRank(self.left.to(device), self.right.to(device))

    def dense(self) -> Tensor:
        """Return the full ``[d_out, d_in]`` change in the factors' dtype."""
        return self.left @ self.right

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(self.norm_on_device())

    def norm_on_device(self) -> Tensor:
        """Return the Frobenius norm as a single fp64 number, without forming the product: ``√⟨LᵀL, RRᵀ⟩``."""
        left, right = self.left.double(), self.right.double()
        # ‖L R‖² = tr(Rᵀ Lᵀ L R) = Σ (LᵀL) ⊙ (R Rᵀ), r × r instead of d_out × d_in; rounding may take that of a tiny
        # change below zero
        return ((left.T @ left) * (right @ right.T)).sum().clamp(min=0.0).sqrt()

    def times(self, keys: Tensor) -> Tensor:
        """Return ``Δ K`` for keys ``[d_in, k]`` without forming ``Δ``, in the keys' dtype."""
        # the inner product first: r numbers per key instead of a whole matrix
        return self.left.to(keys.dtype) @ (self.right.to(keys.dtype) @ keys)


@dataclass(frozen=True, slots=True)
class Dense:
    """A full change of a weight (``[d_out, d_in]``, logical orientation) or of a bias (``[d_out]``)."""

    value: Tensor

    def to(self, device: torch.device) -> Dense:
        """Return the change on *device*."""
        return Dense(self.value.to(device))

    def dense(self) -> Tensor:
        """Return the change itself."""
        return self.value

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(self.norm_on_device())

    def norm_on_device(self) -> Tensor:
        """Return the Frobenius norm as a single fp64 number."""
        norm: Tensor = self.value.norm()
        return norm.double()

    def times(self, keys: Tensor) -> Tensor:
        """Return ``Δ K`` for keys ``[d_in, k]`` in the keys' dtype."""
        return self.value.to(keys.dtype) @ keys


Delta = LowRank | Dense


def add_deltas(first: Delta | None, second: Delta) -> Delta:
    """Return the sum of two changes of one weight, low-rank where both are."""
    if first is None:
        return second
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        # [L₁ L₂] [R₁; R₂] = L₁ R₁ + L₂ R₂: ranks add up, nothing is formed
        left = [f.left.double() for f in (first, second)]
        right = [f.right.double() for f in (first, second)]
        return LowRank(torch.cat(left, dim=1), torch.cat(right, dim=0))
    return Dense(first.dense().float() + second.dense().float())


@dataclass(frozen=True, slots=True)
class WeightDelta:
    """Additive changes by parameter name (``"model.layers.3.mlp.down_proj.weight"``)."""

    deltas: Mapping[str, Delta]


@dataclass(frozen=True, slots=True)
class ModulePatch:
    """Submodules that take the place of others while they are applied (memory editors)."""

    modules: Mapping[str, torch.nn.Module]


Patch = WeightDelta | ModulePatch
