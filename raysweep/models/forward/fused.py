"""Blocks in few operations: which of two ways fits the device, and what enters the first block.

A CPU wants few passes over memory and as many tokens as its products like (:mod:`.llama_fused`, Llama's blocks in fp32), an
accelerator few launches (:mod:`.device_blocks`, whatever a layout describes). Both are used alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raysweep.models.forward import device_blocks, llama_fused
from raysweep.models.forward.device_blocks import DeviceBlocks
from raysweep.models.forward.given import Given
from raysweep.models.forward.llama_fused import FusedLlamaBlocks
from raysweep.models.forward.token_grid import Pick
from raysweep.models.lm import LanguageModel

FusedBlocks = FusedLlamaBlocks | DeviceBlocks


def supports(lm: LanguageModel, first: int, end: int | None = None) -> bool:
    """Tell whether blocks *first* … *end* (exclusive; None: all) can be run so on the model's device."""
    way = llama_fused.supports if lm.device.type == "cpu" else device_blocks.supports
    return way(lm, first, end)


def prepare(lm: LanguageModel, given: Given) -> FusedBlocks:
    """Return the blocks of a model that :func:`supports` accepts, in the way that fits the device."""
    return FusedLlamaBlocks.prepare(lm, given) if given.mask.is_cpu else DeviceBlocks.prepare(lm, given)


def entering(lm: LanguageModel, ids: Tensor, positions: Tensor) -> Tensor:
    """Return what enters block 0, ``[B, N, d]``, at tokens *ids* ``[B, N]`` that stand at *positions* ``[B, N]``."""
    states: Tensor = lm.part(lm.layout.embed)(ids)
    return states if lm.layout.position_embed is None else states + lm.part(lm.layout.position_embed)(positions)


def read_at(
    blocks: FusedBlocks, shape: torch.Size, rows: Tensor, columns: Tensor, *, without_gradient: bool
) -> tuple[FusedBlocks, Pick]:
    """Let only some tokens leave the last block.

    Args:
        blocks: what :func:`prepare` returned.
        shape: ``[B, S]`` of the computed tokens.
        rows: packs, ``[k]``, on the device or the host.
        columns: tokens of those packs, ``[k]``; a position may be named twice.
        without_gradient: promise that no gradient is asked for.

    Returns:
        The blocks, and which of the tokens that leave them each of the positions is.
    """
    if isinstance(blocks, DeviceBlocks):
        return blocks.read_at(rows, columns)
    flags = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    flags[rows, columns] = True
    flags = blocks.round_up(flags)
    # the running count of flags numbers the flagged tokens in the order in which they leave the last block
    token = (flags.flatten().cumsum(0) - 1).view(flags.shape)[rows, columns]
    narrowed = blocks.read_at(flags)
    return narrowed.per_pack() if without_gradient else narrowed, Pick(token)


def without_gradient(blocks: FusedBlocks) -> FusedBlocks:
    """Return *blocks* as they are computed fastest where no gradient is asked for."""
    return blocks.per_pack() if isinstance(blocks, FusedLlamaBlocks) else blocks
