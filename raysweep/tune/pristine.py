"""A second copy of a model's pristine weights in the host's memory, from which the next trial's are restored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.lazy import lazy
from raysweep.models.sizes import COPY_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
torch = lazy("torch")

SHARE = 4  # of what is free: a node's processes load at once, and pinned memory is nobody else's any more
_MEMORY = Path("/proc/meminfo")


def copies(tensors: Mapping[str, Tensor], limit: int | None = None) -> dict[str, Tensor]:
    """Return a copy of each of *tensors* in the host's memory; none at all where there is no room for them.

    What is on an accelerator is copied into pinned memory, from which it goes back without the processor.

    Args:
        tensors: parameters and buffers by name.
        limit: bytes that they may take together; None: ``COPY_LIMIT``, and for an accelerator's a quarter of the free memory if
            that is more.
    """
    on_accelerator = any(tensor.device.type != "cpu" for tensor in tensors.values())
    if limit is None:
        limit = max(COPY_LIMIT, free_memory() // SHARE) if on_accelerator else COPY_LIMIT
    if sum(tensor.nbytes for tensor in tensors.values()) > limit:
        return {}
    try:
        return {name: _copy(tensor.detach()) for name, tensor in tensors.items()}
    # The system may allow a process less pinned memory than is free.
    except RuntimeError as error:
        if not on_accelerator:
            raise
        log.warning("the pristine weights stay in memory that is not pinned: %s", str(error).partition("\n")[0])
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.to("cpu", copy=True)
    return pinned_like(tensor).copy_(tensor)


def pinned_like(tensor: Tensor) -> Tensor:
    """Return pinned memory of the host for what *tensor* holds."""
    empty: Tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return empty


def free_memory() -> int:
    """Return the bytes that the host can still give; 0 where it does not say."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text(encoding="ascii").splitlines())
        # "MemAvailable:   123456 kB"
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return 0
