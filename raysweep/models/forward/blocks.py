"""Forward passes over some blocks only: stop early, start late, reuse keys and values of earlier tokens.

In the locate-and-edit family almost all time goes into optimising a vector at one token of one block. Nothing before that
token changes in any block and nothing below that block changes at all; these functions compute just the rest.

Shape legend: ``B`` rows, ``T`` tokens of a padded row, ``P`` reused tokens, ``S`` tokens that are computed, ``d`` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from raysweep.models import attention, hooks
from raysweep.models.forward import llama_fused, matmul, prefix_tree
from raysweep.models.lm import LanguageModel


class _Frozen(DynamicLayer):  # type: ignore[misc]
    """Keys and values of earlier tokens (None in blocks that are not run); new ones are joined to them but never stored."""

    def __init__(self, filled: DynamicLayer, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = filled.keys, filled.values, length
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


@contextmanager
def only_blocks(lm: LanguageModel, first: int, last: int) -> Iterator[nn.ModuleList]:
    """Let the model consist of blocks *first* … *last* (inclusive) inside the block, under their own names; always undone.

    Where the configuration lists a kind of attention for each block, which transformers looks up by counting blocks, it lists those
    of the blocks that are left.
    """
    config: Any = lm.part(lm.layout.body).config
    types = getattr(config, "layer_types", None)
    owner_name, _, leaf = lm.layout.blocks.rpartition(".")
    owner = lm.part(owner_name)
    whole = owner._modules[leaf]
    assert isinstance(whole, nn.ModuleList)
    kept = nn.ModuleList()
    for name, block in list(whole.named_children())[first : last + 1]:
        kept._modules[name] = block  # a stand-in may look its block up while it is run
    kept.training = whole.training
    owner._modules[leaf] = kept
    if types is not None:
        config.layer_types = types[first : last + 1]
    try:
        yield kept
    finally:
        owner._modules[leaf] = whole
        if types is not None:
            config.layer_types = types


def run(
    lm: LanguageModel,
    *,
    ids: Tensor | None = None,
    states: Tensor | None = None,
    mask: prefix_tree.Mask,
    first: int = 0,
    last: int | None = None,
    positions: Tensor | None = None,
    cache: Cache | None = None,
) -> Tensor:
    """Run blocks *first* … *last* and return the normed output of the body.

    Args:
        lm: the model.
        ids: token ids ``[B, S]`` (only with ``first = 0``).
        states: hidden states ``[B, S, d]`` that enter block *first* (instead of ids).
        mask: ``[B, P + S]``, 1 = a real token; or what :func:`raysweep.models.forward.prefix_tree.attention_mask` returns.
        first: first block to run.
        last: last block to run; None = the model's last.
        positions: position ids ``[B, S]``; None = 0, 1, 2, ….
        cache: keys and values of ``P`` earlier tokens.

    Returns:
        ``[B, S, d]`` after the final norm (meaningful only if *last* is the model's last block; otherwise read what
        is needed with :func:`raysweep.models.hooks.capture`).

    Raises:
        ModelError: a row is longer than the model allows.
    """
    last = lm.n_blocks - 1 if last is None else last
    source = ids if ids is not None else states
    assert source is not None
    if positions is None:
        positions = torch.arange(source.shape[1], device=source.device).expand(source.shape[0], -1)
    if attention.is_limited(lm.module.config):
        attention.check_row(lm.module.config, int(positions.max()) + 1)
    common: dict[str, Any] = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    common["use_cache"] = cache is not None
    with only_blocks(lm, first, last) as blocks:
        body = lm.part(lm.layout.body)
        if states is None:
            return body(input_ids=ids, **common).last_hidden_state  # type: ignore[no-any-return]
        if len(blocks) == 0:
            return lm.part(lm.layout.norm)(states)  # type: ignore[no-any-return]
        with hooks.feed(next(iter(blocks)), states):
            return body(inputs_embeds=torch.zeros_like(states), **common).last_hidden_state  # type: ignore[no-any-return]


def last_block(lm: LanguageModel, modules: Sequence[str]) -> int | None:
    """Return the last block that holds one of *modules*; None (all of them) if one lies outside of the blocks."""
    prefix = f"{lm.layout.blocks}."
    if not all(name.startswith(prefix) for name in modules):
        return None
    return max(int(name.removeprefix(prefix).partition(".")[0]) for name in modules)


def run_packs(
    lm: LanguageModel,
    packs: prefix_tree.Packs,
    *,
    states: Tensor | None = None,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    """Run blocks *first* … *last* on *packs*, from *states* ``[B, N, d]`` if given; see :func:`run`.

    Without gradient, blocks below *last* that nobody looks into go the short way; what is left of padding is zero there.
    """
    mask = prefix_tree.attention_mask(lm, packs.seen, packs.positions, packs.positions)
    if (
        isinstance(mask, Tensor)
        and states is None
        and last
        and not torch.is_grad_enabled()
        and llama_fused.fit(lm, 0, last)
    ):
        lower = llama_fused.Climb.of(lm, 0, packs.positions, mask, [None] * last, packs.real, last).apart()
        entering = lm.part(lm.layout.embed)(packs.ids)
        states, first = lower.filled(lower(entering)).reshape(entering.shape), last
    ids = packs.ids if states is None else None
    return run(lm, ids=ids, states=states, mask=mask, positions=packs.positions, first=first, last=last)


def logits(lm: LanguageModel, hidden: Tensor) -> Tensor:
    """Apply the output head to normed hidden states ``[…, d]`` → ``[…, vocabulary]`` in fp32."""
    return lm.part(lm.layout.head)(hidden).float()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Upper:
    """The blocks from *first* on, to be run again and again on tokens that stay where they are.

    Attributes:
        first: a block, or the number of blocks: then only the final norm remains.
        positions: ``[B, S]``.
        mask: added to attention scores, of the ``P`` reused tokens first, then of the ``S`` own ones.
        cache: keys and values of the reused tokens; None if there are none.
        climb: the short way through these blocks, used while they are fit for it; None if they never were.
    """

    first: int
    positions: Tensor
    mask: prefix_tree.Mask
    cache: Cache | None
    climb: llama_fused.Climb | None

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        first: int,
        positions: Tensor,
        seen: Tensor,
        cache: Cache | None = None,
        reused: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Upper:
        """Prepare for tokens that see ``seen [B, S, P + S]``.

        *cache* holds keys and values of tokens at the positions *reused* ``[B, P]``; ``real [B, S]``, if given, tells tokens from
        padding.
        """
        everywhere = positions if reused is None else torch.cat([reused, positions], dim=1)
        mask, climb = prefix_tree.attention_mask(lm, seen, positions, everywhere), None
        if isinstance(mask, Tensor) and llama_fused.fit(lm, first):
            past: list[llama_fused.Past | None] = [None] * (lm.n_blocks - first)
            if cache is not None:
                past = [(layer.keys, layer.values) for layer in cache.layers[first:]]
            climb = llama_fused.Climb.of(lm, first, positions, mask, past, real)
        return cls(first, positions, mask, cache, climb)

    def at(self, rows: Tensor, columns: Tensor, *, once: bool = False) -> Spots:
        """Prepare to read the final states at ``rows [k]``, ``columns [k]`` only: the last block computes no others.

        *once*: without gradient.
        """
        if self.climb is None:
            return Spots(self, rows, columns)
        flags = torch.zeros(self.positions.shape, dtype=torch.bool, device=rows.device)
        flags[rows, columns] = True
        flags = self.climb.wide(flags)
        among = (flags.flatten().cumsum(0) - 1).view(flags.shape)[rows, columns]
        climb = self.climb.asking(flags)
        return Spots(replace(self, climb=climb.apart() if once else climb), rows, columns, among)

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return the normed final states ``[B, S, d]`` when what enters block *first* is *states*; differentiable.

        Where padding is told from tokens, it may come out as zero.
        """
        if self.climb is not None and self.climb.same():
            return self.climb.filled(self.climb(states)).reshape(states.shape)
        return run(lm, states=states, mask=self.mask, first=self.first, positions=self.positions, cache=self.cache)


