"""The upper blocks of Llama-like models with few operations, for steps that are repeated many times on few tokens.

With forty tokens the modules of transformers spend as long between the matrix products as in them. Here a block is written out
by hand, forward and backward: RMS norm, grouped-query attention with rotary positions, RMS norm, gated MLP. Only what enters
the blocks has a gradient; weights are constants. Hooks and modules in place of linear maps are not seen, so :func:`fit` refuses
models that have any; everything else goes the ordinary way.

Shape legend: ``B`` packs, ``S`` places that are computed, ``A`` of them that ask, ``P`` reused ones, ``M = P + S``, ``h`` query
heads, ``k`` key heads, ``g = h / k``, ``e`` width of a head, ``n ≤ B·S`` tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
class View:
    """Who asks in a block. Between attentions only these ``n`` tokens are computed, without the padding of packs.

    Attributes:
        cos, sin: ``[B, A, 1, e]`` of the rotary positions of the ``A`` places per pack, padding included.
        mask: ``[B·k, g·A, M]`` added to attention scores.
        slots: ``[n]`` in which of the ``B·A`` places each token is; None: all places are tokens, in order.
        pick: ``[n]`` which of the tokens that enter the block they are; None: all, in order.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor
    slots: Tensor | None = None
    pick: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """Pick the asking ones of the tokens that enter."""
        return x if self.pick is None else x[self.pick]

    def back(self, grad: Tensor, n: int) -> Tensor:
        """Return the gradient of the ``n`` tokens that enter, given that of :meth:`of`."""
        return grad if self.pick is None else grad.new_zeros(n, grad.shape[1]).index_copy_(0, self.pick, grad)

    def laid(self, rows: Tensor) -> Tensor:
        """Lay tokens ``[n, w]`` out in their places ``[B·A, w]``, zero elsewhere."""
        if self.slots is None:
            return rows
        b, a = self.cos.shape[:2]
        return rows.new_zeros(b * a, rows.shape[1]).index_copy_(0, self.slots, rows)

    def taken(self, places: Tensor) -> Tensor:
        """Take the tokens out of their places: ``[B·A, w]`` → ``[n, w]``."""
        return places if self.slots is None else places[self.slots]


