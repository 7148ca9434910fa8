"""The upper blocks of Llama-like models with few operations, for steps that are repeated many times on few tokens.

With forty tokens the modules of transformers spend as long between the matrix products as in them. Here a block is written out
by hand, forward and backward: RMS norm, grouped-query attention with rotary positions, RMS norm, gated MLP; then the final norm.
Only what enters the blocks has a gradient; weights are constants. Hooks and modules in place of linear maps are not seen, so
:func:`fit` refuses models that have any; everything else goes the ordinary way.

States are held with their tokens side by side, ``[w, n]``: every product is then ``W x``, the order that several threads share best
(:mod:`raysweep.models.forward.matmul`), and heads are rows, so a single pack goes through attention without being rearranged.

Shape legend: ``B`` packs, ``S`` places that are computed, ``A`` of them that ask, ``P`` reused ones, ``M = P + S``, ``h`` query
heads, ``k`` key heads, ``g = h / k``, ``e`` width of a head, ``n ≤ B·S`` tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.models import attention
from raysweep.models.forward import matmul
from raysweep.models.lm import LanguageModel

_OF = "transformers.models.{0}.modeling_{0}"
KNOWN = {  # exactly this mathematics; another library's class of the same name is none of them
    (_OF.format("llama"), "LlamaDecoderLayer"),
    (_OF.format("mistral"), "MistralDecoderLayer"),
    (_OF.format("qwen2"), "Qwen2DecoderLayer"),
}

Past = tuple[Tensor, Tensor]  # keys and values [B, k, P, e]
Turn = tuple[Tensor, Tensor]  # cos and sin [e/2, n]


def fit(lm: LanguageModel, first: int, end: int | None = None) -> bool:
    """Tell whether blocks *first* … *end* (left out; None: all) are what :class:`Climb` computes.

    That is: of known kinds, fp32, eval mode, one window for all, whole heads rotated, nothing hooked, replaced or trained.
    """
    blocks = [lm.part(lm.layout.block.format(i)) for i in range(first, lm.n_blocks if end is None else end)]
    if not blocks or lm.dtype != torch.float32 or getattr(lm.module.config, "hidden_act", "") != "silu":
        return False
    final: Any = lm.part(lm.layout.norm)
    alike = all(_kind(b) in KNOWN and type(b.post_attention_layernorm) is type(final) for b in blocks)
    if not alike or len(set(attention.windows(lm.module.config))) > 1:
        return False
    return all(_linear(b) and _rotated(lm, b) for b in blocks) and Seen.of(lm, first, end).same()


def _kind(block: nn.Module) -> tuple[str, str]:
    return type(block).__module__, type(block).__name__


def _rotated(lm: LanguageModel, block: Any) -> bool:
    """Tell whether scores are divided by ``√e`` and all ``e`` entries of a head are rotated."""
    body: Any = lm.part(lm.layout.body)
    width = block.self_attn.head_dim
    return bool(block.self_attn.scaling == width**-0.5 and 2 * len(body.rotary_emb.inv_freq) == width)


def _linear(block: nn.Module) -> bool:
    weights: list[tuple[nn.Module, Any]] = [(m, getattr(m, "weight", None)) for m in block.modules()]
    maps = [m for m, weight in weights if weight is not None and weight.dim() == 2]
    return len(maps) == 7 and all(type(m) is nn.Linear for m in maps)


@dataclass(frozen=True, slots=True)
class Seen:
    """Modules and parameters as they were, to notice cheaply what has been hooked, replaced or set to be trained since.

    Attributes:
        modules: all of them.
        children: (register, name, module) of what each holds.
        parameters: (register, name, parameter, its address).
    """

    modules: tuple[nn.Module, ...]
    children: tuple[tuple[Mapping[str, Any], str, Any], ...]
    parameters: tuple[tuple[Mapping[str, Any], str, Tensor, int], ...]

    @classmethod
    def of(cls, lm: LanguageModel, first: int, end: int | None = None) -> Seen:
        """Look at blocks *first* … *end* (left out), or to the last one and the final norm."""
        owner, until = lm.part(lm.layout.blocks), lm.n_blocks if end is None else end
        blocks = [(owner._modules, str(i), owner._modules[str(i)]) for i in range(first, until)]
        roots = [*(block for *_, block in blocks), *([lm.part(lm.layout.norm)] if end is None else [])]
        modules = tuple(m for root in roots for m in root.modules())  # type: ignore[union-attr]
        children = [(m._modules, name, child) for m in modules for name, child in m._modules.items()]
        parameters = [
            (m._parameters, n, p, p.data_ptr()) for m in modules for n, p in m._parameters.items() if p is not None
        ]
        return cls(modules, (*blocks, *children), tuple(parameters))

    def same(self) -> bool:
        """Tell whether nothing has changed but numbers, and nothing is hooked, in training mode or trained."""
        if any(m._forward_hooks or m._forward_pre_hooks or m.training for m in self.modules):
            return False
        if any(register.get(name) is not child for register, name, child in self.children):
            return False
        held = ((register.get(name), p, at) for register, name, p, at in self.parameters)
        return all(now is p and not p.requires_grad and p.data_ptr() == at for now, p, at in held)


class Map(NamedTuple):
    """A linear map. Attributes: weight ``[d_out, d_in]``; back, the same ``[d_in, d_out]``; bias ``[d_out, 1]`` or None."""

    weight: Tensor
    back: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: Any) -> Map:
        """Take it from a module."""
        weight, bias = linear.weight.detach(), linear.bias
        return cls(weight, weight.t(), None if bias is None else bias.detach()[:, None])

    def __call__(self, x: Tensor) -> Tensor:
        """``[d_in, n]`` → ``[d_out, n]``."""
        return torch.mm(self.weight, x) if self.bias is None else torch.addmm(self.bias, self.weight, x)

    def onto(self, start: Tensor, x: Tensor) -> Tensor:
        """Return ``start + W x + b``."""
        total = torch.addmm(start, self.weight, x)
        return total if self.bias is None else total.add_(self.bias)


class Norm(NamedTuple):
    """An RMS norm. Attributes: weight ``[d, 1]``; eps ``[1, 1]``; mean ``[1, d]``, every entry 1 / d."""

    weight: Tensor
    eps: Tensor
    mean: Tensor

    @classmethod
    def of(cls, norm: Any) -> Norm:
        """Take it from a module."""
        weight = norm.weight.detach()
        eps, mean = weight.new_full((1, 1), norm.variance_epsilon), weight.new_full((1, len(weight)), 1 / len(weight))
        return cls(weight[:, None], eps, mean)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x r w`` and ``r [1, n] = (mean x² + ε)^-½``."""
        r = torch.addmm(self.eps, self.mean, x * x).rsqrt_()
        return (x * r).mul_(self.weight), r

    def down(self, x: Tensor, r: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of the input but for a factor ``r``: ``gw − x r² mean(gw x)``."""
        weighted = grad * self.weight
        level = torch.mm(self.mean, weighted * x).mul_(r).mul_(r)
        return torch.addcmul(weighted, x, level, value=-1)


class Block(NamedTuple):
    """The parameters of a block."""

    before: Norm
    q: Map
    k: Map
    v: Map
    o: Map
    after: Norm
    gate: Map
    up: Map
    down: Map

    @classmethod
    def of(cls, module: Any) -> Block:
        """Take them from a module of :data:`KNOWN`."""
        attention, mlp = module.self_attn, module.mlp
        return cls(
            before=Norm.of(module.input_layernorm),
            q=Map.of(attention.q_proj),
            k=Map.of(attention.k_proj),
            v=Map.of(attention.v_proj),
            o=Map.of(attention.o_proj),
            after=Norm.of(module.post_attention_layernorm),
            gate=Map.of(mlp.gate_proj),
            up=Map.of(mlp.up_proj),
            down=Map.of(mlp.down_proj),
        )


class Laid(NamedTuple):
    """Where tokens lie among places, when some places are left over.

    Attributes:
        slots: ``[n]`` the place of each token.
        fill: ``[B·A]`` which token lies in each place; where none does, any.
        used: ``[B·A]`` 1 where one does, else 0.
    """

    slots: Tensor
    fill: Tensor
    used: Tensor

    @classmethod
    def of(cls, used: Tensor, dtype: torch.dtype) -> Laid | None:
        """Number the tokens at ``used [B·A]``; None if there is one in every place."""
        if bool(used.all()):
            return None
        return cls(used.nonzero()[:, 0], (used.cumsum(0) - 1).clamp_(min=0), used.to(dtype))


class Pack(NamedTuple):
    """One pack, for attention without its padding: which tokens ask, which are seen, ``mask [A, S]``."""

    asking: slice
    seen: slice
    mask: Tensor


@dataclass(frozen=True, slots=True)
class View:
    """Who asks in a block. Between attentions only these ``n`` tokens are computed, without the padding of packs.

    Attributes:
        turn: of the rotary positions.
        scaled: the same, times ``e^-½``.
        mask: ``[1 or B·h, A, M]`` added to attention scores.
        places: ``(B, A)``.
        laid: where the tokens lie among the places; None: one in each, in order.
        pick: ``[n]`` which of the tokens that enter the block they are; None: all, in order.
        packs: for attention pack by pack; empty: all at once.
    """

    turn: Turn
    scaled: Turn
    mask: Tensor
    places: tuple[int, int]
    laid: Laid | None = None
    pick: Tensor | None = None
    packs: tuple[Pack, ...] = ()

    def used(self) -> Tensor:
        """Return ``[B, A]``, whether a token lies there."""
        found = (
            torch.ones(self.places, device=self.mask.device) if self.laid is None else self.laid.used.view(self.places)
        )
        return found.bool()

    def apart(self, seen: Tensor) -> tuple[Pack, ...]:
        """Take the packs apart, given where the tokens that are seen lie, ``[B, M]``."""
        packs, asked, had, each = [], 0, 0, len(self.mask) // self.places[0]
        for i, (here, there) in enumerate(zip(self.used(), seen, strict=True)):
            a, s = int(here.sum()), int(there.sum())
            if a:
                mask = self.mask[i * each][here][:, there]
                packs.append(Pack(slice(asked, asked + a), slice(had, had + s), mask))
            asked, had = asked + a, had + s
        return tuple(packs)

    def of(self, x: Tensor) -> Tensor:
        """Pick the asking ones of the tokens that enter."""
        return x if self.pick is None else x.index_select(1, self.pick)

    def back(self, grad: Tensor, n: int) -> Tensor:
        """Return the gradient of the ``n`` tokens that enter, given that of :meth:`of`."""
        return grad if self.pick is None else grad.new_zeros(len(grad), n).index_copy_(1, self.pick, grad)

    def spread(self, x: Tensor, e: int, *, blank: bool = False) -> Tensor:
        """Lay tokens ``[heads·e, n]`` out for attention, ``[B·heads, e, A]``; *blank*: zero where there is none, else anything."""
        b, a = self.places
        if self.laid is not None:
            x = x.index_select(1, self.laid.fill)
            x = x.mul_(self.laid.used) if blank else x
        if b == 1:
            return x.view(-1, e, a)
        return x.view(-1, e, b, a).permute(2, 0, 1, 3).reshape(-1, e, a)

    def gather(self, x: Tensor) -> Tensor:
        """Take the tokens back: ``[B·heads, e, A]`` → ``[heads·e, n]``."""
        b, a = self.places
        x = x.view(-1, a) if b == 1 else x.view(b, -1, a).transpose(0, 1).reshape(-1, b * a)
        return x if self.laid is None else x.index_select(1, self.laid.slots)


@dataclass(frozen=True, slots=True)
class Climb:
    """Blocks of a model, up to the final norm or before, on given positions, with given keys and values of earlier tokens.

    Attributes:
        blocks: in order.
        final: the norm after the last block; None: that is not among them.
        past: keys and values of each block, ``[B·k, g, e, P]``; None without reused tokens.
        everyone: all computed tokens ask.
        last: who asks in the last block.
        heads: ``(h, k, e)``.
        seen: the model as it was.
    """

    blocks: Sequence[Block]
    final: Norm | None
    past: Sequence[Past | None]
    everyone: View
    last: View
    heads: tuple[int, int, int]
    seen: Seen

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        first: int,
        positions: Tensor,
        mask: Tensor,
        past: Sequence[Past | None],
        real: Tensor | None = None,
        end: int | None = None,
    ) -> Climb:
        """Prepare for ``positions [B, S]`` and the additive ``mask [B, 1, S, M]``; *past* has one entry per block.

        Blocks *first* … *end* (left out); None: to the last one and the final norm.
        ``real [B, S]`` is False at padding, which is then left out, but for what makes products go faster; None: nothing is.
        """
        config: Any = lm.module.config
        h, k = config.num_attention_heads, config.num_key_value_heads
        e = getattr(config, "head_dim", None) or config.hidden_size // h
        body: Any = lm.part(lm.layout.body)
        both = body.rotary_emb(lm.weight(f"{lm.layout.embed}.weight"), positions)
        b, s, m = len(mask), *mask.shape[2:]
        laid = None if real is None else Laid.of(_more(real.flatten(), torch.ones_like(real).flatten()), mask.dtype)
        cos, sin = (x[..., : e // 2].flatten(0, 1).t() for x in both)  # halves are equal
        turn = (cos, sin) if laid is None else (cos[:, laid.slots], sin[:, laid.slots])
        wide = mask[:, 0] if b == 1 else mask.expand(b, h, s, m).reshape(b * h, s, m)
        everyone = View(_even(turn), _even(turn, e**-0.5), wide, (b, s), laid)
        until = lm.n_blocks if end is None else end
        blocks = [Block.of(lm.part(lm.layout.block.format(i))) for i in range(first, until)]
        ready = [None if old is None else (_ahead(old[0], h // k), _ahead(old[1], h // k)) for old in past]
        final = Norm.of(lm.part(lm.layout.norm)) if end is None else None
        return cls(blocks, final, ready, everyone, everyone, (h, k, e), Seen.of(lm, first, end))

    def wide(self, flags: Tensor) -> Tensor:
        """Add tokens to those at ``flags [B, S]`` until products go as fast as they can."""
        laid = self.everyone.laid
        tokens = torch.ones_like(flags).flatten() if laid is None else laid.used.bool()
        return _more(flags.flatten(), tokens).view(flags.shape) if int(flags.sum()) > 1 else flags

    def asking(self, flags: Tensor) -> Climb:
        """Return the way on which only the tokens at ``flags [B, S]`` leave the last block, in the order of their places."""
        all_, b = self.everyone, self.everyone.places[0]
        count, m = flags.sum(1), all_.mask.shape[-1]
        columns = flags.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        used = torch.arange(columns.shape[1], device=flags.device) < count[:, None]
        laid, among = Laid.of(used.flatten(), all_.mask.dtype), flags.flatten()
        rows = columns.repeat_interleave(len(all_.mask) // b, 0)[..., None].expand(-1, -1, m)
        pick = (among if all_.laid is None else among[all_.laid.slots]).nonzero()[:, 0]
        turn, scaled = ((cos[:, pick], sin[:, pick]) for cos, sin in (all_.turn, all_.scaled))
        last = View(turn, scaled, all_.mask.gather(1, rows), (b, columns.shape[1]), laid, pick)
        return replace(self, last=last)

    def apart(self) -> Climb:
        """Return the way on which, without gradient, attention goes pack by pack: nothing is laid out, no padding is seen."""
        if len(self.everyone.used()) == 1 or any(old is not None for old in self.past):
            return self
        seen = self.everyone.used()
        last, everyone = (replace(view, packs=view.apart(seen)) for view in (self.last, self.everyone))
        return replace(self, last=last, everyone=everyone)

    def filled(self, tokens: Tensor) -> Tensor:
        """Put ``tokens [n, d]`` of :attr:`everyone` in their places ``[B·S, d]``; zero where there is none."""
        laid = self.everyone.laid
        return (
            tokens
            if laid is None
            else tokens.new_zeros(len(laid.used), tokens.shape[1]).index_copy(0, laid.slots, tokens)
        )

    def views(self) -> Iterator[View]:
        """Give who asks in each block."""
        yield from (self.everyone for _ in self.blocks[1:])
        yield self.last

    def same(self) -> bool:
        """Tell whether the model is still what this was made from, but for numbers."""
        return self.seen.same()

    def __call__(self, states: Tensor) -> Tensor:
        """Return what comes out, ``[n, d]``, given what enters the first block, ``[B, S, d]``; differentiable."""
        found: Tensor = _Function.apply(states, self)  # type: ignore[no-untyped-call]
        return found

    def up(
        self, block: Block, past: Past | None, view: View, x: Tensor, *, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return a block's output at the asking tokens and, to *keep*, what its gradient needs."""
        turn, e = self.everyone, self.heads[2]
        normed, r1 = block.before(x)
        q, key = _turned(block.q(view.of(normed)), view.scaled), _turned(block.k(normed), turn.turn)
        value = block.v(normed)
        if not keep and view.packs:
            mixed = torch.cat([self._within(pack, q, key, value) for pack in view.packs], 1)
        else:
            q, key, value = view.spread(q, e), turn.spread(key, e), turn.spread(value, e)
            key, value = self._joined(key, past and past[0]), self._joined(value, past and past[1])
            p = torch.baddbmm(view.mask, q.mT, key).softmax(-1)
            mixed = view.gather(torch.bmm(value, p.mT))
        y = block.o.onto(view.of(x), mixed)
        normed, r2 = block.after(y)
        gate, up = block.gate(normed), block.up(normed)
        if not keep:
            return block.down.onto(y, F.silu(gate, inplace=True).mul_(up)), ()
        gated = F.silu(gate)
        z = block.down.onto(y, gated * up)
        return z, (x, r1, q, key, value, p, y, r2, gate, gated, up)

    def down(self, block: Block, kept: tuple[Tensor, ...], view: View, grad: Tensor) -> Tensor:
        """Return the gradient of a block's input ``[d, n]``, given that of its output at the asking tokens."""
        turn, e = self.everyone, self.heads[2]
        x, r1, q, key, value, p, y, r2, gate, gated, up = kept
        inner = torch.mm(block.down.back, grad)
        d_normed = torch.mm(block.gate.back, torch.ops.aten.silu_backward(inner * up, gate))
        d_normed = torch.addmm(d_normed, block.up.back, inner.mul_(gated))
        grad = torch.addcmul(grad, block.after.down(y, r2, d_normed), r2)
        d_mixed = view.spread(torch.mm(block.o.back, grad), e, blank=True)
        d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(d_mixed.mT, value), p, -1, p.dtype)
        new = key.shape[-1] - turn.places[1]
        d_v = turn.gather(self._added(torch.bmm(d_mixed, p[:, :, new:])))
        d_k = _turned_back(turn.gather(self._added(torch.bmm(q, d_scores[:, :, new:]))), turn.turn)
        d_q = _turned_back(view.gather(torch.bmm(key, d_scores.mT)), view.scaled)
        n = x.shape[1]
        d_normed = torch.addmm(view.back(torch.mm(block.q.back, d_q), n), block.k.back, d_k)
        d_normed = torch.addmm(d_normed, block.v.back, d_v)
        return torch.addcmul(view.back(grad, n), block.before.down(x, r1, d_normed), r1)

    def _within(self, pack: Pack, q: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let a pack's tokens look at each other: ``[h·e, n]`` and ``[k·e, n]`` → ``[h·e, A]``."""
        h, k, e = self.heads
        q = q[:, pack.asking].view(h, e, -1)
        key, value = (self._joined(x[:, pack.seen].view(k, e, -1), None) for x in (key, value))
        p = torch.baddbmm(pack.mask, q.mT, key).softmax(-1)
        return torch.bmm(value, p.mT).view(h * e, -1)

    def _joined(self, new: Tensor, past: Tensor | None) -> Tensor:
        """Give every query head its keys or values: ``[B·k, e, S]`` after *past* → ``[B·h, e, M]``."""
        h, k, _ = self.heads
        if past is None and h == k:
            return new
        wide = new[:, None].expand(-1, h // k, -1, -1)
        return (wide if past is None else torch.cat([past, wide], 3)).flatten(0, 1)

    def _added(self, grad: Tensor) -> Tensor:
        """Return the gradient of the keys or values, ``[B·k, e, S]``, given those of every query head ``[B·h, e, S]``."""
        h, k, e = self.heads
        return grad if h == k else grad.view(-1, h // k, e, grad.shape[-1]).sum(1)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, climb: Climb) -> Tensor:
        laid, kept = climb.everyone.laid, []
        x = states.flatten(0, 1)
        x = (x if laid is None else x[laid.slots]).t().contiguous()
        keep = ctx.needs_input_grad[0]
        for block, past, view in zip(climb.blocks, climb.past, climb.views(), strict=True):
            x, needed = climb.up(block, past, view, x, keep=keep)
            kept.append(needed)
        out, r = (x, x) if climb.final is None else climb.final(x)
        ctx.climb, ctx.kept, ctx.left, ctx.shape = climb, kept, (x, r), states.shape
        return out.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        climb, (x, r), laid = ctx.climb, ctx.left, ctx.climb.everyone.laid
        grad = grads[0].t().contiguous()
        grad = grad if climb.final is None else climb.final.down(x, r, grad).mul_(r)
        for block, kept, view in reversed(list(zip(climb.blocks, ctx.kept, climb.views(), strict=True))):
            grad = climb.down(block, kept, view, grad)
        found = grad.t()
        if laid is not None:
            found = found.new_zeros(len(laid.used), len(grad)).index_copy_(0, laid.slots, found)
        return found.reshape(ctx.shape), None


def _more(flags: Tensor, among: Tensor) -> Tensor:
    """Set more of ``flags [N]``, where *among* is, until there are as many as products like."""
    count = int(flags.sum())
    free = (among & ~flags).nonzero()[: matmul.height(count) - count, 0]
    return flags.index_fill(0, free, True)


def _even(turn: Turn, factor: float = 1.0) -> Turn:
    return (turn[0] * factor).contiguous(), (turn[1] * factor).contiguous()


def _ahead(old: Tensor, g: int) -> Tensor:
    """``[B, k, P, e]`` → ``[B·k, g, e, P]``, the same for each of the ``g``."""
    return old.flatten(0, 1).mT.contiguous()[:, None].expand(-1, g, -1, -1)


def _turned(x: Tensor, turn: Turn) -> Tensor:
    """Return ``x cos + rot(x) sin`` with ``rot(x₁, x₂) = (−x₂, x₁)``, halves of each head of ``[heads·e, n]``."""
    cos, sin = turn
    parts = x.view(-1, 2, *cos.shape)
    out = parts * cos
    out.select(1, 0).addcmul_(parts.select(1, 1), sin, value=-1)
    out.select(1, 1).addcmul_(parts.select(1, 0), sin)
    return out.view(x.shape)


def _turned_back(grad: Tensor, turn: Turn) -> Tensor:
    """Return the gradient of :func:`_turned`'s input."""
    cos, sin = turn
    parts = grad.view(-1, 2, *cos.shape)
    out = parts * cos
    out.select(1, 0).addcmul_(parts.select(1, 1), sin)
    out.select(1, 1).addcmul_(parts.select(1, 0), sin, value=-1)
    return out.view(grad.shape)
