"""What the sham device refuses and what an operation on it costs: the rules of :mod:`raysweep.testing.sham_device`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from torch._ops import OpOverload

TYPE = "lazy"
# No kernel runs for these, beside the views: they only allocate, or the output aliases an input without the schema's saying so.
_FREE = ("aten._unsafe_view", "aten.empty", "aten.new_empty", "aten.lift_fresh")
# The host reads a number that is there, or one (a size, often) that a kernel computes.
_READS = ("aten._local_scalar_dense", "aten._linalg_check_errors")
_COMPUTES_AND_READS = (
    "aten.nonzero", "aten.masked_select", "aten.equal", "aten.allclose", "aten._unique", "aten.unique", "aten.bincount",
    "aten.repeat_interleave.Tensor",
)  # fmt: skip
_INDEXING = ("aten.index.", "aten.index_put", "aten._index_put_impl_")
_ACROSS = ("aten._to_copy", "aten.copy_", *_INDEXING)  # may see tensors of two devices
# Beside what goes entry by entry, these take a single number of the CPU along.
_TAKE_NUMBERS = ("aten.fill", "aten.masked_fill", "aten.full")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the device was asked for.

    Attributes:
        launches: operations that a GPU would run a kernel for.
        syncs: how often the host would wait for the device.
        uploads: copies from the host to the device.
    """

    launches: int = 0
    syncs: int = 0
    uploads: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.launches + other.launches, self.syncs + other.syncs, self.uploads + other.uploads)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.launches - other.launches, self.syncs - other.syncs, self.uploads - other.uploads)


def refuse(
    func: OpOverload,
    name: str,
    tensors: Sequence[torch.Tensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> None:
    """Raise what a GPU raises for tensors of two devices, and for a generator of the CPU."""
    if not name.startswith(_ACROSS):
        one_device(name, tensors, numbers=torch.Tag.pointwise in func.tags or name.startswith(_TAKE_NUMBERS))
    if name.startswith(_INDEXING):
        target = args[0]
        others = [t for t in tree_leaves(args[1:]) if _is_sham(t) and t.device != tensors[0].device]
        if others:
            raise RuntimeError(f"{name}: the indices are on the sham device, the tensor is not")
        values = args[2] if name.startswith(_INDEXING[1:]) else target
        if isinstance(values, torch.Tensor) and values.dim() and values.device != tensors[0].device:
            raise RuntimeError(f"{name}: the values are on {values.device}, the tensor on {tensors[0].device}")
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type != TYPE:
        raise RuntimeError(f"{name}: the generator is on {generator.device}, the tensor on the sham device")


def one_device(name: str, tensors: Sequence[torch.Tensor], *, numbers: bool = False) -> None:
    """Raise ``RuntimeError`` if *tensors* are on several devices; with *numbers*, single numbers of the CPU go along."""
    devices = {t.device for t in tensors if t.dim() or _is_sham(t) or not numbers}
    if len(devices) > 1:
        raise RuntimeError(f"{name}: tensors on {' and '.join(sorted(map(str, devices)))} in one operation")


def price(
    func: OpOverload,
    name: str,
    tensors: Sequence[torch.Tensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Counts:
    """Return what a GPU would pay for an operation with at least one tensor of ours, or that makes one."""
    from_cpu = [t for t in tensors if not _is_sham(t)]
    if name.startswith("aten.copy_"):
        up, down = _is_sham(args[0]) and bool(from_cpu), not _is_sham(args[0])
    elif name.startswith(_INDEXING):
        up, down = any(t.dim() for t in from_cpu), False
    elif kwargs.get("device") is not None:
        down = torch.device(kwargs["device"]).type != TYPE  # type: ignore[call-overload]
        up = not down and bool(from_cpu)
    else:
        up = down = False
    masks = name.startswith(_INDEXING) and any(
        isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1])
    )
    copied = down or (up and not name.startswith(_INDEXING))
    views = func.is_view or torch.Tag.inplace_view in func.tags
    free = copied or views or name.startswith((*_FREE, *_READS))
    return Counts(
        launches=not free, syncs=down or masks or name.startswith((*_READS, *_COMPUTES_AND_READS)), uploads=up
    )


def _is_sham(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == TYPE
