"""Resuming above a block: what lies below it and before a token is computed once, the rest as often as needed.

An editor that tries a change of one block's output at some tokens leaves alone, by causality,

* every block below, for all tokens;
* in the blocks above, every token before the first one that changes: only its attention keys and values are still looked at.

:func:`remainder_after` computes both once and returns what remains: :class:`Remainder`. :class:`UpperBlocks` runs the blocks above
on the remaining tokens, and :class:`ReadPositions` only as far as given tokens of the last block need. Results are those of a whole
forward pass up to rounding. See docs/methods/forward.md, with the counts. ("Keys" are those of attention here, not those of the
editors.)

Shape legend: ``B`` packs (``prefix_tree.py``), ``N`` tokens of a pack, ``P`` of them reused (their attention keys and values are
kept), ``S`` of them computed, ``k`` positions that are read, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from raysweep.models import hooks
from raysweep.models.forward import blocks, fused, matmul, prefix_tree
from raysweep.models.forward.given import Given, PastKeysValues
from raysweep.models.forward.token_grid import Pick
from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class Remainder:
    """What remains to be computed when only some tokens of what enters a block may change.

    Attributes:
        upper: the blocks to run again.
        states: ``[B, S, d]`` what enters them at the remaining tokens.
        column_of: ``[B, N]`` where a token of the packs is among the remaining ones, -1 where it is not.
        token_of: ``[B, S]`` which token of its pack each of the remaining ones is (padding repeats others).
    """

    upper: UpperBlocks
    states: Tensor
    column_of: Tensor
    token_of: Tensor

    def select(self, tensor: Tensor) -> Tensor:
        """Pick the remaining tokens: ``[B, N, …]`` → ``[B, S, …]``."""
        return _take(tensor, self.token_of)

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return the normed final states ``[B, S, d]`` when what enters the upper blocks is *states*; differentiable."""
        return self.upper.hidden(lm, states)


def remainder_after(
    lm: LanguageModel, packs: prefix_tree.PackedRows, change: Tensor, *, first: int, fill: bool = False
) -> Remainder:
    """Compute once, without gradient, everything that no change of what enters block *first* can reach.

    Call it inside a :func:`torch.no_grad` block. Its pass through the blocks below *first* also fills captures open
    around it.

    Args:
        lm: the model.
        packs: the rows.
        change: ``[B, N]`` True where what enters block *first* may change; whatever looks at those tokens remains too.
        first: a block, or the number of blocks: then only the final norm remains.
        fill: fill up the reused tokens, and the computed ones by at least one, to the size of their bucket (:func:`bucket`).
    """
    block, last = lm.layout.block, max(first - 1, 0)
    # what enters a block that is not run is read where it leaves the block before
    entry: tuple[str, hooks.Side] = (block.format(first), "input") if last >= first else (block.format(last), "output")
    with hooks.capture(lm, [entry]) as captured:
        blocks.run_packs(lm, packs, last=last)
    # a token remains if it looks at one that changes: [B, N]
    remains = (packs.visible & change[:, None, :]).any(2)
    if not lm.layout.shares_prefixes:
        # what goes from token to token is more than keys and values, so rows are run whole
        remains = torch.ones_like(remains)
    # packs keep different numbers of tokens: columns [B, P] and [B, S], shorter packs filled up, and which are no filling
    reused, reused_real = _columns_where(~remains, bucket if fill else None)
    rest, rest_real = _columns_where(remains, (lambda count: bucket(count + 1)) if fill else None)
    cache, reused_positions, own = None, None, _take(packs.positions, rest)
    if reused.shape[1] and first < lm.n_blocks:
        # one pass of the upper blocks over the tokens that stay, for their keys and values
        store, reused_positions = DynamicCache(), _take(packs.positions, reused)
        visible = _visible_between(packs.visible, reused, reused, reused_real) | _diagonal(reused)
        mask = prefix_tree.attention_mask(lm, visible, reused_positions, reused_positions)
        entering = _take(captured[entry], reused)
        blocks.run(lm, states=entering, mask=mask, first=first, positions=reused_positions, cache=store)
        cache = Cache(layers=[_FrozenLayer(layer, reused.shape[1]) for layer in store.layers])
    else:
        reused, reused_real = reused[:, :0], reused_real[:, :0]
    # whom the remaining tokens look at: the reused ones first, then each other, [B, S, P + S]
    among = _visible_between(packs.visible, rest, rest, rest_real) | _diagonal(rest)
    visible = torch.cat([_visible_between(packs.visible, rest, reused, reused_real), among], dim=2)
    # the inverse of rest: node → column, which is how many remain before it
    column_of = (remains.cumsum(1) - 1).masked_fill(~remains, -1)
    # a single pack has no filling but what makes its products faster, which is not to be left out
    real = rest_real if len(rest) > 1 else None
    upper = UpperBlocks.prepare(lm, first, own, visible, cache, reused_positions, real)
    return Remainder(upper, _take(captured[entry], rest), column_of, rest)


