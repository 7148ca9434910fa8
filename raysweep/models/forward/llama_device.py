"""The upper blocks of Llama-like models on an accelerator, in any precision: as few launches as torch's own kernels allow.

There every operation costs the host as much as a product of forty tokens costs the device, so what counts is their number. A block
of transformers takes 111 launches forward and backward, this one 39 (``benchmarks/launches.py``), with the same mathematics as
:mod:`raysweep.models.forward.llama_fused`, which is laid out for a CPU::

    u = norm₁(x)              q = rot(W_q u),   k = rot(W_k u),   v = W_v u
    y = x + W_o attention(q, k, v)                                                     grouped-query attention
    w = norm₂(y)              z = y + W_down (silu(W_gate w) ⊙ W_up w)                 gated MLP

Tokens lie one below the other, ``[n, width]``, those of all packs as one list without padding; only attention lays them out by
pack. Only what enters the blocks has a gradient. Which models have such blocks is :func:`llama_fused.supports`'s to say.

Shape legend: ``B`` packs, ``S`` slots of a pack, ``A`` of them that ask in the last block, ``P`` reused tokens, ``M = P + S``,
``h`` query heads, ``k`` key heads, ``g = h / k``, ``e`` width of a head, ``n ≤ B·S`` tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.models.forward.llama_fused import PastKeysValues
from raysweep.models.forward.model_guard import ModelGuard
from raysweep.models.forward.token_grid import Grid
from raysweep.models.lm import LanguageModel

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

# Columns of a mask: kernels of attention read its rows in pieces of 16 bytes, and copy a mask that does not allow it at every call.
_MASK_COLUMNS = 16


class _Map(NamedTuple):
    """A linear map: ``W [d_out, d_in]``, ``b [d_out]`` or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def from_module(cls, linear: nn.Linear) -> _Map:
        return cls(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual + W x + b``, the sum as a part of the product."""
        total = torch.addmm(residual, x, self.weight.t())
        return total if self.bias is None else total + self.bias


class _Norm(NamedTuple):
    """An RMS norm: ``w [d]`` and ``ε``."""

    weight: Tensor
    eps: float

    @classmethod
    def from_module(cls, norm: LlamaRMSNorm) -> _Norm:
        return cls(norm.weight.detach(), norm.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _Block(NamedTuple):
    """The parameters of a block, in the order in which it uses them."""

    attention_norm: _Norm
    q: _Map
    k: _Map
    v: _Map
    o: _Map
    mlp_norm: _Norm
    gate: _Map
    up: _Map
    down: _Map

    @classmethod
    def from_module(cls, module: LlamaDecoderLayer) -> _Block:
        attention, mlp = module.self_attn, module.mlp
        maps = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        q, k, v, o = (_Map.from_module(m) for m in maps)
        gate, up, down = (_Map.from_module(m) for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        first, second = (_Norm.from_module(m) for m in (module.input_layernorm, module.post_attention_layernorm))
        return cls(first, q, k, v, o, second, gate, up, down)


class Queries(NamedTuple):
    """The tokens that ask in the last block: only they leave it.

    Attributes:
        grid: where they lie for attention.
        selected: ``[n]`` which of the tokens that enter the block they are.
        rotary: the angles of their positions.
        mask: ``[B, 1, A, M]``, added to the attention scores.
    """

    grid: Grid
    selected: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor


@dataclass(frozen=True, slots=True)
class DeviceLlamaBlocks:
    """Blocks of a model, up to the final norm or before, on given positions, with given keys and values of earlier tokens.

    Call it with what enters the first block, ``[B, S, d]``; the result is differentiable.

    Attributes:
        blocks: their parameters, in order.
        final_norm: the norm after the last block; None: the model's last block is not among these.
        past: keys and values of the reused tokens in each block, ``[B, k, g, P, e]`` each; None without reused tokens.
        grid: where the computed tokens lie.
        rotary: ``cos`` and ``sin`` of their angles, ``[n, 1, e/2]`` each: both halves of a head turn by the same angles.
        mask: ``[B, 1, S, M]``, added to the attention scores; the reused tokens come first.
        heads: ``(h, k)``.
        guard: the model as it was.
        queries: the tokens that ask in the last block; None: all.
    """

    blocks: Sequence[_Block]
    final_norm: _Norm | None
    past: Sequence[PastKeysValues | None]
    grid: Grid
    rotary: tuple[Tensor, Tensor]
    mask: Tensor
    heads: tuple[int, int]
    guard: ModelGuard
    queries: Queries | None = None

    @classmethod
    def prepare(
        cls,
        lm: LanguageModel,
        first: int,
        positions: Tensor,
        mask: Tensor,
        past: Sequence[PastKeysValues | None],
        real: Tensor | None = None,
        end: int | None = None,
    ) -> DeviceLlamaBlocks:
        """Work out what all steps have in common; the arguments are those of :meth:`llama_fused.FusedLlamaBlocks.prepare`.

        The device is waited for if *real* lies on it.
        """
        config = lm.module.config
        h, k = config.num_attention_heads, config.num_key_value_heads
        e = getattr(config, "head_dim", None) or config.hidden_size // h
        body: LlamaModel = lm.part(lm.layout.body)
        grid = Grid((positions.shape[0], positions.shape[1])) if real is None else Grid.from_flags(real.tolist(), mask)
        # [B, S, e] → [n, 1, e/2], in the states' dtype as in transformers
        cos, sin = (x[..., : e // 2].flatten(0, 1)[:, None] for x in body.rotary_emb(mask, positions))
        if grid.slot_of_token is not None:
            cos, sin = (x.index_select(0, grid.slot_of_token) for x in (cos, sin))
        until = lm.n_blocks if end is None else end
        return cls(
            blocks=[_Block.from_module(lm.part(lm.layout.block.format(i))) for i in range(first, until)],
            final_norm=_Norm.from_module(lm.part(lm.layout.norm)) if end is None else None,
            past=[None if kv is None else (_per_query_head(kv[0], h), _per_query_head(kv[1], h)) for kv in past],
            grid=grid,
            rotary=(cos, sin),
            mask=_aligned(mask),
            heads=(h, k),
            guard=ModelGuard.record(lm, first, end),
        )

    def read_at(self, rows: Tensor, columns: Tensor) -> tuple[DeviceLlamaBlocks, Tensor]:
        """Let only the tokens at ``rows [k]``, ``columns [k]`` leave the last block, which makes keys and values of all.

        The device is waited for if *rows* lies on it.

        Returns:
            The blocks, and which of the tokens that leave them each of the positions is, ``[k]``.
        """
        (b, s), device = self.grid.shape, self.mask.device
        places = list(zip(*torch.stack([rows, columns]).tolist(), strict=True))
        # each once, pack by pack: the columns of each pack, then filled up with its first
        asked = sorted(set(places))
        by_pack = [[c for pack, c in asked if pack == i] for i in range(b)]
        width = max(len(chosen) for chosen in by_pack)
        flags = [[j < len(chosen) for j in range(width)] for chosen in by_pack]
        filled = [[*chosen, *[0] * (width - len(chosen))] for chosen in by_pack]
        number = {place: i for i, place in enumerate(asked)}
        tables = [r * s + c for r, c in asked], [number[p] for p in places], [c for chosen in filled for c in chosen]
        slots, token, picked = torch.tensor(list(chain(*tables)), device=device).split_with_sizes(
            [len(t) for t in tables]
        )
        # tokens are numbered like the occupied slots
        selected = slots if self.grid.token_in_slot is None else self.grid.token_in_slot.index_select(0, slots)
        # [B, 1, A, M]: the mask's rows of those slots
        mask = self.mask.gather(2, picked.view(b, 1, width, 1).expand(-1, -1, -1, self.mask.shape[3]))
        cos, sin = (x.index_select(0, selected) for x in self.rotary)
        queries = Queries(Grid.from_flags(flags, self.mask), selected, (cos, sin), _aligned(mask))
        return replace(self, queries=queries), token

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Put ``tokens [n, d]`` into their slots, ``[B·S, d]``; zero where there is none."""
        if self.grid.slot_of_token is None:
            return tokens
        empty = tokens.new_zeros(self.grid.shape[0] * self.grid.shape[1], tokens.shape[1])
        return empty.index_copy(0, self.grid.slot_of_token, tokens)

    def is_unchanged(self) -> bool:
        """Tell whether the model is still what this was made from, but for numbers."""
        return self.guard.is_unchanged()

    def __call__(self, states: Tensor) -> Tensor:
        """Return what comes out at the tokens that ask last, ``[n, d]``, given what enters the first block, ``[B, S, d]``."""
        x = self.grid.take(states)
        for block, past in zip(self.blocks[:-1], self.past[:-1], strict=True):
            x = self._run(block, past, x, None)
        if self.blocks:
            x = self._run(self.blocks[-1], self.past[-1], x, self.queries)
        return x if self.final_norm is None else self.final_norm(x)

    def _run(self, block: _Block, past: PastKeysValues | None, x: Tensor, queries: Queries | None) -> Tensor:
        """Run one block: what enters it, ``[n, d]`` → what leaves it, at *queries* only if given."""
        h, k = self.heads
        grid, mask, u = self.grid, self.mask, block.attention_norm(x)
        keys, values = block.k(u), block.v(u)
        if queries is None:
            asking, keys = _Rotate.apply(*self.rotary, block.q(u), keys)  # type: ignore[no-untyped-call]
        else:
            x, grid, mask = x.index_select(0, queries.selected), queries.grid, queries.mask
            (asking,) = _Rotate.apply(*queries.rotary, block.q(u.index_select(0, queries.selected)))  # type: ignore[no-untyped-call]
            (keys,) = _Rotate.apply(*self.rotary, keys)  # type: ignore[no-untyped-call]
        q = _heads(grid.lay_out(asking), h)
        key, value = (_heads(self.grid.lay_out(t), k) for t in (keys, values))
        key, value = _behind(past and past[0], key, h), _behind(past and past[1], value, h)
        mixed = F.scaled_dot_product_attention(q, key, value, attn_mask=mask)
        y = block.o.add_to(x, grid.take(mixed.transpose(1, 2).flatten(2)))
        w = block.mlp_norm(y)
        return block.down.add_to(y, F.silu(block.gate(w)) * block.up(w))


def _heads(grid: Tensor, heads: int) -> Tensor:
    """Show ``[B, A, heads·e]`` as attention takes it, ``[B, heads, A, e]`` (a view)."""
    return grid.view(*grid.shape[:2], heads, -1).transpose(1, 2)


def _per_query_head(x: Tensor, h: int) -> Tensor:
    """Show keys or values to every query head: ``[B, k, S, e]`` → ``[B, k, g, S, e]`` (a view)."""
    return x[:, :, None].expand(-1, -1, h // x.shape[1], -1, -1)


def _behind(past: Tensor | None, new: Tensor, h: int) -> Tensor:
    """Put keys or values ``[B, k, S, e]`` behind those of the reused tokens, for every query head: ``[B, h, M, e]``."""
    if past is None and new.shape[1] == h:
        return new
    repeated = _per_query_head(new, h)
    return (repeated if past is None else torch.cat([past, repeated], 3)).flatten(1, 2)


def _aligned(mask: Tensor) -> Tensor:
    """Return *mask* with rows that begin at multiples of what kernels of attention read at once."""
    columns = mask.shape[-1]
    return F.pad(mask, (0, -columns % _MASK_COLUMNS))[..., :columns]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Turn ``x [n, heads·e]`` by its angles, ``(x₁ cos − x₂ sin, x₂ cos + x₁ sin)`` on the halves of each head; or *back*."""
    sign = -1 if back else 1
    parts = x.view(len(x), -1, 2, cos.shape[-1])
    out = parts * cos[:, None]
    out.select(2, 0).addcmul_(parts.select(2, 1), sin, value=-sign)
    out.select(2, 1).addcmul_(parts.select(2, 0), sin, value=sign)
    return out.view(x.shape)


class _Rotate(torch.autograd.Function):
    """Queries and keys ``[n, heads·e]``, turned to their positions as one tensor, so that it takes three launches."""

    @staticmethod
    def forward(ctx: Any, cos: Tensor, sin: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.angles, ctx.widths = (cos, sin), [p.shape[1] for p in parts]
        turned = _turn(torch.cat(parts, 1) if len(parts) > 1 else parts[0], cos, sin)
        return tuple(turned.split_with_sizes(ctx.widths, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # the transpose of a rotation is its inverse
        together = torch.cat(grads, 1) if len(grads) > 1 else grads[0].contiguous()
        return None, None, *_turn(together, *ctx.angles, back=True).split_with_sizes(ctx.widths, 1)