@dataclass(frozen=True, slots=True)
class Spots:
    """Final states at some places.

    Attributes:
        upper: the blocks to run.
        rows, columns: ``[k]`` the places.
        among: ``[k]`` which of the tokens that leave the short way they are; None if there is no short way.
    """

    upper: Upper
    rows: Tensor
    columns: Tensor
    among: Tensor | None = None

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return the normed final states ``[k, d]`` when what enters the upper blocks is *states*; differentiable."""
        climb = self.upper.climb
        if self.among is None or climb is None or not climb.same():
            return self.upper.hidden(lm, states)[self.rows, self.columns]
        return climb(states)[self.among]


def at(lm: LanguageModel, packs: prefix_tree.Packs, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the normed final states ``[k, d]`` of *packs* at ``rows [k]``, ``columns [k]``. Call it without gradient."""
    upper = Upper.of(lm, 0, packs.positions, packs.seen, real=packs.real)
    if upper.climb is None:
        return run_packs(lm, packs)[rows, columns]
    return upper.at(rows, columns, once=True).hidden(lm, lm.part(lm.layout.embed)(packs.ids))


@dataclass(frozen=True, slots=True)
class Tail:
    """What is left to compute when only some tokens of what enters a block may change.

    Attributes:
        upper: the blocks to run again.
        states: ``[B, S, d]`` what enters them at the remaining tokens.
        column: ``[B, N]`` where a token of the packs is among the remaining ones, -1 where it is not.
        index: ``[B, S]`` which token of its pack each of them is (padding repeats others).
    """

    upper: Upper
    states: Tensor
    column: Tensor
    index: Tensor

    def take(self, tensor: Tensor) -> Tensor:
        """Pick the remaining tokens of ``[B, N, …]``."""
        return _take(tensor, self.index)

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return the normed final states ``[B, S, d]`` when what enters the upper blocks is *states*; differentiable."""
        return self.upper.hidden(lm, states)


def tail(lm: LanguageModel, packs: prefix_tree.Packs, change: Tensor, *, first: int) -> Tail:
    """Compute once, without gradient, everything that no change of what enters block *first* can reach.

    Call it inside a :func:`torch.no_grad` block. Its pass through the blocks below *first* also fills captures open
    around it.

    Args:
        lm: the model.
        packs: the rows.
        change: ``[B, N]`` True where what enters block *first* may change; whatever comes after those tokens remains too.
        first: a block, or the number of blocks: then only the final norm remains.
    """
    block, last = lm.layout.block, max(first - 1, 0)
    entry: tuple[str, hooks.Side] = (block.format(first), "input") if last >= first else (block.format(last), "output")
    with hooks.capture(lm, [entry]) as seen:
        run_packs(lm, packs, last=last)
    remains = (packs.seen & change[:, None, :]).any(2)
    kept, kept_real = _columns(~remains)
    rest, rest_real = _columns(remains)
    cache, reused, own = None, None, _take(packs.positions, rest)
    if kept.shape[1] and first < lm.n_blocks:
        store, reused = DynamicCache(), _take(packs.positions, kept)
        mask = prefix_tree.attention_mask(lm, _sees(packs.seen, kept, kept, kept_real) | _self(kept), reused, reused)
        run(lm, states=_take(seen[entry], kept), mask=mask, first=first, positions=reused, cache=store)
        cache = Cache(layers=[_Frozen(layer, kept.shape[1]) for layer in store.layers])
    else:
        kept, kept_real = kept[:, :0], kept_real[:, :0]
    among = _sees(packs.seen, rest, rest, rest_real) | _self(rest)
    sees = torch.cat([_sees(packs.seen, rest, kept, kept_real), among], dim=2)
    column = torch.full_like(packs.ids, -1)
    column[remains] = torch.arange(rest.shape[1], device=column.device).expand_as(rest)[rest_real]
    upper = Upper.of(lm, first, own, sees, cache, reused, rest_real if len(rest) > 1 else None)
    return Tail(upper, _take(seen[entry], rest), column, rest)


def _columns(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns at which ``chosen [B, N]`` is True, in order, ``[B, n]``, and which of them are no padding."""
    count = chosen.sum(1)
    width = matmul.height(int(count.max()))
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return order, torch.arange(order.shape[1], device=order.device) < count[:, None]


def _take(tensor: Tensor, columns: Tensor) -> Tensor:
    """Pick ``columns [B, n]`` of ``[B, N, …]``."""
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], columns]


def _sees(seen: Tensor, who: Tensor, whom: Tensor, real: Tensor) -> Tensor:
    """Return ``[B, n, m]``: which columns *who* ``[B, n]`` see which columns *whom* ``[B, m]`` (where those are *real*)."""
    return _take(seen, who).gather(2, whom[:, None, :].expand(-1, who.shape[1], -1)) & real[:, None, :]


def _self(columns: Tensor) -> Tensor:
    """Return ``[n, n]`` True on the diagonal: even padding sees something."""
    return torch.eye(columns.shape[1], dtype=torch.bool, device=columns.device)
