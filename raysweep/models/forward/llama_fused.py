"""The upper blocks of Llama-like models with few operations, for steps that are repeated many times on few tokens.

With forty tokens the modules of transformers spend as long between the matrix products as in them. Here a block is written out
by hand, forward and backward, as one ``autograd.Function`` for all blocks and the final norm (docs/methods/forward.md):

    u = norm₁(x)              q = rot(W_q u) / √e,   k = rot(W_k u),   v = W_v u
    P = softmax(qᵀk + mask)   y = x + W_o (v Pᵀ)                                       grouped-query attention
    w = norm₂(y)              z = y + W_down (silu(W_gate w) ⊙ W_up w)                 gated MLP

Only what enters the blocks has a gradient; weights are constants. Hooks and modules in place of linear maps are not seen, so
:func:`supports` refuses models that have any; everything else goes the ordinary way (:mod:`raysweep.models.forward.blocks`).

States are held with their tokens side by side, ``[width, n]``: every product is then ``W x``, the order that several threads share
best (:mod:`raysweep.models.forward.matmul`), and heads are rows, so a single pack goes through attention without being rearranged.

Shape legend: ``B`` packs, ``S`` slots of a pack that are computed, ``A`` of them that ask (are queries: in the last block only
those that are read), ``P`` reused tokens, ``M = P + S``, ``h`` query heads, ``k`` key heads, ``g = h / k``, ``e`` width of a head,
``n ≤ B·S`` tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.models import attention
from raysweep.models.forward import matmul
from raysweep.models.forward.given import Given, PastKeysValues
from raysweep.models.forward.llama_parts import BlockWeights, RmsNormWeights, rotate, rotate_backward, scaled_table
from raysweep.models.forward.model_guard import ModelGuard
from raysweep.models.forward.query_positions import PackSlice, QueryPositions, TokenSlots
from raysweep.models.lm import LanguageModel

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

_MODULE = "transformers.models.{0}.modeling_{0}"
SUPPORTED_BLOCKS = {  # exactly this mathematics; another library's class of the same name is none of them
    (_MODULE.format("llama"), "LlamaDecoderLayer"),
    (_MODULE.format("mistral"), "MistralDecoderLayer"),
    (_MODULE.format("qwen2"), "Qwen2DecoderLayer"),
}


def supports(lm: LanguageModel, first: int, end: int | None = None) -> bool:
    """Tell whether blocks *first* … *end* (exclusive; None: all) are what :class:`FusedLlamaBlocks` computes.

    That is: of known kinds, fp32, eval mode, one window for all, whole heads rotated, nothing hooked, replaced or trained.
    """
    blocks = [lm.part(lm.layout.block.format(i)) for i in range(first, lm.n_blocks if end is None else end)]
    if not blocks or lm.dtype != torch.float32 or getattr(lm.module.config, "hidden_act", "") != "silu":
        return False
    final = lm.part(lm.layout.norm)
    if not all(_class_of(b) in SUPPORTED_BLOCKS and type(b.post_attention_layernorm) is type(final) for b in blocks):
        return False
    if len(set(attention.windows(lm.module.config))) > 1:
        return False
    plain = all(_has_plain_maps(b) and _rotates_whole_heads(lm, b) for b in blocks)
    return plain and ModelGuard.record(lm, first, end).is_unchanged()


def _class_of(block: nn.Module) -> tuple[str, str]:
    return type(block).__module__, type(block).__name__


def _rotates_whole_heads(lm: LanguageModel, block: LlamaDecoderLayer) -> bool:
    """Tell whether scores are divided by ``√e`` and all ``e`` entries of a head are rotated."""
    body: LlamaModel = lm.part(lm.layout.body)
    width = block.self_attn.head_dim
    return bool(block.self_attn.scaling == width**-0.5 and 2 * len(body.rotary_emb.inv_freq) == width)


def _has_plain_maps(block: nn.Module) -> bool:
    """Tell whether a block's matrices are its seven linear maps (q, k, v, o, gate, up, down) and nothing more (adapters, say)."""
    weights = [(m, getattr(m, "weight", None)) for m in block.modules()]
    maps = [m for m, weight in weights if weight is not None and weight.dim() == 2]
    return len(maps) == 7 and all(type(m) is nn.Linear for m in maps)