@dataclass(frozen=True, slots=True)
class UpperBlocks:
    """The blocks from *first* on, to be run again and again on tokens that stay where they are.

    Attributes:
        first: a block, or the number of blocks: then only the final norm remains.
        positions: ``[B, S]``.
        mask: added to attention scores, of the ``P`` reused tokens first, then of the ``S`` own ones.
        cache: keys and values of the reused tokens; None if there are none.
        fused: the same blocks in few operations, used as long as nothing is hooked or replaced; None if the model doesn't allow it.
    """

    first: int
    positions: Tensor
    mask: prefix_tree.AttentionMask
    cache: Cache | None
    fused: fused.FusedBlocks | None

    @classmethod
    def prepare(
        cls,
        lm: LanguageModel,
        first: int,
        positions: Tensor,
        visible: Tensor,
        cache: Cache | None = None,
        reused: Tensor | None = None,
        real: Tensor | None = None,
    ) -> UpperBlocks:
        """Prepare for tokens that stay where they are.

        Args:
            lm: the model.
            first: the first block to run.
            positions: ``[B, S]`` of the tokens.
            visible: ``[B, S, P + S]`` True where a token (second axis) looks at another (third).
            cache: keys and values of the reused tokens.
            reused: ``[B, P]`` their positions.
            real: ``[B, S]`` False at padding; None: not told apart.
        """
        everywhere = positions if reused is None else torch.cat([reused, positions], dim=1)
        mask, upper = prefix_tree.attention_mask(lm, visible, positions, everywhere), None
        if isinstance(mask, Tensor) and fused.supports(lm, first):
            past: list[PastKeysValues | None] = [None] * (lm.n_blocks - first)
            if cache is not None:
                past = [(layer.keys, layer.values) for layer in cache.layers[first:]]
            upper = fused.prepare(lm, Given(first, positions, mask, past, real))
        return cls(first, positions, mask, cache, upper)

    def read_at(self, rows: Tensor, columns: Tensor, *, without_gradient: bool = False) -> ReadPositions:
        """Prepare to read the final states at ``rows [k]``, ``columns [k]`` only: the last block computes no others.

        Args:
            rows: packs, ``[k]``; on the host, if they are known there, so that the device need not be waited for.
            columns: tokens of those packs, ``[k]``; a position may be named twice.
            without_gradient: promise that no gradient is asked for; attention then goes pack by pack, without padding.
        """
        if self.fused is None:
            # indices of every later pass, which are not to be uploaded in each
            return ReadPositions(self, rows.to(self.positions.device), columns.to(self.positions.device))
        narrowed, token = fused.read_at(
            self.fused, self.positions.shape, rows, columns, without_gradient=without_gradient
        )
        return ReadPositions(replace(self, fused=narrowed), rows, columns, token)

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return the normed final states ``[B, S, d]`` when what enters block *first* is *states*; differentiable.

        Where padding is told from tokens, it may come out as zero.
        """
        # hooked or replaced since: the ordinary modules see it, the fused ones would not
        if self.fused is not None and self.fused.is_unchanged():
            return self.fused.to_grid(self.fused(states)).reshape(states.shape)
        return blocks.run(
            lm, states=states, mask=self.mask, first=self.first, positions=self.positions, cache=self.cache
        )


@dataclass(frozen=True, slots=True)
class ReadPositions:
    """Final states at some positions.

    Attributes:
        upper: the blocks to run.
        rows, columns: ``[k]`` the positions.
        token: which of the tokens that leave the fused blocks each of them is; None if there are no fused blocks.
    """

    upper: UpperBlocks
    rows: Tensor
    columns: Tensor
    token: Pick | None = None

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return the normed final states ``[k, d]`` when what enters the upper blocks is ``states [B, S, d]``; differentiable."""
        fused_blocks = self.upper.fused
        if self.token is None or fused_blocks is None or not fused_blocks.is_unchanged():
            return self.upper.hidden(lm, states)[self.rows, self.columns]
        return self.token.take(fused_blocks(states))


