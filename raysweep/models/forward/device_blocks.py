"""The upper blocks of a model on an accelerator, in any precision: as few launches as torch's own kernels allow.

There every operation costs the host as much as a product of forty tokens costs the device, so what counts is their number
(``benchmarks/launches.py``). What a block computes is said by its layout (:class:`raysweep.models.layout.BlockForm`)::

    u = norm₁(x)              q = turn(W_q u),   k = turn(W_k u),   v = W_v u
    y = x + W_o attention(q, k, v)                                                     grouped-query attention
    w = norm₂(y)  (or u)      z = y + W_down (act(W_gate w) ⊙ W_up w)                  MLP, gated or not

Tokens lie one below the other, ``[n, width]``, those of all packs as one list without padding. While it is short, attention takes
it as one pack, whose mask keeps the packs apart; a long one is laid out by pack. Only what enters the blocks has a gradient.

Shape legend: ``B`` packs, ``S`` slots of a pack, ``A`` of them that ask in the last block, ``P`` reused tokens, ``M = P + S``,
``h`` query heads, ``k`` key heads, ``g = h / k``, ``e`` width of a head, ``n ≤ B·S`` tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raysweep.models import attention
from raysweep.models.forward.device_attention import aligned, attend, mask_of_one_pack
from raysweep.models.forward.device_parts import (
    ACTIVATIONS,
    Activation,
    HeadNorm,
    Maps,
    Norm,
    Rotation,
    activate,
    owners,
)
from raysweep.models.forward.given import Given, PastKeysValues
from raysweep.models.forward.model_guard import ModelGuard
from raysweep.models.forward.token_grid import Grid, Pick
from raysweep.models.layout import BlockForm
from raysweep.models.lm import LanguageModel
from raysweep.models.spread import is_elsewhere

# Entries of a mask up to which all packs go through attention as one: 2048 tokens look at each other.
_ONE_PACK_UP_TO = 2**22


def supports(lm: LanguageModel, first: int, end: int | None = None) -> bool:
    """Tell whether blocks *first* … *end* (exclusive; None: all) are what :class:`DeviceBlocks` computes.

    That is: the layout says what they compute, they are of the class it says, in eval mode, with one window for all,
    nothing hooked, replaced or trained.
    """
    form, config = lm.layout.form, lm.module.config
    numbers = range(first, lm.n_blocks if end is None else end)
    if form is None or not numbers or getattr(config, lm.layout.activation, "") not in ACTIVATIONS:
        return False
    # one mask serves all blocks, so all of them must see equally far back
    if len(set(attention.windows(config, lm.layout))) > 1 or not all(_is_known(lm, form, i) for i in numbers):
        return False
    return ModelGuard.record(lm, first, end).is_unchanged()


def _is_known(lm: LanguageModel, form: BlockForm, number: int) -> bool:
    """Tell whether a block is of the class of *form* and holds the parameters that it names, and no others (adapters, say)."""
    layout, block = lm.layout, lm.part(lm.layout.block.format(number))
    # by full name: a subclass may compute something else from the same parameters
    if class_of(block) != form.block_class or is_elsewhere(block):
        return False
    maps = [lm.part(n.format(number)) for n in (*form.qkv, layout.attn_out, *layout.mlp_in, layout.mlp_out)]
    norms = [lm.part(n.format(number)) for n in (form.attention_norm, form.mlp_norm, *form.head_norms) if n is not None]
    # exact types: the map of an adapter or a quantised one may be a subclass that computes more
    plain = all(type(m) is nn.Linear or type(m).__name__ == "Conv1D" for m in maps)
    alike = all(type(m) is type(lm.part(layout.norm)) for m in norms)
    return plain and alike and owners(block) == {*maps, *norms}


def class_of(block: nn.Module) -> str:
    """Return the full name of a block's class."""
    return f"{type(block).__module__}.{type(block).__qualname__}"


