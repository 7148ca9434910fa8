"""A model over several devices of one machine: each block takes what enters it to where its own weights are.

Embedding, final norm and head are on the first device, with the first blocks; the other blocks follow in order, so many on each
device that all hold about as many bytes. Ids enter on the first device, final states leave there, and
:func:`raysweep.models.hooks.capture` brings there what it records. So whoever computes with a model knows of one device,
``LanguageModel.device``, and only who writes weights (``ledger.py``) goes to theirs.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from raysweep import runtime
from raysweep.errors import NodeError
from raysweep.pytree import moved

if TYPE_CHECKING:
    from torch import nn

    from raysweep.models.layout import Layout


def devices(count: int) -> list[torch.device]:
    """Return where a model over *count* devices goes: :func:`raysweep.runtime.device`, or the first so many GPUs.

    Raises:
        NodeError: torch does not see as many.
    """
    if count == 1:
        return [runtime.device()]
    if runtime.visible_gpus() < count:
        raise NodeError(
            f"{platform.node()}: model.devices = {count}, but torch sees {runtime.visible_gpus()} GPUs in this process",
            hint=f"resources.gpu: {count} gives a trial as many; 1 is right for a model that fits one card, and for the CPU",
        )
    return [runtime.gpu(index) for index in range(count)]


def spread(
    module: nn.Module, layout: Layout, devices: Sequence[torch.device], numbers: Sequence[int] | None = None
) -> None:
    """Move *module* to *devices*; with several, block by block, so that none ever holds more than its share.

    Args:
        module: in the host's memory, or on the one device already.
        layout: of its family.
        devices: the first is the model's own.
        numbers: on which of them each block is to be; None: as :func:`shares` says.
    """
    home = devices[0]
    if len(devices) > 1:
        blocks = list(module.get_submodule(layout.blocks).children())
        for block, number in zip(blocks, numbers or shares(module, layout, len(devices)), strict=True):
            if number:
                block.to(devices[number])
                _take_inputs_to(block, devices[number])
        owner, _, leaf = layout.blocks.rpartition(".")
        # A stand-in, since moving the whole model would move those blocks back.
        register, whole = module.get_submodule(owner)._modules, module.get_submodule(layout.blocks)
        register[leaf] = type(whole)(block for block in blocks if not is_elsewhere(block))
        module.to(home)
        register[leaf] = whole
        _take_inputs_to(module.get_submodule(layout.norm), home)
    else:
        module.to(home)


def shares(module: nn.Module, layout: Layout, count: int) -> list[int]:
    """Return on which of *count* devices each block is to be: the one that the middle of its bytes falls to."""
    sizes = [_bytes(block) for block in module.get_submodule(layout.blocks).children()]
    whole = _bytes(module)
    before, numbers = whole - sum(sizes), []
    for size in sizes:
        numbers.append(min(count - 1, int((before + size / 2) / whole * count)))
        before += size
    return numbers


def is_elsewhere(module: nn.Module) -> bool:
    """Tell whether *module* takes its inputs to a device by itself, so that its parameters alone do not say what it computes."""
    return "forward" in vars(module)


def _bytes(module: nn.Module) -> int:
    # tied parameters are named once
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _take_inputs_to(module: nn.Module, there: torch.device) -> None:
    """Let *module* move what it is given to *there*, inside of all hooks: those around it see what the others gave."""
    # not as a hook: a model with hooks is one that somebody is looking into
    module.forward = partial(_forward, module.forward, there)


def _forward(inner, there, *args, **kwargs):  # type: ignore[no-untyped-def]  # whatever a block of transformers takes
    return inner(*moved(args, there), **moved(kwargs, there))
