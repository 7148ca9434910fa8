"""The upper blocks of Llama-like models with few operations, for steps that are repeated many times on few tokens.

With forty tokens the modules of transformers spend as long between the matrix products as in them. Here a block is written out
by hand, forward and backward: RMS norm, grouped-query attention with rotary positions, RMS norm, gated MLP. Only what enters
the blocks has a gradient; weights are constants. Hooks and modules in place of linear maps are not seen, so :func:`fit` refuses
models that have any; everything else goes the ordinary way.

Shape legend: ``B`` packs, ``S`` tokens that are computed, ``P`` reused ones, ``M = P + S``, ``h`` query heads, ``k`` key heads,
``g = h / k``, ``e`` width of a head, ``n = B·S``, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.models import products
from raysweep.models.lm import LanguageModel

KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")  # of transformers: exactly this mathematics

Past = tuple[Tensor, Tensor]  # keys and values [B, k, P, e]


def fit(lm: LanguageModel, first: int) -> bool:
    """Tell whether blocks *first* … are what :class:`Climb` computes: fp32, eval mode, nothing hooked, replaced or trained."""
    blocks = [lm.part(lm.layout.block.format(i)) for i in range(first, lm.n_blocks)]
    if not blocks or lm.dtype != torch.float32 or getattr(lm.module.config, "hidden_act", "") != "silu":
        return False
    return all(type(block).__name__ in KNOWN and _untouched(block) for block in blocks)


def _untouched(block: nn.Module) -> bool:
    weights: list[tuple[nn.Module, Any]] = [(m, getattr(m, "weight", None)) for m in block.modules()]
    maps = [m for m, weight in weights if weight is not None and weight.dim() == 2]
    changed = any(m._forward_hooks or m._forward_pre_hooks or m.training for m in block.modules())
    trained = any(p.requires_grad for p in block.parameters())
    return len(maps) == 7 and all(type(m) is nn.Linear for m in maps) and not changed and not trained


@dataclass(frozen=True, slots=True)
class Climb:
    """Blocks *first* … of a model on given positions, with given keys and values of earlier tokens.

    Attributes:
        blocks: in order.
        past: of each block; None without reused tokens.
        cos, sin: ``[B, S, 1, e]`` of the rotary positions.
        mask: ``[B·k, g·S, M]`` added to attention scores.
        heads: ``(h, k, e)``.
    """

    blocks: Sequence[Any]
    past: Sequence[Past | None]
    cos: Tensor
    sin: Tensor
    mask: Tensor
    heads: tuple[int, int, int]

    @classmethod
    def of(cls, lm: LanguageModel, first: int, positions: Tensor, mask: Tensor, past: Sequence[Past | None]) -> Climb:
        """Prepare for ``positions [B, S]`` and the additive ``mask [B, 1, S, M]``; *past* has one entry per block."""
        config: Any = lm.module.config
        h, k = config.num_attention_heads, config.num_key_value_heads
        e = getattr(config, "head_dim", None) or config.hidden_size // h
        body: Any = lm.part(lm.layout.body)
        cos, sin = body.rotary_emb(lm.weight(f"{lm.layout.embed}.weight"), positions)
        b, s, m = len(mask), *mask.shape[2:]
        blocks = [lm.part(lm.layout.block.format(i)) for i in range(first, lm.n_blocks)]
        wide = mask[:, :, None].expand(b, k, h // k, s, m).reshape(b * k, -1, m)
        return cls(blocks, past, cos[:, :, None], sin[:, :, None], wide, (h, k, e))

    def __call__(self, states: Tensor) -> Tensor:
        """Return what leaves the last block, ``[B, S, d]``, given what enters the first; differentiable."""
        found: Tensor = _Function.apply(states, self)  # type: ignore[no-untyped-call]
        return found

    def up(self, block: Any, past: Past | None, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return a block's output ``[n, d]`` and what its gradient needs."""
        attention, mlp, (h, _, e) = block.self_attn, block.mlp, self.heads
        normed, r1 = _norm(block.input_layernorm, x)
        both = torch.cat([_map(attention.q_proj, normed), _map(attention.k_proj, normed)], dim=1)
        both = _turned(both.view(*self.cos.shape[:2], -1, e), self.cos, self.sin)
        q, key = self._by_key_head(both[:, :, :h]), self._by_key_head(both[:, :, h:])
        value = self._by_key_head(_map(attention.v_proj, normed).view(*self.cos.shape[:2], -1, e))
        if past is not None:
            key, value = (
                torch.cat([old.flatten(0, 1), new], dim=1) for old, new in zip(past, (key, value), strict=True)
            )
        p = torch.baddbmm(self.mask, q, key.mT, alpha=e**-0.5).softmax(-1)
        y = _map(attention.o_proj, self._by_token(p @ value)).add_(x)
        normed, r2 = _norm(block.post_attention_layernorm, y)
        gate, up = _map(mlp.gate_proj, normed), _map(mlp.up_proj, normed)
        gated = F.silu(gate)
        z = _map(mlp.down_proj, gated * up).add_(y)
        return z, (x, r1, q, key, value, p, y, r2, gate, gated, up)

    def down(self, block: Any, kept: tuple[Tensor, ...], grad: Tensor) -> Tensor:
        """Return the gradient of a block's input ``[n, d]``, given that of its output."""
        attention, mlp, (h, _, e) = block.self_attn, block.mlp, self.heads
        x, r1, q, key, value, p, y, r2, gate, gated, up = kept
        inner = products.backward(grad, mlp.down_proj.weight)
        d_gate = torch.ops.aten.silu_backward(inner * up, gate)
        d_normed = products.backward(d_gate, mlp.gate_proj.weight)
        d_normed = products.backward(inner.mul_(gated), mlp.up_proj.weight, d_normed)
        grad = grad + _norm_down(block.post_attention_layernorm, y, r2, d_normed)
        mixed = products.backward(grad, attention.o_proj.weight).view(*self.cos.shape[:2], -1, e)
        d_mixed, new = self._by_key_head(mixed), key.shape[1] - self.cos.shape[1]
        d_scores = torch.ops.aten._softmax_backward_data(d_mixed @ value.mT, p, -1, p.dtype).mul_(e**-0.5)
        d_v = self._by_token(p[:, :, new:].mT @ d_mixed)
        d_k, d_q = self._by_token(d_scores[:, :, new:].mT @ q), self._by_token(d_scores @ key)
        both = torch.cat([d_q, d_k], dim=1).view(*self.cos.shape[:2], -1, e)
        both = _turned_back(both, self.cos, self.sin).flatten(0, 1).flatten(1)
        d_normed = products.backward(both[:, : h * e], attention.q_proj.weight)
        d_normed = products.backward(both[:, h * e :], attention.k_proj.weight, d_normed)
        d_normed = products.backward(d_v, attention.v_proj.weight, d_normed)
        return grad + _norm_down(block.input_layernorm, x, r1, d_normed)

    def _by_key_head(self, states: Tensor) -> Tensor:
        """``[B, S, heads, e]`` → ``[B·k, (heads / k)·S, e]``."""
        b, s, heads, e = states.shape
        k = self.heads[1]
        return states.view(b, s, k, heads // k, e).permute(0, 2, 3, 1, 4).reshape(b * k, -1, e)

    def _by_token(self, states: Tensor) -> Tensor:
        """``[B·k, (heads / k)·S, e]`` → ``[n, heads·e]``."""
        b, s = self.cos.shape[:2]
        k, e = self.heads[1], self.heads[2]
        return states.view(b, k, -1, s, e).permute(0, 3, 1, 2, 4).reshape(b * s, -1)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, climb: Climb) -> Tensor:
        x, kept = states.flatten(0, 1), []
        for block, past in zip(climb.blocks, climb.past, strict=True):
            x, needed = climb.up(block, past, x)
            kept.append(needed if ctx.needs_input_grad[0] else ())
        ctx.climb, ctx.kept = climb, kept
        return x.view(states.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].flatten(0, 1)
        for block, kept in zip(reversed(ctx.climb.blocks), reversed(ctx.kept), strict=True):
            grad = ctx.climb.down(block, kept, grad)
        return grad.view(grads[0].shape), None


def _map(linear: Any, x: Tensor) -> Tensor:
    return products.forward(x, linear.weight, linear.bias)


def _norm(norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x r w`` and ``r = (mean x² + ε)^-½``."""
    r = x.square().mean(-1, keepdim=True).add_(norm.variance_epsilon).rsqrt_()
    return (x * r).mul_(norm.weight), r


def _norm_down(norm: Any, x: Tensor, r: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of :func:`_norm`'s input: ``r (gw − x r² mean(gw x))``."""
    weighted = grad * norm.weight
    return torch.addcmul(weighted, x, (weighted * x).mean(-1, keepdim=True).mul_(r).mul_(r), value=-1).mul_(r)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x cos + rot(x) sin`` with ``rot(x₁, x₂) = (−x₂, x₁)``, halves of the last axis."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def _turned_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient of :func:`_turned`'s input."""
    half = grad.shape[-1] // 2
    out = grad * cos
    out[..., :half].addcmul_(grad[..., half:], sin[..., half:])
    out[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
    return out