def packed_hidden_at(lm: LanguageModel, packs: prefix_tree.PackedRows, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the normed final states ``[k, d]`` of *packs* at ``rows [k]``, ``columns [k]``. Call it without gradient."""
    upper = UpperBlocks.prepare(lm, 0, packs.positions, packs.visible, real=packs.real)
    if upper.fused is None:
        return blocks.run_packs(lm, packs)[rows, columns]
    states = fused.entering(lm, packs.ids, packs.positions)
    return upper.read_at(rows, columns, without_gradient=True).hidden(lm, states)


def last_block_of(lm: LanguageModel, modules: Sequence[str]) -> int | None:
    """Return the last block that holds one of *modules* (dotted names); None if one lies outside of the blocks."""
    prefix = f"{lm.layout.blocks}."
    if not all(name.startswith(prefix) for name in modules):
        return None
    return max(int(name.removeprefix(prefix).partition(".")[0]) for name in modules)


class _FrozenLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of earlier tokens (None in blocks that are not run); new ones are joined to them but never stored."""

    def __init__(self, filled: DynamicLayer, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = filled.keys, filled.values, length
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


def bucket(count: int) -> int:
    """Return the size to which so many tokens are filled up where sizes shall be few: at most 16, or a quarter, more.

    >>> [bucket(n) for n in (0, 1, 16, 17, 100, 130)]
    [0, 16, 16, 32, 112, 160]
    """
    step = max(16, 1 << max(count.bit_length() - 3, 0))
    return -(-count // step) * step


def _columns_where(flags: Tensor, size: Callable[[int], int] | None = None) -> tuple[Tensor, Tensor]:
    """Return the columns at which ``flags [B, N]`` is True, in order, ``[B, n]``, and which of them are no padding.

    *size* says how many columns to fill up to; None: as many as products like.
    """
    count = flags.sum(1)
    most = int(count.max())
    width = matmul.best_rows(most, flags.device) if size is None else size(most)
    # a stable sort keeps the columns in order; what follows the flagged ones pads the shorter packs with other columns
    order = flags.int().argsort(dim=1, descending=True, stable=True)
    if size is not None:
        # there may be fewer columns than that
        order = order.repeat(1, -(-width // order.shape[1]))
    order = order[:, :width]
    return order, torch.arange(order.shape[1], device=order.device) < count[:, None]


def _take(tensor: Tensor, columns: Tensor) -> Tensor:
    """Pick ``columns [B, n]`` of ``[B, N, …]``."""
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], columns]


def _visible_between(visible: Tensor, queries: Tensor, keys: Tensor, real: Tensor) -> Tensor:
    """Return ``[B, n, m]``: which columns *queries* ``[B, n]`` look at which columns *keys* ``[B, m]`` (where those are *real*)."""
    # [B, n, N]: the rows of the chosen queries, then the columns of the chosen keys
    rows = _take(visible, queries)
    return rows.gather(2, keys[:, None, :].expand(-1, queries.shape[1], -1)) & real[:, None, :]


def _diagonal(columns: Tensor) -> Tensor:
    """Return ``[n, n]`` True on the diagonal: even padding looks at something, or its soft-max would be 0 / 0."""
    return torch.eye(columns.shape[1], dtype=torch.bool, device=columns.device)
