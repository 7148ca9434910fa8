"""A device that pretends to be a GPU: it computes on the CPU, refuses what a GPU refuses, and counts what a GPU pays for.

* Tensors of two devices in one operation raise, as on a GPU. Single numbers and indices from the CPU are allowed, as there.
* Every operation is a *launch*, but for views and allocations. Every time that the host would wait for the device is a *sync*:
  ``.item()``, ``bool()``, ``.tolist()``, ``.cpu()``, ``nonzero``, boolean masks as indices, checks of factorisations. Every copy
  from the host is an *upload*: ``torch.tensor(…, device=…)``, ``.to(device)``, an index that is on the CPU.
* The numbers are the CPU's, so that results equal a plain run's but for kernels that are chosen by layout.

It says nothing about time or memory, and one call of ATen may be several kernels of a GPU, or a part of a fused one::

    lm.module = move(lm.module)
    with ShamDevice() as sham:
        for record in records:
            edit(lm, record)
            sham.mark(record.id)
    print(sham.total, sham.between_marks(), sham.operations.most_common(20))

The tensors say ``lazy`` where they are asked for their device. That is a device type which every build of torch knows and which
has no kernels of its own; its backward pass runs on the thread that asked for it. A device type of one's own (torch's
``PrivateUse1``) would have to be registered before the first backward pass of the process, and every later test would see an
accelerator. Here, importing the module changes nothing; the first block gives ``lazy`` three kernels, for the rest of the
process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Never, Self, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

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
_Module = TypeVar("_Module", bound=torch.nn.Module)


def device(index: int = 0) -> torch.device:
    """Return the *index*-th sham device; there are as many as are asked for."""
    return torch.device(TYPE, index)


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


class ShamTensor(torch.Tensor):
    """A tensor that says it is on the sham device.

    Attributes:
        held: the tensor on the CPU that has the numbers; the same sizes and strides.
    """

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor, on: torch.device) -> ShamTensor:
        """Return a tensor without numbers of its own."""
        wrapper: ShamTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=on
        )
        return wrapper

    def __init__(self, held: torch.Tensor, on: torch.device) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"sham({self.held!r})"

    def tolist(self) -> list[object]:
        """Return the numbers, at the price of one sync."""
        _note("tensor.tolist", Counts(syncs=1))
        numbers: list[object] = self.held.tolist()
        return numbers

    def numpy(self, **_: object) -> Never:
        """Raise ``TypeError``, as a tensor on a GPU does."""
        raise TypeError("can't convert a tensor on the sham device to numpy; use .cpu() first")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return _run(func, args, kwargs or {})


class ShamDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, tensors can be made on the sham device and what it does is counted; blocks may be nested.

    Attributes:
        total: the counts so far.
        operations: how often each operation ran, views included, by its name in ATen.
        marks: the names given to :meth:`mark`, each with the counts up to then.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = Counts()
        self.operations: Counter[str] = Counter()
        self.marks: list[tuple[str, Counts]] = []

    def mark(self, name: str) -> None:
        """Keep the counts so far under *name*."""
        self.marks.append((name, self.total))

    def between_marks(self) -> list[tuple[str, Counts]]:
        """Return, for each mark, its name and what was counted since the mark before (the first: since the block began)."""
        before = [Counts(), *(counts for _, counts in self.marks)]
        return [(name, counts - earlier) for (name, counts), earlier in zip(self.marks, before, strict=False)]

    def __enter__(self) -> Self:
        _kernels()
        _counting().append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _counting().remove(self)
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return _run(func, args, kwargs or {})


def to_sham(tensor: torch.Tensor, *, index: int = 0) -> torch.Tensor:
    """Return *tensor* on the sham device, counting nothing; it shares the numbers of the one on the CPU."""
    return ShamTensor(tensor.detach(), device(index))


def move(module: _Module, *, index: int = 0) -> _Module:
    """Put the parameters and buffers of *module* on the sham device, in place, and return it; tied ones stay tied.

    ``module.to(device)`` would count an upload for each, and works too.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = torch.nn.Parameter(to_sham(weight, index=index), weight.requires_grad)
                part._parameters[name] = made[id(weight)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = to_sham(buffer, index=index)
    return module


@cache
def _counting() -> list[ShamDevice]:
    """Return the list of the blocks that are open in this process."""
    return []


def _note(name: str, counts: Counts) -> None:
    for sham in _counting():
        sham.operations[name] += 1
        sham.total += counts


def _run(func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Run an operation on what the tensors hold; count it if the sham device has a part in it."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, ShamTensor)]
    asked = kwargs.get("device")
    wanted = None if asked is None else torch.device(asked)  # type: ignore[call-overload]
    here = wanted is not None and wanted.type == TYPE
    if not ours and not here:
        return func(*args, **kwargs)
    name = str(func)
    _refuse(func, name, tensors, args, kwargs)
    _note(name, _price(func, name, tensors, args, kwargs))
    on_cpu = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    bare, named = tree_map_only(ShamTensor, lambda t: t.held, (args, dict(on_cpu)))
    found = func(*bare, **named)
    mine: dict[int, torch.Tensor] = {id(t.held if isinstance(t, ShamTensor) else t): t for t in tensors}
    if wanted is not None and not here:
        return found  # to the CPU
    on = wanted or ours[0].device
    # An operation in place returns what it was given.
    return tree_map_only(torch.Tensor, lambda t: mine[id(t)] if id(t) in mine else ShamTensor(t, on), found)


def _refuse(
    func: OpOverload,
    name: str,
    tensors: Sequence[torch.Tensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> None:
    """Raise what a GPU raises for tensors of two devices, and for a generator of the CPU."""
    devices = {t.device for t in tensors if t.dim() or isinstance(t, ShamTensor)}
    if len(devices) > 1 and not name.startswith(_ACROSS):
        raise RuntimeError(f"{name}: tensors on {' and '.join(sorted(map(str, devices)))} in one operation")
    if name.startswith(_INDEXING):
        target = args[0]
        others = [t for t in tree_leaves(args[1:]) if isinstance(t, ShamTensor) and t.device != tensors[0].device]
        if others:
            raise RuntimeError(f"{name}: the indices are on the sham device, the tensor is not")
        values = args[2] if name.startswith(_INDEXING[1:]) else target
        if isinstance(values, torch.Tensor) and values.dim() and values.device != tensors[0].device:
            raise RuntimeError(f"{name}: the values are on {values.device}, the tensor on {tensors[0].device}")
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type != TYPE:
        raise RuntimeError(f"{name}: the generator is on {generator.device}, the tensor on the sham device")
    if torch.Tag.inplace_view in func.tags and name != "aten.detach_.default":
        raise NotImplementedError(f"{name}: the sham device has no views in place")


def _price(
    func: OpOverload,
    name: str,
    tensors: Sequence[torch.Tensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Counts:
    """Return what a GPU would pay for an operation with at least one tensor of ours, or that makes one."""
    from_cpu = [t for t in tensors if not isinstance(t, ShamTensor)]
    if name.startswith("aten.copy_"):
        up, down = isinstance(args[0], ShamTensor) and bool(from_cpu), not isinstance(args[0], ShamTensor)
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
    free = copied or func.is_view or name.startswith((*_FREE, *_READS))
    return Counts(
        launches=not free, syncs=down or masks or name.startswith((*_READS, *_COMPUTES_AND_READS)), uploads=up
    )


@cache
def _kernels() -> torch.library.Library:
    """Give the device the kernels that torch calls below the reach of Python's dispatch, as for a list that is an index."""

    def new(make: Callable[[], torch.Tensor], where: object) -> torch.Tensor:
        with _disable_current_modes():
            return ShamTensor(make(), device() if where is None else torch.device(where))  # type: ignore[call-overload]

    def empty(
        size: Sequence[int],
        dtype: torch.dtype | None = None,
        layout: object = None,
        device: object = None,
        pin_memory: object = None,
        memory_format: object = None,
    ) -> torch.Tensor:
        return new(lambda: torch.empty(size, dtype=dtype), device)

    def empty_strided(
        size: Sequence[int],
        stride: Sequence[int],
        dtype: torch.dtype | None = None,
        layout: object = None,
        device: object = None,
        pin_memory: object = None,
    ) -> torch.Tensor:
        return new(lambda: torch.empty_strided(size, stride, dtype=dtype), device)

    def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        with _disable_current_modes():
            bare = target.held if isinstance(target, ShamTensor) else target
            bare.copy_(source.held if isinstance(source, ShamTensor) else source)
        up, down = not isinstance(source, ShamTensor), not isinstance(target, ShamTensor)
        _note("aten._copy_from", Counts(launches=not up and not down, syncs=down, uploads=up))
        return target

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("empty.memory_format", empty, "Lazy")  # type: ignore[no-untyped-call]
    library.impl("empty_strided", empty_strided, "Lazy")  # type: ignore[no-untyped-call]
    library.impl("_copy_from", copy_from, "Lazy")  # type: ignore[no-untyped-call]
    return library
