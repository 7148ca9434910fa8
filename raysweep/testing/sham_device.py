"""A device that pretends to be a GPU: it computes on the CPU, refuses what a GPU refuses, and counts what a GPU pays for.

* Tensors of two devices in one operation raise, as on a GPU. Single numbers and indices from the CPU are allowed, as there.
* Where the process asks for operations that repeat to the bit, those that cannot raise (:mod:`raysweep.testing.sham_repeats`).
* Every operation is a *launch*, but for views and allocations. Every time that the host would wait for the device is a *sync*:
  ``.item()``, ``bool()``, ``.tolist()``, ``.cpu()``, ``nonzero``, boolean masks as indices, checks of factorisations. Every copy
  from the host is an *upload*: ``torch.tensor(…, device=…)``, ``.to(device)``, an index that is on the CPU.
* The numbers are the CPU's, so that results equal a plain run's but for kernels that are chosen by layout.

It says nothing about time or memory, and one call of ATen may be several kernels of a GPU, or a part of a fused one.
Attention, RMS norm and SiLU are one launch each, and one more in the backward pass, though ATen takes them apart here::

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
from functools import cache
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Never, Self, TypeVar
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from raysweep.testing.sham_repeats import repeats
from raysweep.testing.sham_rules import TYPE, Counts, one_device, price, refuse

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.autograd.function import FunctionCtx

_Module = TypeVar("_Module", bound=torch.nn.Module)

# what is a kernel of its own on a GPU, by the name under which it is counted
ONE_KERNEL: dict[Callable[..., object], str] = {
    F.scaled_dot_product_attention: "attention",
    F.rms_norm: "rms_norm",
    F.silu: "silu",
}


def device(index: int = 0) -> torch.device:
    """Return the *index*-th sham device; there are as many as are asked for."""
    return torch.device(TYPE, index)


class ShamTensor(torch.Tensor):
    """A tensor that says it is on the sham device.

    Attributes:
        held: the tensor on the CPU that has the numbers; the same sizes and strides.
    """

    held: torch.Tensor

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

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of the numbers, so that two tensors can be asked whether they share it."""
        return self.held.untyped_storage()

    def numpy(self, **_: object) -> Never:
        """Raise ``TypeError``, as a tensor on a GPU does."""
        raise TypeError("can't convert a tensor on the sham device to numpy; use .cpu() first")

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Let attention, say, be one operation, as it is on a GPU; everything else goes on to ATen as it is."""
        with torch._C.DisableTorchFunctionSubclass():
            if func in ONE_KERNEL:
                return _in_one(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

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
        sorted: those of them that add up by atomics, or by a sort where bits are to repeat.
        marks: the names given to :meth:`mark`, each with the counts up to then.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = Counts()
        self.operations: Counter[str] = Counter()
        self.sorted: Counter[str] = Counter()
        self.marks: list[tuple[str, Counts]] = []
        # torch keeps a list of the devices that may be asked for a fused optimiser
        fused = [*_get_fused_kernels_supported_devices(), TYPE]
        module = import_module("torch.optim.optimizer")
        self._fused = patch.object(module, "_get_fused_kernels_supported_devices", lambda: fused)

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
        self._fused.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _counting().remove(self)
        self._fused.stop()
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


def _note_order(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Count an operation that sorts where bits are to repeat; raise, as a GPU does there, for one that cannot."""
    order = repeats(name, args, kwargs)
    if order == "sorted":
        for sham in _counting():
            sham.sorted[name] += 1
    elif order == "never" and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            f"{name} does not have a deterministic implementation, and deterministic algorithms are asked for"
        )


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
    refuse(func, name, tensors, args, kwargs)
    _note(name, price(func, name, tensors, args, kwargs))
    _note_order(name, args, kwargs)
    on_cpu = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    bare, named = tree_map_only(ShamTensor, lambda t: t.held, (args, dict(on_cpu)))
    found = _counted_whole(func, bare, named) if name.startswith("aten.histc") else func(*bare, **named)
    if torch.Tag.inplace_view in func.tags:
        return _follow(ours[0])
    mine: dict[int, torch.Tensor] = {id(t.held if isinstance(t, ShamTensor) else t): t for t in tensors}
    if wanted is not None and not here:
        return found  # to the CPU
    on = wanted or ours[0].device
    # An operation in place returns what it was given.
    return tree_map_only(torch.Tensor, lambda t: mine[id(t)] if id(t) in mine else ShamTensor(t, on), found)


def _counted_whole(func: OpOverload, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, object]) -> torch.Tensor:
    """Run a histogram of whole numbers, which a GPU's kernel takes and the CPU's does not."""
    counts: torch.Tensor = func(args[0].double(), *args[1:], **kwargs)
    return counts.to(args[0].dtype)


def _follow(tensor: ShamTensor) -> ShamTensor:
    """Give *tensor* the sizes and strides of what it holds, which a view in place has changed; return it."""
    held, on_cpu = tensor.held, torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with no_dispatch():
        # The CPU's kernel only writes down sizes; the device itself has none.
        torch.ops.aten.as_strided_.default.redispatch(on_cpu, tensor, held.size(), held.stride(), held.storage_offset())
    return tensor


def _in_one(func: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Return what the CPU's own kernel computes, as one launch, and one in the backward pass."""
    leaves, spec = tree_flatten((args, dict(kwargs)))
    one_device(ONE_KERNEL[func], [t for t in leaves if isinstance(t, torch.Tensor)])
    return _OneKernel.apply(func, spec, *leaves)  # type: ignore[no-untyped-call]


class _OneKernel(torch.autograd.Function):
    """One of :data:`ONE_KERNEL` on what the tensors hold."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, func: Callable[..., torch.Tensor], spec: TreeSpec, *given: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the result; keep the CPU's own graph for the backward pass."""
        wanted = ctx.needs_input_grad[2:]  # type: ignore[attr-defined]
        held = [
            t.held.detach().requires_grad_(w) if isinstance(t, ShamTensor) else t
            for t, w in zip(given, wanted, strict=True)
        ]
        on = next(t.device for t in given if isinstance(t, ShamTensor))
        args, kwargs = tree_unflatten(held, spec)
        with _disable_current_modes(), torch.set_grad_enabled(any(wanted)):
            out = func(*args, **kwargs)
        ctx.kept = func, out, held  # type: ignore[attr-defined]
        _note(ONE_KERNEL[func], Counts(launches=1))
        return ShamTensor(out.detach(), on)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: ShamTensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the tensors that ask for one."""
        func, out, held = ctx.kept  # type: ignore[attr-defined]
        asked = [isinstance(t, torch.Tensor) and t.requires_grad for t in held]
        wanted = [t for t, a in zip(held, asked, strict=True) if a]
        with _disable_current_modes():
            found = iter(torch.autograd.grad(out, wanted, gradient.held))
        _note(f"{ONE_KERNEL[func]}, backward", Counts(launches=1))
        return None, None, *(ShamTensor(next(found), gradient.device) if a else None for a in asked)


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
