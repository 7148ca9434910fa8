"""What a card gives, and what a call asks of it: seconds, arithmetic, launches, waits, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import measure
from raysweep.runtime import Matmul, device, matmul

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemsetAsync")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
UPLOADS = ("Memcpy HtoD",)
PRODUCTS: Mapping[str, tuple[torch.dtype, Matmul]] = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp64": (torch.float64, "ieee"),
}


def seconds(call: Callable[[], object], times: int = 1) -> list[float]:
    """Return the wall seconds of each of *times* calls, the card's queue included."""
    clock = measure.Clock()
    for _ in range(times):
        with clock.timed():
            call()
    return clock.wall


def ceiling(square: int) -> dict[str, float]:
    """Return what this device gives in this process: TFLOP/s of square products by precision, GB/s of a copy.

    Args:
        square: side of the matrices.
    """
    found = {}
    for kind, (dtype, precision) in PRODUCTS.items():
        left, right = (torch.randn(square, square, device=device()).to(dtype) for _ in range(2))
        product = lambda left=left, right=right: left @ right  # noqa: E731
        with matmul(precision):
            seconds(product, 2)
            found[kind] = 2 * square**3 / min(seconds(product, 5)) / 1e12
    source = torch.empty(8 * square * square, device=device())
    target = torch.empty_like(source)
    seconds(lambda: target.copy_(source), 2)
    found["copy GB/s"] = 2 * source.nbytes / min(seconds(lambda: target.copy_(source), 5)) / 1e9
    return found


def repeats(width: int) -> dict[str, bool]:
    """Return, for what editors use that might not, whether the device gives the same bits four times.

    Args:
        width: of the positive definite fp64 matrix that is decomposed; also of what is added up, and how many tokens attend.
    """
    root = torch.randn(width, 2 * width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = (root @ root.T / width).to(device())
    lower = torch.linalg.cholesky(matrix)
    calls: Mapping[str, Callable[[], Tensor]] = {
        "eigh": lambda: torch.linalg.eigh(matrix).eigenvectors,
        "cholesky": lambda: torch.linalg.cholesky(matrix),
        "inverse": lambda: torch.cholesky_inverse(lower),
        "solve": lambda: torch.linalg.solve(matrix, matrix[:, :4]),
        "triangular solve": lambda: torch.linalg.solve_triangular(lower, matrix[:, :4], upper=False),
        "product": lambda: matrix @ matrix,
        "attention's gradient": lambda: _attention_gradient(matrix.float()),
        "sums at indices": lambda: matrix.float().new_zeros(2, width).index_add(0, _halves(width), matrix.float()),
    }
    return {
        name: all(torch.equal(call(), first) for _ in range(3)) for name, call in calls.items() for first in [call()]
    }


def _attention_gradient(rows: Tensor) -> Tensor:
    """Return the gradient of queries, of as many tokens as *rows* has, behind a mask as the editors' passes have one."""
    asked = rows.view(1, 4, len(rows), -1).clone().requires_grad_()
    mask = torch.zeros(1, 1, len(rows), len(rows), device=rows.device)
    out = functional.scaled_dot_product_attention(asked, asked, asked, attn_mask=mask)
    return torch.autograd.grad(out.square().sum(), asked)[0]


def _halves(width: int) -> Tensor:
    return torch.arange(width, device=device()) % 2


@dataclass(frozen=True, slots=True)
class Counts:
    """What a call asked of the device. On a CPU only the arithmetic is known; the rest is 0.

    Attributes:
        flop: of matrix products and attention; solves and factorisations are left out.
        launches: kernels and fills started.
        waits: times that the host waited for the device.
        uploads: copies from the host's memory.
        busy: seconds in which kernels ran.
    """

    flop: float = 0
    launches: float = 0
    waits: float = 0
    uploads: float = 0
    busy: float = 0

    def times(self, factor: float) -> Counts:
        """Return *factor* times as much of everything."""
        return Counts(**{name: factor * value for name, value in asdict(self).items()})

    def plus(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


class _Arithmetic(TorchDispatchMode):
    """Adds up the arithmetic of the operations inside its block, those of backward passes included.

    torch's own ``FlopCounterMode`` also hooks every module, which an editor takes for somebody else's change of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **kwargs, out_val=out)
        return out


def counted(call: Callable[[], object]) -> Counts:
    """Return what *call* asks of the device; it is called once, or twice on a card: profiling slows what Python watches."""
    with _Arithmetic() as arithmetic:
        call()
    if device().type == "cpu":
        return Counts(flop=arithmetic.flop)
    from torch.profiler import ProfilerActivity, profile

    torch.accelerator.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        # The profile's own wait, so that the last kernels are in it; it is taken off again.
        torch.accelerator.synchronize()
    return tally(seen.key_averages()).plus(Counts(flop=arithmetic.flop, waits=-1))


def tally(events: Iterable[Any]) -> Counts:
    """Return launches, waits, uploads and busy seconds of a profile's *events*, averaged by name."""
    events = list(events)

    def count(names: tuple[str, ...]) -> int:
        return sum(event.count for event in events if event.key.startswith(names))

    # What ran on the card stands there by the kernel's own name.
    busy = sum(event.self_device_time_total for event in events if event.device_type.name != "CPU") / 1e6
    return Counts(launches=count(LAUNCHES), waits=count(WAITS), uploads=count(UPLOADS), busy=busy)


def per_step(few: Counts, more: Counts, difference: int) -> Counts:
    """Return what one step asks, from two calls of which *more* has *difference* steps more than *few*."""
    return more.plus(few.times(-1)).times(1 / difference)


class _Live(TorchDispatchMode):
    """Follows the tensors that operations inside its block make, from the first that holds a storage to the last."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        # By address. What was there before counts nothing, wherever it is seen again.
        self._held: dict[int, int] = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._held:
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, address: int) -> None:
        self.now -= self._held.pop(address, 0)


def live_bytes(call: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Return the most bytes that tensors made by *call* held at once; *known* were there before. On any device."""
    with _Live(known) as live:
        call()
    return live.peak


class Peak:
    """The most memory that was allocated on the card since it was made; of a CPU's it knows nothing (:func:`live_bytes` does)."""

    def __init__(self) -> None:
        if device().type != "cpu":
            torch.accelerator.reset_peak_memory_stats()

    def gigabytes(self) -> float | None:
        """Return 10⁹ bytes."""
        return torch.accelerator.max_memory_allocated() / 1e9 if device().type != "cpu" else None
