"""The parts of a Llama block, forward and backward: linear maps, RMS norm, rotary positions.

They compute what the modules of transformers compute, on states whose tokens lie side by side, ``[width, n]`` (a column per token):

    linear     y = W x + b                                   ∂L/∂x = Wᵀ ∂L/∂y
    RMS norm   y = w ⊙ x r,   r = (mean(x²) + ε)^-½          ∂L/∂x = r (g ⊙ w − x r² mean(g ⊙ w ⊙ x)),   g = ∂L/∂y
    rotary     y = x ⊙ cos + rot(x) ⊙ sin                    ∂L/∂x = g ⊙ cos − rot(g) ⊙ sin
               with rot(x₁, x₂) = (−x₂, x₁) on the halves of each head

(Zhang & Sennrich 2019, arXiv 1910.07467; Su et al. 2021, arXiv 2104.09864.) Weights are constants: only inputs have gradients.

Shape legend: ``n`` tokens, ``d`` width of the stream, ``e`` width of a head, ``d_in`` and ``d_out`` of a linear map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

RotaryTable = tuple[Tensor, Tensor]
"""``cos`` and ``sin`` of each token's angles, ``[e/2, n]`` each: both halves of a head turn by the same angles."""


class LinearWeights(NamedTuple):
    """The parameters of a linear map.

    Attributes:
        weight: ``W [d_out, d_in]``.
        transposed: ``Wᵀ [d_in, d_out]``, a view, for the backward pass.
        bias: ``[d_out, 1]``, or None.
    """

    weight: Tensor
    transposed: Tensor
    bias: Tensor | None

    @classmethod
    def from_module(cls, linear: nn.Linear) -> LinearWeights:
        """Take the parameters of an ``nn.Linear`` (views, not copies)."""
        weight, bias = linear.weight.detach(), linear.bias
        return cls(weight, weight.t(), None if bias is None else bias.detach()[:, None])

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``W x + b``: ``[d_in, n]`` → ``[d_out, n]``."""
        return torch.mm(self.weight, x) if self.bias is None else torch.addmm(self.bias, self.weight, x)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual + W x + b`` (the sum is part of the product, so it costs no pass of its own)."""
        total = torch.addmm(residual, self.weight, x)
        return total if self.bias is None else total.add_(self.bias)


class RmsNormWeights(NamedTuple):
    """The parameters of an RMS norm.

    Attributes:
        weight: ``w [d, 1]``.
        eps: ``ε [1, 1]``.
        mean: ``[1, d]``, every entry ``1 / d``: means over the width are products with it, which is one call for mean and ``+ ε``.
    """

    weight: Tensor
    eps: Tensor
    mean: Tensor

    @classmethod
    def from_module(cls, norm: LlamaRMSNorm) -> RmsNormWeights:
        """Take the parameters of a Llama-like RMS norm."""
        weight = norm.weight.detach()
        # [1, 1] and [1, d]: addmm then makes ε + mean(x²) in one call
        eps, mean = weight.new_full((1, 1), norm.variance_epsilon), weight.new_full((1, len(weight)), 1 / len(weight))
        return cls(weight[:, None], eps, mean)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``w ⊙ x r [d, n]`` and ``r = (mean(x²) + ε)^-½ [1, n]``, which the backward pass needs again."""
        r = torch.addmm(self.eps, self.mean, x * x).rsqrt_()
        return (x * r).mul_(self.weight), r

    def backward_without_scale(self, x: Tensor, r: Tensor, grad: Tensor) -> Tensor:
        """Return ``g ⊙ w − x r² mean(g ⊙ w ⊙ x)``, which times ``r`` is the gradient of the input.

        The caller multiplies by ``r`` while it adds the gradient to that of the residual stream.

        Args:
            x: the input, ``[d, n]``.
            r: what the forward pass returned, ``[1, n]``.
            grad: ``g``, the gradient of the output, ``[d, n]``.
        """
        # y_i = w_i x_i r and ∂r/∂x_j = −r³ x_j / d, so ∂L/∂x_j = r g_j w_j − (r³ x_j / d) Σ_i g_i w_i x_i
        weighted = grad * self.weight
        projection = torch.mm(self.mean, weighted * x).mul_(r).mul_(r)
        return torch.addcmul(weighted, x, projection, value=-1)


class BlockWeights(NamedTuple):
    """The parameters of a block, in the order in which it uses them."""

    attention_norm: RmsNormWeights
    q: LinearWeights
    k: LinearWeights
    v: LinearWeights
    o: LinearWeights
    mlp_norm: RmsNormWeights
    gate: LinearWeights
    up: LinearWeights
    down: LinearWeights

    @classmethod
    def from_module(cls, module: LlamaDecoderLayer) -> BlockWeights:
        """Take the parameters of a block of transformers with Llama's names."""
        attention, mlp = module.self_attn, module.mlp
        return cls(
            attention_norm=RmsNormWeights.from_module(module.input_layernorm),
            q=LinearWeights.from_module(attention.q_proj),
            k=LinearWeights.from_module(attention.k_proj),
            v=LinearWeights.from_module(attention.v_proj),
            o=LinearWeights.from_module(attention.o_proj),
            mlp_norm=RmsNormWeights.from_module(module.post_attention_layernorm),
            gate=LinearWeights.from_module(mlp.gate_proj),
            up=LinearWeights.from_module(mlp.up_proj),
            down=LinearWeights.from_module(mlp.down_proj),
        )


def scaled_table(table: RotaryTable, factor: float = 1.0) -> RotaryTable:
    """Return *table* times *factor*, laid out in rows (contiguous), which the element-wise products below want."""
    return (table[0] * factor).contiguous(), (table[1] * factor).contiguous()


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Turn queries or keys ``[heads·e, n]`` to their positions: ``x ⊙ cos + rot(x) ⊙ sin``."""
    cos, sin = table
    # [heads, half, e/2, n]
    parts = x.view(-1, 2, *cos.shape)
    out = parts * cos
    # y₁ = x₁ cos − x₂ sin
    out.select(1, 0).addcmul_(parts.select(1, 1), sin, value=-1)
    # y₂ = x₂ cos + x₁ sin
    out.select(1, 1).addcmul_(parts.select(1, 0), sin)
    return out.view(x.shape)


def rotate_backward(grad: Tensor, table: RotaryTable) -> Tensor:
    """Return the gradient of the input of :func:`rotate`: the turn back, since a rotation's transpose is its inverse."""
    cos, sin = table
    # [heads, half, e/2, n]
    parts = grad.view(-1, 2, *cos.shape)
    out = parts * cos
    # ∂L/∂x₁ = g₁ cos + g₂ sin
    out.select(1, 0).addcmul_(parts.select(1, 1), sin)
    # ∂L/∂x₂ = g₂ cos − g₁ sin
    out.select(1, 1).addcmul_(parts.select(1, 0), sin, value=-1)
    return out.view(grad.shape)
