"""Llama blocks in few operations: which of two ways fits the device.

A CPU wants few passes over memory and as many tokens as its products like (:mod:`.llama_fused`), an accelerator few launches
(:mod:`.llama_device`). Both compute the same blocks, of models that :func:`supports` accepts, and are used alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raysweep.models.forward.llama_device import DeviceLlamaBlocks
from raysweep.models.forward.llama_fused import FusedLlamaBlocks
from raysweep.models.forward.llama_fused import PastKeysValues as PastKeysValues
from raysweep.models.forward.llama_fused import supports as supports

FusedBlocks = FusedLlamaBlocks | DeviceLlamaBlocks


def way_for(like: Tensor) -> type[FusedLlamaBlocks] | type[DeviceLlamaBlocks]:
    """Return the way that fits the device of *like*; its ``prepare`` makes the blocks."""
    return FusedLlamaBlocks if like.is_cpu else DeviceLlamaBlocks


def read_at(
    blocks: FusedBlocks, shape: torch.Size, rows: Tensor, columns: Tensor, *, without_gradient: bool
) -> tuple[FusedBlocks, Tensor]:
    """Let only some tokens leave the last block.

    Args:
        blocks: what ``prepare`` of :func:`way_for` returned.
        shape: ``[B, S]`` of the computed tokens.
        rows: packs, ``[k]``, on the device or the host.
        columns: tokens of those packs, ``[k]``; a position may be named twice.
        without_gradient: promise that no gradient is asked for.

    Returns:
        The blocks, and which of the tokens that leave them each of the positions is, ``[k]``.
    """
    if isinstance(blocks, DeviceLlamaBlocks):
        return blocks.read_at(rows, columns)
    flags = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    flags[rows, columns] = True
    flags = blocks.round_up(flags)
    # the running count of flags numbers the flagged tokens in the order in which they leave the last block
    token = (flags.flatten().cumsum(0) - 1).view(flags.shape)[rows, columns]
    narrowed = blocks.read_at(flags)
    return narrowed.per_pack() if without_gradient else narrowed, token


def without_gradient(blocks: FusedBlocks) -> FusedBlocks:
    """Return *blocks* as they are computed fastest where no gradient is asked for."""
    return blocks.per_pack() if isinstance(blocks, FusedLlamaBlocks) else blocks