class _Block(NamedTuple):
    """The parameters of a block, in the order in which it uses them."""

    attention_norm: Norm
    qkv: Maps
    head_norm: HeadNorm | None
    scale: float
    o: Maps
    mlp_norm: Norm | None
    mlp_in: Maps
    down: Maps

    @classmethod
    def of(cls, lm: LanguageModel, number: int, heads: tuple[int, int]) -> _Block:
        """Take the parameters of block *number*, which :func:`supports` accepts."""
        form, layout = _form(lm), lm.layout
        norms = [
            None if name is None else Norm.of(lm.part(name.format(number)), form.norm)
            for name in (form.attention_norm, form.mlp_norm, *form.head_norms)
        ]
        first, second, *of_heads = norms
        assert first is not None
        # one weight for all query heads, one for all key heads: [h + k, e]
        of_head = [n.weight.expand(count, -1) for n, count in zip(of_heads, heads, strict=False) if n is not None]
        qkv, o, mlp_in, down = (
            Maps.of(lm, [n.format(number) for n in names])
            for names in (form.qkv, (layout.attn_out,), layout.mlp_in, (layout.mlp_out,))
        )
        # one launch norms queries and keys together: their norms are of one class, with one ε
        head_norm = HeadNorm(torch.cat(of_head), of_heads[0].eps) if of_heads and of_heads[0] is not None else None
        return cls(first, qkv, head_norm, form.scale(lm.part(layout.block.format(number))), o, second, mlp_in, down)


def _form(lm: LanguageModel) -> BlockForm:
    assert lm.layout.form is not None
    return lm.layout.form


class Queries(NamedTuple):
    """The tokens that ask: in the last block, only they leave it.

    Attributes:
        grid: where they lie for attention.
        rotation: to their positions; None: positions are learnt.
        mask: ``[B, 1, A, M]``, added to the attention scores.
        selected: where they lie among the tokens that enter the block, a grid of one pack; None: all.
    """

    grid: Grid
    rotation: Rotation | None
    mask: Tensor
    selected: Grid | None = None

    def take(self, x: Tensor) -> Tensor:
        """Pick them from all tokens, ``[n, …]``."""
        return x if self.selected is None else self.selected.take(x)


