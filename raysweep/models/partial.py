"""Forward passes over some blocks only: stop early, start late, reuse keys and values of earlier tokens.

In the locate-and-edit family almost all time goes into optimising a vector at one token of one block. Nothing before that
token changes in any block and nothing below that block changes at all; these functions compute just the rest.

Shape legend: ``B`` rows, ``T`` tokens of a padded row, ``P`` reused tokens, ``S`` tokens that are computed, ``d`` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from raysweep.models import hooks, packing
from raysweep.models.lm import LanguageModel


class _Frozen(DynamicLayer):  # type: ignore[misc]
    """Keys and values of earlier tokens; new ones are joined to them but never stored."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


@contextmanager
def only_blocks(lm: LanguageModel, first: int, last: int) -> Iterator[nn.ModuleList]:
    """Let the model consist of blocks *first* … *last* (inclusive) inside the block; always undone."""
    owner_name, _, leaf = lm.layout.blocks.rpartition(".")
    owner = lm.part(owner_name)
    whole = owner._modules[leaf]
    assert isinstance(whole, nn.ModuleList)
    kept = nn.ModuleList(list(whole)[first : last + 1])
    kept.training = whole.training
    owner._modules[leaf] = kept
    try:
        yield kept
    finally:
        owner._modules[leaf] = whole


def run(
    lm: LanguageModel,
    *,
    ids: Tensor | None = None,
    states: Tensor | None = None,
    mask: Tensor,
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
        mask: ``[B, P + S]``, 1 = a real token; or ``[B, 1, S, P + S]``, added to the attention scores.
        first: first block to run.
        last: last block to run; None = the model's last.
        positions: position ids ``[B, S]``; None = 0, 1, 2, ….
        cache: keys and values of ``P`` earlier tokens.

    Returns:
        ``[B, S, d]`` after the final norm (meaningful only if *last* is the model's last block; otherwise read what
        is needed with :func:`raysweep.models.hooks.capture`).
    """
    last = lm.n_blocks - 1 if last is None else last
    source = ids if ids is not None else states
    assert source is not None
    if positions is None:
        positions = torch.arange(source.shape[1], device=source.device).expand(source.shape[0], -1)
    common: dict[str, Any] = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    common["use_cache"] = cache is not None
    with only_blocks(lm, first, last) as blocks:
        body = lm.part(lm.layout.body)
        if states is None:
            return body(input_ids=ids, **common).last_hidden_state  # type: ignore[no-any-return]
        if len(blocks) == 0:
            return lm.part(lm.layout.norm)(states)  # type: ignore[no-any-return]
        with hooks.feed(blocks[0], states):
            return body(inputs_embeds=torch.zeros_like(states), **common).last_hidden_state  # type: ignore[no-any-return]


def run_packs(lm: LanguageModel, packs: packing.Packs, *, last: int | None = None) -> Tensor:
    """Run blocks 0 … *last* on *packs*; see :func:`run`."""
    mask = packing.additive(packs.seen, lm.dtype)
    return run(lm, ids=packs.ids, mask=mask, positions=packs.positions, last=last)


def logits(lm: LanguageModel, hidden: Tensor) -> Tensor:
    """Apply the output head to normed hidden states ``[…, d]`` → ``[…, vocabulary]`` in fp32."""
    return lm.part(lm.layout.head)(hidden).float()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Tail:
    """What remains to be computed when only block outputs of layer *layer* from token ``start[i]`` on may change.

    Attributes:
        layer: the block whose output is shifted.
        states: block output ``[B, S, d]`` of the remaining tokens; column 0 is token ``start[i]`` of row i.
        start: ``[B]`` first remaining token of each row.
        mask: ``[B, P + S]``; reused tokens are right-aligned in the first ``P`` columns.
        positions: ``[B, S]``.
        cache: keys and values of the reused tokens.
    """

    layer: int
    states: Tensor
    start: Tensor
    mask: Tensor
    positions: Tensor
    cache: Cache

    def hidden(self, lm: LanguageModel, states: Tensor) -> Tensor:
        """Return normed final states ``[B, S, d]`` when the remaining block outputs are *states*."""
        return run(lm, states=states, mask=self.mask, first=self.layer + 1, positions=self.positions, cache=self.cache)


def tail(lm: LanguageModel, ids: Tensor, mask: Tensor, *, layer: int, start: Sequence[int]) -> Tail:
    """Compute once, without gradient, everything that a change at ``(layer, start[i])`` cannot reach.

    Must be called inside a :func:`torch.no_grad` block; also fills any capture that is open around it.

    Args:
        lm: the model.
        ids: right-padded rows ``[B, T]``.
        mask: ``[B, T]``.
        layer: the block whose output will change.
        start: the first token of each row that may change.
    """
    name = lm.layout.block.format(layer)
    store = DynamicCache()
    with hooks.capture(lm, [(name, "output")]) as seen:
        run(lm, ids=ids, mask=mask, cache=store)
    begin = torch.tensor(list(start), device=ids.device)
    length = mask.sum(1)
    reuse, rest = int(begin.max()), int((length - begin).max())
    # column j of the reused part of row i is token j - (reuse - start_i); negative = padding
    left = torch.arange(reuse, device=ids.device)[None, :] - (reuse - begin)[:, None]
    right = torch.arange(rest, device=ids.device)[None, :] + begin[:, None]
    joint_mask = torch.cat([(left >= 0).long(), (right < length[:, None]).long()], dim=1)
    left, right = left.clamp(min=0), right.clamp(max=ids.shape[1] - 1)
    layers = []
    for number, kept in enumerate(store.layers):
        if number <= layer or kept.keys is None or kept.values is None:
            empty = ids.new_zeros(0, dtype=lm.dtype)
            layers.append(_Frozen(empty, empty, reuse))
            continue
        keys, values = (_take(t, left, 2) for t in (kept.keys, kept.values))
        layers.append(_Frozen(keys, values, reuse))
    states = _take(seen[name, "output"], right, 1)
    return Tail(layer, states, begin, joint_mask, right, Cache(layers=layers))


def _take(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Pick ``index [B, n]`` along *dim* (1: ``[B, T, d]``, 2: ``[B, heads, T, d]``)."""
    if dim == 1:
        return tensor.gather(1, index[:, :, None].expand(-1, -1, tensor.shape[2]))
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))
