"""Forward passes over some blocks only: stop early, start late, on padded rows or on packs.

In the locate-and-edit family almost all time goes into optimising a vector at one token of one block. Nothing below that block
changes, so it is run once; what is above it is run again and again (:mod:`raysweep.models.forward.resume`). See
docs/methods/forward.md for the whole picture.

Shape legend: ``B`` rows or packs, ``S`` tokens that are computed, ``P`` reused ones before them, ``N`` tokens of a pack, ``d``
width of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from raysweep.models import attention, hooks
from raysweep.models.forward import fused, prefix_tree
from raysweep.models.forward.given import Given
from raysweep.models.lm import LanguageModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@contextmanager
def only_blocks(lm: LanguageModel, first: int, last: int) -> Iterator[nn.ModuleList]:
    """Let the model consist of blocks *first* … *last* (inclusive) inside the ``with`` statement; always undone.

    Blocks keep their own names. Where the configuration lists a kind of attention for each block, which transformers looks up by
    counting blocks, it lists those of the blocks that are left.

    Yields:
        The blocks that are left.
    """
    config: PretrainedConfig = lm.part(lm.layout.body).config
    types = getattr(config, "layer_types", None)
    owner_name, _, leaf = lm.layout.blocks.rpartition(".")
    owner = lm.part(owner_name)
    whole = owner._modules[leaf]
    assert isinstance(whole, nn.ModuleList)
    left = nn.ModuleList()
    for name, block in list(whole.named_children())[first : last + 1]:
        # its own number: hooks and modules inside look their block up by its full name
        left._modules[name] = block
    left.training = whole.training
    owner._modules[leaf] = left
    if types is not None:
        config.layer_types = types[first : last + 1]
    try:
        yield left
    finally:
        owner._modules[leaf] = whole
        if types is not None:
            config.layer_types = types


def run(
    lm: LanguageModel,
    *,
    ids: Tensor | None = None,
    states: Tensor | None = None,
    mask: prefix_tree.AttentionMask,
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
        attention.check_row(lm.module.config, source.shape[1])
        positions = torch.arange(source.shape[1], device=source.device).expand(source.shape[0], -1)
    # Positions on an accelerator are those of packs, which were checked as they were laid out: reading them would wait for it.
    elif positions.is_cpu and attention.is_limited(lm.module.config):
        attention.check_row(lm.module.config, int(positions.max()) + 1)
    if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_cpu and cache is None:
        # transformers would read back whether there is any padding; so it is told who looks at whom, padding at itself
        whole = torch.ones(*mask.shape, mask.shape[1], dtype=torch.bool, device=mask.device)
        seen = (whole.tril() & mask[:, None, :].bool()) | (whole.tril() & whole.triu())
        mask = prefix_tree.attention_mask(lm, seen, positions, positions)
    common: dict[str, object] = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    common["use_cache"] = cache is not None
    with only_blocks(lm, first, last) as blocks:
        body = lm.part(lm.layout.body)
        if states is None:
            return body(input_ids=ids, **common).last_hidden_state  # type: ignore[no-any-return]
        # resumed above the last block: only the norm is left
        if len(blocks) == 0:
            return lm.part(lm.layout.norm)(states)  # type: ignore[no-any-return]
        # the body adds positions to, or scales, whatever it is given; so it gets zeros, and the block gets the states themselves
        with hooks.feed(next(iter(blocks)), states):
            return body(inputs_embeds=torch.zeros_like(states), **common).last_hidden_state  # type: ignore[no-any-return]


def run_packs(
    lm: LanguageModel,
    packs: prefix_tree.PackedRows,
    *,
    states: Tensor | None = None,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    """Run blocks *first* … *last* on *packs* (see :func:`run`).

    Without gradient, blocks below *last* that nobody looks into are run fused where the model allows it
    (:mod:`raysweep.models.forward.fused`); what is left of padding is zero there.

    Args:
        lm: the model.
        packs: the rows, laid out as prefix trees.
        states: ``[B, N, d]`` what enters block *first*; None: the embedding of the packs' ids (only with ``first = 0``).
        first: first block to run.
        last: last block to run; None = the model's last.

    Returns:
        ``[B, N, d]`` after the final norm.
    """
    mask = prefix_tree.attention_mask(lm, packs.visible, packs.positions, packs.positions)
    if (
        isinstance(mask, Tensor)
        and states is None
        and last
        and not torch.is_grad_enabled()
        and fused.supports(lm, 0, last)
    ):
        lower = fused.prepare(lm, Given(0, packs.positions, mask, [None] * last, packs.real, last))
        lower = fused.without_gradient(lower)
        entering = fused.entering(lm, packs.ids, packs.positions)
        states, first = lower.to_grid(lower(entering)).reshape(entering.shape), last
    # what the fused blocks have computed already replaces the ids
    ids = packs.ids if states is None else None
    return run(lm, ids=ids, states=states, mask=mask, positions=packs.positions, first=first, last=last)


def logits(lm: LanguageModel, hidden: Tensor) -> Tensor:
    """Apply the output head to normed hidden states: ``[…, d]`` → ``[…, vocabulary]`` in fp32."""
    return lm.part(lm.layout.head)(hidden).float()  # type: ignore[no-any-return]