@dataclass(frozen=True, slots=True)
class FusedLlamaBlocks:
    """Blocks of a model, up to the final norm or before, on given positions, with given keys and values of earlier tokens.

    Call it with what enters the first block; the result is differentiable. Everything that the steps have in common (angles,
    mask, where tokens lie, keys and values of reused tokens) is worked out once, by :meth:`prepare`.

    Attributes:
        blocks: their parameters, in order.
        final_norm: the norm after the last block; None: the model's last block is not among these.
        past: keys and values of the reused tokens in each block, ``[B·k, g, e, P]`` each; None without reused tokens.
        all_tokens: every computed token asks: the blocks but for the last.
        final_queries: the tokens that ask in the last block.
        heads: ``(h, k, e)``.
        guard: the model as it was.
    """

    blocks: Sequence[BlockWeights]
    final_norm: RmsNormWeights | None
    past: Sequence[PastKeysValues | None]
    all_tokens: QueryPositions
    final_queries: QueryPositions
    heads: tuple[int, int, int]
    guard: ModelGuard

    @classmethod
    def prepare(cls, lm: LanguageModel, given: Given) -> FusedLlamaBlocks:
        """Work out what all steps have in common; *lm* is one that :func:`supports` accepts for these blocks."""
        config = lm.module.config
        h, k = config.num_attention_heads, config.num_key_value_heads
        e = getattr(config, "head_dim", None) or config.hidden_size // h
        body: LlamaModel = lm.part(lm.layout.body)
        real, mask = given.real, given.mask
        cos_and_sin = body.rotary_emb(lm.weight(f"{lm.layout.embed}.weight"), given.positions)
        b, s, m = len(mask), *mask.shape[2:]
        slots = None
        if real is not None:
            slots = TokenSlots.from_flags(_round_up(real.flatten(), torch.ones_like(real).flatten()), mask.dtype)
        # [B, S, e] → [e/2, B·S]: transformers repeats the angles of the first half of a head in the second
        cos, sin = (x[..., : e // 2].flatten(0, 1).t() for x in cos_and_sin)
        table = (cos, sin) if slots is None else (cos[:, slots.slot_of_token], sin[:, slots.slot_of_token])
        # one pack's mask is broadcast over the heads; several packs' must be repeated, since heads lie inside packs
        head_mask = mask[:, 0] if b == 1 else mask.expand(b, h, s, m).reshape(b * h, s, m)
        all_tokens = QueryPositions(scaled_table(table), scaled_table(table, e**-0.5), head_mask, (b, s), slots)
        numbers = range(given.first, given.until(lm.n_blocks))
        blocks = [BlockWeights.from_module(lm.part(lm.layout.block.format(i))) for i in numbers]
        repeated = [
            None if kv is None else (_per_query_head(kv[0], h // k), _per_query_head(kv[1], h // k))
            for kv in given.past
        ]
        final_norm = RmsNormWeights.from_module(lm.part(lm.layout.norm)) if given.end is None else None
        guard = ModelGuard.record(lm, given.first, given.end)
        return cls(blocks, final_norm, repeated, all_tokens, all_tokens, (h, k, e), guard)

    def round_up(self, flags: Tensor) -> Tensor:
        """Add tokens to those at ``flags [B, S]`` until they are as many as products take the least time for."""
        slots = self.all_tokens.slots
        tokens = torch.ones_like(flags).flatten() if slots is None else slots.occupied.bool()
        return _round_up(flags.flatten(), tokens).view(flags.shape) if int(flags.sum()) > 1 else flags

    def read_at(self, flags: Tensor) -> FusedLlamaBlocks:
        """Let only the tokens at ``flags [B, S]`` leave the last block, in the order of their slots.

        The last block still makes keys and values of all tokens, but queries, attention and MLP of these only.
        """
        everyone, b = self.all_tokens, self.all_tokens.grid[0]
        count, m = flags.sum(1), everyone.mask.shape[-1]
        # a stable sort by flag lists each pack's flagged slots first, in order: [B, A], A = the most of any pack
        columns = flags.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        occupied = torch.arange(columns.shape[1], device=flags.device) < count[:, None]
        slots, flat = TokenSlots.from_flags(occupied.flatten(), everyone.mask.dtype), flags.flatten()
        # the mask's rows of those slots: [1 or B·h, A, M]
        rows = columns.repeat_interleave(len(everyone.mask) // b, 0)[..., None].expand(-1, -1, m)
        selected = (flat if everyone.slots is None else flat[everyone.slots.slot_of_token]).nonzero()[:, 0]
        rotary, scaled = (
            (cos[:, selected], sin[:, selected]) for cos, sin in (everyone.rotary, everyone.scaled_rotary)
        )
        mask = everyone.mask.gather(1, rows)
        queries = QueryPositions(rotary, scaled, mask, (b, columns.shape[1]), slots, selected)
        return replace(self, final_queries=queries)

    def per_pack(self) -> FusedLlamaBlocks:
        """Let attention go pack by pack where no gradient is asked for: nothing is laid out and no padding is looked at."""
        if len(self.all_tokens.occupied()) == 1 or any(kv is not None for kv in self.past):
            return self
        keys = self.all_tokens.occupied()
        last, all_tokens = (replace(q, packs=q.pack_slices(keys)) for q in (self.final_queries, self.all_tokens))
        return replace(self, final_queries=last, all_tokens=all_tokens)

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Put ``tokens [n, d]`` of :attr:`all_tokens` into their slots, ``[B·S, d]``; zero where there is none."""
        slots = self.all_tokens.slots
        if slots is None:
            return tokens
        return tokens.new_zeros(len(slots.occupied), tokens.shape[1]).index_copy(0, slots.slot_of_token, tokens)

    def queries_by_block(self) -> Iterator[QueryPositions]:
        """Give the tokens that ask, for each block."""
        yield from (self.all_tokens for _ in self.blocks[1:])
        yield self.final_queries

    def is_unchanged(self) -> bool:
        """Tell whether the model is still what this was made from, but for numbers."""
        return self.guard.is_unchanged()

    def __call__(self, states: Tensor) -> Tensor:
        """Return what comes out at the tokens that ask last, ``[n, d]``, given what enters the first block, ``[B, S, d]``."""
        hidden: Tensor = _FusedFunction.apply(states, self)  # type: ignore[no-untyped-call]
        return hidden

    def block_forward(
        self, block: BlockWeights, past: PastKeysValues | None, queries: QueryPositions, x: Tensor, *, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one block.

        Args:
            block: its parameters.
            past: keys and values of the reused tokens.
            queries: the tokens that ask.
            x: what enters it, ``[d, tokens]``.
            keep: return what :meth:`block_backward` needs.

        Returns:
            What leaves it at the tokens that ask, ``[d, n]``, and what is kept (empty without *keep*).
        """
        keys, e = self.all_tokens, self.heads[2]
        u, r1 = block.attention_norm(x)
        q = rotate(block.q(queries.select(u)), queries.scaled_rotary)
        k, v = rotate(block.k(u), keys.rotary), block.v(u)
        if not keep and queries.packs:
            mixed = torch.cat([self._attend_in_pack(pack, q, k, v) for pack in queries.packs], 1)
        else:
            q, k, v = queries.to_heads(q, e), keys.to_heads(k, e), keys.to_heads(v, e)
            k, v = self._per_query_head(k, past and past[0]), self._per_query_head(v, past and past[1])
            # [B·h, A, M]: each query's weights over the keys
            p = torch.baddbmm(queries.mask, q.mT, k).softmax(-1)
            mixed = queries.from_heads(torch.bmm(v, p.mT))
        y = block.o.add_to(queries.select(x), mixed)
        w, r2 = block.mlp_norm(y)
        gate, up = block.gate(w), block.up(w)
        if not keep:
            return block.down.add_to(y, F.silu(gate, inplace=True).mul_(up)), ()
        silu = F.silu(gate)
        z = block.down.add_to(y, silu * up)
        return z, (x, r1, q, k, v, p, y, r2, gate, silu, up)

    def block_backward(
        self, block: BlockWeights, kept: tuple[Tensor, ...], queries: QueryPositions, grad: Tensor
    ) -> Tensor:
        """Return the gradient of what entered a block, ``[d, tokens]``, given that of what left it at the tokens that ask.

        Below, ``d_a`` is ``∂L/∂a``; *grad* is ``d_z``, then ``d_y``.
        """
        keys, e = self.all_tokens, self.heads[2]
        x, r1, q, k, v, p, y, r2, gate, silu, up = kept
        # MLP: z = y + W_down (silu(a) ⊙ b), a = W_gate w, b = W_up w, and W_downᵀ d_z is the gradient of the product:
        # d_w = W_gateᵀ (W_downᵀ d_z ⊙ b ⊙ silu′(a)) + W_upᵀ (W_downᵀ d_z ⊙ silu(a))
        d_product = torch.mm(block.down.transposed, grad)
        d_w = torch.mm(block.gate.transposed, torch.ops.aten.silu_backward(d_product * up, gate))
        d_w = torch.addmm(d_w, block.up.transposed, d_product.mul_(silu))
        # d_y = d_z + through the norm
        grad = torch.addcmul(grad, block.mlp_norm.backward_without_scale(y, r2, d_w), r2)
        # attention: mixed = v Pᵀ, so d_P = d_mixedᵀ v; softmax: d_scores = P ⊙ (d_P − Σ_M d_P ⊙ P)
        d_mixed = queries.to_heads(torch.mm(block.o.transposed, grad), e, zero_empty=True)
        d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(d_mixed.mT, v), p, -1, p.dtype)
        # the first columns are reused tokens, which are constants
        n_past = k.shape[-1] - keys.grid[1]
        # d_v = d_mixed P
        d_v = keys.from_heads(self._sum_over_group(torch.bmm(d_mixed, p[:, :, n_past:])))
        # scores = qᵀk, so d_k = q d_scores and d_q = k d_scoresᵀ, each turned back
        d_k = keys.from_heads(self._sum_over_group(torch.bmm(q, d_scores[:, :, n_past:])))
        d_k = rotate_backward(d_k, keys.rotary)
        d_q = rotate_backward(queries.from_heads(torch.bmm(k, d_scores.mT)), queries.scaled_rotary)
        # d_u = W_qᵀ d_q (at the tokens that ask) + W_kᵀ d_k + W_vᵀ d_v
        n = x.shape[1]
        d_u = torch.addmm(queries.select_backward(torch.mm(block.q.transposed, d_q), n), block.k.transposed, d_k)
        d_u = torch.addmm(d_u, block.v.transposed, d_v)
        # d_x = d_y (at the tokens that ask) + through the norm
        return torch.addcmul(
            queries.select_backward(grad, n), block.attention_norm.backward_without_scale(x, r1, d_u), r1
        )

    def _attend_in_pack(self, pack: PackSlice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let one pack's tokens look at each other: queries ``[h·e, n]``, keys and values ``[k·e, n]`` → ``[h·e, A]``."""
        n_heads, n_key_heads, e = self.heads
        q = q[:, pack.queries].view(n_heads, e, -1)
        k, v = (self._per_query_head(x[:, pack.keys].view(n_key_heads, e, -1), None) for x in (k, v))
        p = torch.baddbmm(pack.mask, q.mT, k).softmax(-1)
        return torch.bmm(v, p.mT).view(n_heads * e, -1)

    def _per_query_head(self, new: Tensor, past: Tensor | None) -> Tensor:
        """Give every query head its keys or values: ``[B·k, e, S]`` behind *past* → ``[B·h, e, M]``."""
        h, k, _ = self.heads
        if past is None and h == k:
            return new
        # [B·k, g, e, S]: heads of one group are neighbours
        repeated = new[:, None].expand(-1, h // k, -1, -1)
        return (repeated if past is None else torch.cat([past, repeated], 3)).flatten(0, 1)

    def _sum_over_group(self, grad: Tensor) -> Tensor:
        """Sum the gradients of the query heads, ``[B·h, e, S]``, over those that share a key head: ``[B·k, e, S]``."""
        h, k, e = self.heads
        return grad if h == k else grad.view(-1, h // k, e, grad.shape[-1]).sum(1)


class _FusedFunction(torch.autograd.Function):
    """All blocks and the final norm as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, fused: FusedLlamaBlocks) -> Tensor:
        slots, kept = fused.all_tokens.slots, []
        x = states.flatten(0, 1)
        # [B, S, d] → [d, n]
        x = (x if slots is None else x[slots.slot_of_token]).t().contiguous()
        keep = ctx.needs_input_grad[0]
        for block, past, queries in zip(fused.blocks, fused.past, fused.queries_by_block(), strict=True):
            x, needed = fused.block_forward(block, past, queries, x, keep=keep)
            kept.append(needed)
        out, r = (x, x) if fused.final_norm is None else fused.final_norm(x)
        ctx.fused, ctx.kept, ctx.last, ctx.shape = fused, kept, (x, r), states.shape
        return out.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        fused, (x, r), slots = ctx.fused, ctx.last, ctx.fused.all_tokens.slots
        grad = grads[0].t().contiguous()
        grad = grad if fused.final_norm is None else fused.final_norm.backward_without_scale(x, r, grad).mul_(r)
        for block, kept, queries in reversed(list(zip(fused.blocks, ctx.kept, fused.queries_by_block(), strict=True))):
            grad = fused.block_backward(block, kept, queries, grad)
        entering = grad.t()
        # padding that was left out has no influence
        if slots is not None:
            entering = entering.new_zeros(len(slots.occupied), len(grad)).index_copy_(0, slots.slot_of_token, entering)
        return entering.reshape(ctx.shape), None


def _round_up(flags: Tensor, tokens: Tensor) -> Tensor:
    """Set more of ``flags [N]``, where *tokens* is True, until there are as many as :func:`matmul.best_rows` says."""
    count = int(flags.sum())
    free = (tokens & ~flags).nonzero()[: matmul.best_rows(count) - count, 0]
    return flags.index_fill(0, free, True)


def _per_query_head(past: Tensor, g: int) -> Tensor:
    """Lay keys or values of reused tokens out as attention takes them: ``[B, k, P, e]`` → ``[B·k, g, e, P]``."""
    return past.flatten(0, 1).mT.contiguous()[:, None].expand(-1, g, -1, -1)