@dataclass(frozen=True, slots=True)
class DeviceBlocks:
    """Blocks of a model, up to the final norm or before, on given positions, with given keys and values of earlier tokens.

    Call it with what enters the first block, ``[B, S, d]``; the result is differentiable.

    Attributes:
        blocks: their parameters, in order.
        final_norm: the norm after the last block; None: the model's last block is not among these.
        past: keys and values of the reused tokens in each block, ``[B, P, k, e]`` each; None without reused tokens.
        slots: where the computed tokens lie in the packs.
        token_in_slot: ``[B·S]`` the same on the host: which token; None: as they are numbered.
        everyone: all tokens, as they ask in the blocks before the last; with short lists one pack, ``B = 1``.
        last: the tokens that ask in the last block.
        heads: ``(h, k)``.
        activation: of the MLP.
        guard: the model as it was.
    """

    blocks: Sequence[_Block]
    final_norm: Norm | None
    past: Sequence[PastKeysValues | None]
    slots: Grid
    token_in_slot: tuple[int, ...] | None
    everyone: Queries
    last: Queries
    heads: tuple[int, int]
    activation: Activation
    guard: ModelGuard

    @classmethod
    def prepare(cls, lm: LanguageModel, given: Given) -> DeviceBlocks:
        """Work out what all steps have in common; *lm* is one that :func:`supports` accepts for these blocks.

        The device is waited for if ``given.real`` lies on it.
        """
        form, config, end = _form(lm), lm.module.config, given.end
        h = config.num_attention_heads
        k = getattr(config, "num_key_value_heads", None) or h
        e = getattr(config, "head_dim", None) or config.hidden_size // h
        (b, s), flags = given.positions.shape, None if given.real is None else given.real.tolist()
        slots = Grid((b, s)) if flags is None else Grid.from_flags(flags, given.mask)
        # [B, k, P, e] → [B, P, k, e]: here tokens come before heads
        past = [None if kv is None else (kv[0].transpose(1, 2), kv[1].transpose(1, 2)) for kv in given.past]
        grid, mask = slots, given.mask
        # the one pack's mask has [B·S, B·M] entries, most of which only keep packs apart
        if b > 1 and b * s * b * mask.shape[3] <= _ONE_PACK_UP_TO:
            # [B, P, k, e] → [1, B·P, k, e]
            past = [None if kv is None else (kv[0].flatten(0, 1)[None], kv[1].flatten(0, 1)[None]) for kv in past]
            mask = mask_of_one_pack(mask, slots.slot_of_token)
            grid = Grid((1, mask.shape[2]))
        rotation = None
        if form.angles is not None:
            # [B, S, r/2] → [n, r/2], in the states' dtype as in transformers
            angles = (x.flatten(0, 1) for x in form.angles(lm.part(lm.layout.body), mask, given.positions))
            cos, sin = (x if slots.slot_of_token is None else x.index_select(0, slots.slot_of_token) for x in angles)
            rotation = Rotation.by_angles(cos, sin, e, pairs=form.pairs)
        everyone = Queries(grid, rotation, aligned(mask))
        final_norm = Norm.of(lm.part(lm.layout.norm), form.norm) if end is None else None
        return cls(
            blocks=[_Block.of(lm, i, (h, k)) for i in range(given.first, given.until(lm.n_blocks))],
            final_norm=final_norm,
            past=past,
            slots=slots,
            token_in_slot=None if flags is None else _numbers(flags),
            everyone=everyone,
            last=everyone,
            heads=(h, k),
            activation=ACTIVATIONS[getattr(config, lm.layout.activation)],
            guard=ModelGuard.record(lm, given.first, end),
        )

    def read_at(self, rows: Tensor, columns: Tensor) -> tuple[DeviceBlocks, Pick]:
        """Let only the tokens at ``rows [k]``, ``columns [k]`` leave the last block, which makes keys and values of all.

        The device is waited for if *rows* lies on it.

        Returns:
            The blocks, and which of the tokens that leave them each of the positions is.
        """
        (b, width), device = self.everyone.grid.shape, self.everyone.mask.device
        pairs: list[tuple[int, int]] = list(zip(*torch.stack([rows, columns]).tolist(), strict=True))
        places = [(r, c, token) for (r, c), token in zip(pairs, self.tokens_at(pairs), strict=True)]
        if b == 1:
            # one pack: each token's column is its number
            places = [(0, token, token) for _, _, token in places]
        # each once, pack by pack: the columns of each pack, then filled up with its first
        asked = sorted(set(places))
        by_pack = [[c for pack, c, _ in asked if pack == i] for i in range(b)]
        width = max(len(chosen) for chosen in by_pack)
        flags = [[j < len(chosen) for j in range(width)] for chosen in by_pack]
        filled = [[*chosen, *[0] * (width - len(chosen))] for chosen in by_pack]
        number = {place: i for i, place in enumerate(asked)}
        entering, numbers = self._count(), {t for *_, t in asked}
        selected = Grid.from_flags([[t in numbers for t in range(entering)]], self.everyone.mask)
        last = Queries(
            Grid.from_flags(flags, self.everyone.mask),
            self.everyone.rotation if selected.slot_of_token is None else self._rotation_of(selected.slot_of_token),
            self._mask_of(filled, selected),
            selected,
        )
        return replace(self, last=last), Pick.of([number[p] for p in places], len(asked), device)

    def tokens_at(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """Return which tokens lie at (pack, slot) *places*."""
        slots = [pack * self.slots.shape[1] + slot for pack, slot in places]
        return slots if self.token_in_slot is None else [self.token_in_slot[slot] for slot in slots]

    def _rotation_of(self, tokens: Tensor) -> Rotation | None:
        rotation = self.everyone.rotation
        return None if rotation is None else rotation.select(tokens)

    def _mask_of(self, columns: Sequence[Sequence[int]], selected: Grid) -> Tensor:
        """Return the mask's rows of as many columns of each pack, ``[B, 1, A, M]``; of one pack they are those *selected*."""
        mask = self.everyone.mask
        if len(columns) > 1:
            picked = torch.tensor(columns, device=mask.device)
        elif selected.slot_of_token is None:
            return mask
        else:
            picked = selected.slot_of_token[None]
        return aligned(mask.gather(2, picked[:, None, :, None].expand(-1, -1, -1, mask.shape[3])))

    def _count(self) -> int:
        """Return how many tokens enter."""
        grid = self.slots
        return grid.shape[0] * grid.shape[1] if grid.slot_of_token is None else len(grid.slot_of_token)

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Put ``tokens [n, d]`` into their slots, ``[B·S, d]``; zero where there is none."""
        return self.slots.lay_out_or_zero(tokens)

    def is_unchanged(self) -> bool:
        """Tell whether the model is still what this was made from, but for numbers."""
        return self.guard.is_unchanged()

    def __call__(self, states: Tensor) -> Tensor:
        """Return what comes out at the tokens that ask last, ``[n, d]``, given what enters the first block, ``[B, S, d]``."""
        x = self.run(self.slots.take(states), 0, len(self.blocks))
        return x if self.final_norm is None else self.final_norm(x)

    def run(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Run blocks *begin* … *end* (exclusive), counted from the first of these: what enters, ``[n, d]`` → what leaves."""
        for i in range(begin, end):
            x = self.down(i, *self.until_down(i, x))
        return x

    def down(self, i: int, stream: Tensor, inner: Tensor) -> Tensor:
        """Return what leaves block *i*: its last map of *inner* ``[n, m]``, added to *stream* ``[n, d]``."""
        return self.blocks[i].down.add_to(stream, inner)

    def until_down(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run block *i* on what enters it, ``[n, d]``, up to its last map; return what :meth:`down` takes, of those who ask."""
        block, queries = self.blocks[i], self.last if i == len(self.blocks) - 1 else self.everyone
        u = block.attention_norm(x)
        q, k, v = self._queries_keys_values(block, u, queries)
        mixed = attend(q, k, v, self.past[i], queries.mask, block.scale)
        y = block.o.add_to(queries.take(x), queries.grid.take(mixed))
        w = queries.take(u) if block.mlp_norm is None else block.mlp_norm(y)
        # gate and up maps that were joined are one weight; its height, twice what the last map reads, tells
        gated = len(block.mlp_in.weights) > 1 or block.mlp_in.weights[0].shape[0] > block.down.weights[0].shape[1]
        return y, activate(block.mlp_in(w), self.activation, gated=gated)

    def _queries_keys_values(self, block: _Block, u: Tensor, queries: Queries) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries ``[B, A, h, e]``, keys and values ``[B, S, k, e]``, turned, of ``u [n, d]``."""
        (h, k), everyone = self.heads, self.everyone
        e = block.o.weights[0].shape[1] // h
        if queries.selected is None:
            parts = _heads(block.qkv(u), e)
            if everyone.rotation is None and block.head_norm is None:
                q, keys, values = parts.split_with_sizes([h, k, k], 1)
            else:
                # [n, h + 2k, e]: queries and keys lie side by side, so that both are turned in one launch
                turned, values = parts.split_with_sizes([h + k, k], 1)
                q, keys = _turn(turned, block.head_norm, everyone.rotation).split_with_sizes([h, k], 1)
        else:
            # only those who ask need queries, but everyone's keys and values are looked at
            of_q, of_kv = block.qkv.split(h * e)
            q_norm, k_norm = (None, None) if block.head_norm is None else block.head_norm.split(h)
            q = _turn(_heads(of_q(queries.take(u)), e), q_norm, queries.rotation)
            keys, values = _heads(of_kv(u), e).split_with_sizes([k, k], 1)
            keys = _turn(keys, k_norm, everyone.rotation)
        # [n, heads, e] → [n, heads·e] → [B, slots, heads·e], and below → [B, slots, heads, e]
        grids = (queries.grid.lay_out(q.flatten(1)), *(everyone.grid.lay_out(t.flatten(1)) for t in (keys, values)))
        q, keys, values = (_heads(grid, e) for grid in grids)
        return q, keys, values


def _heads(x: Tensor, e: int) -> Tensor:
    """Show ``[…, heads·e]`` head by head, ``[…, heads, e]`` (a view)."""
    return x.view(*x.shape[:-1], -1, e)


def _turn(x: Tensor, norm: HeadNorm | None, rotation: Rotation | None) -> Tensor:
    """Norm and turn the heads ``[n, heads, e]``, where the family does."""
    x = x if norm is None else norm(x)
    return x if rotation is None else rotation(x)


def _numbers(flags: Sequence[Sequence[bool]]) -> tuple[int, ...]:
    """Number the tokens at *flags*, in order; what is none has the number of the next."""
    numbers, count = [], 0
    for flag in chain(*flags):
        numbers.append(count)
        count += flag
    return tuple(numbers)