@dataclass(frozen=True, slots=True)
class Climb:
    """Blocks *first* … of a model on given positions, with given keys and values of earlier tokens.

    Attributes:
        blocks: in order.
        past: of each block; None without reused tokens.
        everyone: all computed tokens ask.
        heads: ``(h, k, e)``.
        last: who asks in the last block.
    """

    blocks: Sequence[Any]
    past: Sequence[Past | None]
    everyone: View
    heads: tuple[int, int, int]
    last: View

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        first: int,
        positions: Tensor,
        mask: Tensor,
        past: Sequence[Past | None],
        real: Tensor | None = None,
    ) -> Climb:
        """Prepare for ``positions [B, S]`` and the additive ``mask [B, 1, S, M]``; *past* has one entry per block.

        ``real [B, S]`` is False at padding, which is then left out; None: nothing is.
        """
        config: Any = lm.module.config
        h, k = config.num_attention_heads, config.num_key_value_heads
        e = getattr(config, "head_dim", None) or config.hidden_size // h
        body: Any = lm.part(lm.layout.body)
        cos, sin = body.rotary_emb(lm.weight(f"{lm.layout.embed}.weight"), positions)
        b, s, m = len(mask), *mask.shape[2:]
        blocks = [lm.part(lm.layout.block.format(i)) for i in range(first, lm.n_blocks)]
        wide = mask[:, :, None].expand(b, k, h // k, s, m).reshape(b * k, -1, m)
        slots = None if real is None or bool(real.all()) else real.flatten().nonzero()[:, 0]
        everyone = View(cos[:, :, None], sin[:, :, None], wide, slots)
        return cls(blocks, past, everyone, (h, k, e), everyone)

    def asking(self, flags: Tensor) -> Climb:
        """Return the way on which only the tokens at ``flags [B, S]`` leave the last block, in the order of their places."""
        all_, k, (b, s) = self.everyone, self.heads[1], self.everyone.cos.shape[:2]
        count, m = flags.sum(1), all_.mask.shape[-1]
        columns = flags.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        pack, chosen = torch.arange(b, device=flags.device)[:, None], flags.flatten().nonzero()[:, 0]
        width = columns[:, None, None, :, None].expand(-1, k, self.heads[0] // k, -1, m)
        mask = all_.mask.view(b, k, -1, s, m).gather(3, width).reshape(b * k, -1, m)
        used = torch.arange(columns.shape[1], device=flags.device) < count[:, None]
        slots = None if bool(used.all()) else used.flatten().nonzero()[:, 0]
        rank = torch.arange(b * s, device=flags.device)
        if all_.slots is not None:
            rank = torch.zeros_like(rank).index_copy_(0, all_.slots, rank[: len(all_.slots)])
        last = View(all_.cos[pack, columns], all_.sin[pack, columns], mask, slots, rank[chosen])
        return replace(self, last=last)

    def views(self) -> list[View]:
        """Return who asks in each block."""
        return [*[self.everyone] * (len(self.blocks) - 1), self.last]

    def __call__(self, states: Tensor) -> Tensor:
        """Return what leaves the last block, ``[n, d]``, given what enters the first, ``[B, S, d]``; differentiable."""
        found: Tensor = _Function.apply(states, self)  # type: ignore[no-untyped-call]
        return found

    def up(
        self, block: Any, past: Past | None, view: View, x: Tensor, *, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return a block's output at the asking tokens and, to *keep*, what its gradient needs."""
        attention, mlp = block.self_attn, block.mlp
        normed, r1 = _norm(block.input_layernorm, x)
        q = self._by_key_head(_turned(self._split(_map(attention.q_proj, view.of(normed)), view), view.cos, view.sin))
        turn = self.everyone
        key = self._by_key_head(_turned(self._split(_map(attention.k_proj, normed), turn), turn.cos, turn.sin))
        value = self._by_key_head(self._split(_map(attention.v_proj, normed), turn))
        if past is not None:
            key, value = (
                torch.cat([old.flatten(0, 1), new], dim=1) for old, new in zip(past, (key, value), strict=True)
            )
        p = torch.baddbmm(view.mask, q, key.mT, alpha=self.heads[2] ** -0.5).softmax(-1)
        y = _map(attention.o_proj, self._by_token(p @ value, view)).add_(view.of(x))
        normed, r2 = _norm(block.post_attention_layernorm, y)
        gate, up = _map(mlp.gate_proj, normed), _map(mlp.up_proj, normed)
        if not keep:
            return _map(mlp.down_proj, F.silu(gate, inplace=True).mul_(up)).add_(y), ()
        gated = F.silu(gate)
        z = _map(mlp.down_proj, gated * up).add_(y)
        return z, (x, r1, q, key, value, p, y, r2, gate, gated, up)

    def down(self, block: Any, kept: tuple[Tensor, ...], view: View, grad: Tensor) -> Tensor:
        """Return the gradient of a block's input ``[n, d]``, given that of its output at the asking tokens."""
        attention, mlp, turn = block.self_attn, block.mlp, self.everyone
        x, r1, q, key, value, p, y, r2, gate, gated, up = kept
        inner = products.backward(grad, mlp.down_proj.weight)
        d_gate = torch.ops.aten.silu_backward(inner * up, gate)
        d_normed = products.backward(d_gate, mlp.gate_proj.weight)
        d_normed = products.backward(inner.mul_(gated), mlp.up_proj.weight, d_normed)
        grad = grad + _norm_down(block.post_attention_layernorm, y, r2, d_normed)
        d_mixed = self._by_key_head(self._split(products.backward(grad, attention.o_proj.weight), view))
        d_scores = torch.ops.aten._softmax_backward_data(d_mixed @ value.mT, p, -1, p.dtype).mul_(self.heads[2] ** -0.5)
        new = key.shape[1] - turn.cos.shape[1]
        d_v = self._by_token(p[:, :, new:].mT @ d_mixed, turn)
        d_k = self._by_token(d_scores[:, :, new:].mT @ q, turn, turned=True)
        d_q = self._by_token(d_scores @ key, view, turned=True)
        d_normed = view.back(products.backward(d_q, attention.q_proj.weight), len(x))
        d_normed = products.backward(d_k, attention.k_proj.weight, d_normed)
        d_normed = products.backward(d_v, attention.v_proj.weight, d_normed)
        return view.back(grad, len(x)) + _norm_down(block.input_layernorm, x, r1, d_normed)

    def _split(self, states: Tensor, view: View) -> Tensor:
        """``[n, heads·e]`` → ``[B, A, heads, e]``."""
        return view.laid(states).view(*view.cos.shape[:2], -1, self.heads[2])

    def _by_key_head(self, states: Tensor) -> Tensor:
        """``[B, A, heads, e]`` → ``[B·k, (heads / k)·A, e]``."""
        b, s, heads, e = states.shape
        k = self.heads[1]
        return states.view(b, s, k, heads // k, e).permute(0, 2, 3, 1, 4).reshape(b * k, -1, e)

    def _by_token(self, states: Tensor, view: View, *, turned: bool = False) -> Tensor:
        """``[B·k, (heads / k)·A, e]`` → ``[n, heads·e]``; *turned* gradients are those before the rotation."""
        b, s = view.cos.shape[:2]
        k, e = self.heads[1], self.heads[2]
        places = states.view(b, k, -1, s, e).permute(0, 3, 1, 2, 4)
        if turned:
            places = _turned_back(places.reshape(b, s, -1, e), view.cos, view.sin)
        return view.taken(places.reshape(b * s, -1))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, climb: Climb) -> Tensor:
        x, kept = climb.everyone.taken(states.flatten(0, 1)), []
        keep = ctx.needs_input_grad[0]
        for block, past, view in zip(climb.blocks, climb.past, climb.views(), strict=True):
            x, needed = climb.up(block, past, view, x, keep=keep)
            kept.append(needed)
        ctx.climb, ctx.kept, ctx.shape = climb, kept, states.shape
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        for block, kept, view in reversed(list(zip(ctx.climb.blocks, ctx.kept, ctx.climb.views(), strict=True))):
            grad = ctx.climb.down(block, kept, view, grad)
        return ctx.climb.everyone.laid(grad).view(ctx.shape), None


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
