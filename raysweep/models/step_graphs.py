"""Steps recorded once and replayed: what the host would ask for operation by operation, it asks for in one call.

A step of an optimisation is some thousand operations, always the same ones, which an accelerator does about as fast as Python can
ask for them. Recorded as a graph they are one launch (``torch.accelerator.Graph``; CUDA graphs on a card of NVIDIA). A graph is
bound to the memory in which it was recorded, and to its sizes. So

* all that a step reads and writes lies in tensors that stay where they are, a :class:`StaticStep`'s; another record is copied
  into them;
* records are filled up to few sizes (``forward.resume.bucket``), and there is a graph for each size that came
  (:class:`StepGraphs`);
* inside a step nothing waits for the device and nothing is uploaded: a recording that does raises.

A graph's memory is shared by all of one :class:`StepGraphs`, since only one of them runs at a time. What holds the graphs is held
by an editor, and goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from raysweep.errors import ModelError
from raysweep.models.forward.model_guard import ModelGuard

T = TypeVar("T")

# Fields that say what the model is: its parameters, which stay where they are as long as a ModelGuard says so, and the cache of
# transformers, which blocks in few operations do not read.
_OF_THE_MODEL = frozenset({"blocks", "final_norm", "cache"})


class Graph(Protocol):
    """Some work on a device, recorded."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do *work* where it will be recorded, so that libraries set themselves up before."""

    def capture(self, work: Callable[[], None], inputs: Sequence[Tensor]) -> None:
        """Record *work*, which reads and writes *inputs*, without doing it."""

    def replay(self) -> None:
        """Do what was recorded."""


class AcceleratorGraph:
    """A graph of the process's accelerator.

    Attributes:
        pool: its memory; None before :meth:`capture`, unless it was given that of another one.
    """

    def __init__(self, pool: tuple[int, int] | None = None) -> None:
        self.pool = pool
        self._stream = torch.Stream()
        self._graph: torch.accelerator.Graph | torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do *work* on the stream on which it will be recorded; nothing may be recorded on the default stream."""
        self._stream.wait_stream(torch.accelerator.current_stream())
        with self._stream:
            work()
        torch.accelerator.current_stream().wait_stream(self._stream)

    def capture(self, work: Callable[[], None], inputs: Sequence[Tensor]) -> None:
        """Record *work*; raises what the device says if it waits, or asks for memory that is not its own."""
        self._stream.wait_stream(torch.accelerator.current_stream())
        with self._stream:
            self._graph = _record(work, self.pool)
        torch.accelerator.current_stream().wait_stream(self._stream)
        self.pool = self._graph.pool()
        # the graph knows their addresses only
        self._inputs = tuple(inputs)

    def replay(self) -> None:
        """Do what was recorded, on the current stream."""
        assert self._graph is not None
        self._graph.replay()


def _record(work: Callable[[], None], pool: tuple[int, int] | None) -> torch.accelerator.Graph | torch.cuda.CUDAGraph:
    """Record *work* on the current stream, in the memory *pool*."""
    # thread_local: another thread of the process, Ray's say, may do as it likes meanwhile
    if hasattr(torch.accelerator, "Graph"):
        graph = torch.accelerator.Graph(pool=pool, capture_error_mode="thread_local")
        with graph:
            work()
        return graph
    # older torch records on NVIDIA alone
    older = torch.cuda.CUDAGraph()
    older.capture_begin(cast("torch.cuda._POOL_HANDLE | None", pool), capture_error_mode="thread_local")
    try:
        work()
    finally:
        older.capture_end()
    return older


def graph_on(device: torch.device, pool: tuple[int, int] | None) -> Graph:
    """Return an empty graph for *device*.

    Raises:
        ModelError: work on *device* cannot be recorded.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != device.type:
        raise ModelError(
            f"captured steps need a CUDA device; this model is on {device}",
            hint="leave value.captured out",
        )
    return AcceleratorGraph(pool)


def map_tensors(tree: T, change: Callable[[Tensor], Tensor]) -> T:
    """Return *tree* with every tensor of it changed, but for those of the model.

    A tree is a tensor, a dataclass, a tuple or a list of trees, or anything else, which is kept.
    """
    if isinstance(tree, Tensor):
        return cast(T, change(tree))
    if is_dataclass(tree) and not isinstance(tree, type | ModelGuard):
        parts = {f.name: getattr(tree, f.name) for f in fields(tree) if f.name not in _OF_THE_MODEL}
        return cast(T, replace(tree, **{name: map_tensors(part, change) for name, part in parts.items()}))
    if isinstance(tree, tuple | list):
        changed = [map_tensors(part, change) for part in tree]
        # a named tuple takes its fields one by one
        return cast(T, type(tree)(*changed) if hasattr(tree, "_fields") else type(tree)(changed))
    return tree


def tensors_of(tree: object) -> list[Tensor]:
    """Return the tensors that :func:`map_tensors` would change, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(tree, note)
    return found


def _narrowed(tensor: Tensor) -> Tensor:
    """Return *tensor* without the repetitions of an expanded axis: one of each number in memory."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        tensor = tensor.narrow(axis, 0, 1) if size > 1 and stride == 0 else tensor
    return tensor


def _own_copy(tensor: Tensor) -> Tensor:
    """Return a copy that lies in memory as *tensor* does: kernels of attention want rows of a mask to begin at certain places."""
    once = _narrowed(tensor.detach())
    copy = torch.empty_strided(once.shape, once.stride(), dtype=once.dtype, device=once.device).copy_(once)
    return copy.expand(tensor.shape)


@dataclass
class StaticStep:
    """A step whose inputs stay where they are: done as it is written once, then recorded, then replayed.

    Attributes:
        inputs: what the step reads and writes.
        graph: of the step.
        work: the step; changes *inputs* in place, and reads nothing else that is not the model's.
        captures: how often it was recorded, 0 or 1.
    """

    inputs: object
    graph: Graph
    work: Callable[[], None]
    captures: int = 0
    _warm: bool = False

    def load(self, inputs: object) -> None:
        """Copy *inputs* of the same kind and sizes into the place of the step's own."""
        for own, new in zip(tensors_of(self.inputs), tensors_of(inputs), strict=True):
            _narrowed(own).copy_(_narrowed(new.detach()))

    def run(self) -> None:
        """Do one step."""
        if not self._warm:
            self.graph.warm_up(self.work)
            self._warm = True
            return
        if not self.captures:
            self.graph.capture(self.work, tensors_of(self.inputs))
            self.captures = 1
        self.graph.replay()


class StepGraphs:
    """The recorded steps of one editor, by the sizes of what they read.

    Attributes:
        steps: what was prepared, by a description of the inputs.
    """

    def __init__(self) -> None:
        self.steps: dict[tuple[object, ...], StaticStep] = {}

    @property
    def captures(self) -> int:
        """How many steps were recorded."""
        return sum(step.captures for step in self.steps.values())

    def prepare(self, inputs: T, guard: ModelGuard, make: Callable[[T], Callable[[], None]]) -> tuple[StaticStep, T]:
        """Return the step for inputs of these sizes, with *inputs* in it, and its own copy of them.

        Args:
            inputs: what the step reads and writes.
            guard: the model as it is; another place of its parameters is another step.
            make: returns the step, given inputs that stay where they are.

        Raises:
            ModelError: work on the inputs' device cannot be recorded.
        """
        tensors = tensors_of(inputs)
        # a parameter that lies elsewhere is another input
        key = (*((t.shape, t.stride(), t.dtype) for t in tensors), *((id(p), at) for *_, p, at in guard.parameters))
        if key not in self.steps:
            pool = next((s.graph.pool for s in self.steps.values() if isinstance(s.graph, AcceleratorGraph)), None)
            graph = graph_on(tensors[0].device, pool)
            own = map_tensors(inputs, _own_copy)
            self.steps[key] = StaticStep(own, graph, make(own))
        step = self.steps[key]
        step.load(inputs)
        return step, cast(T, step.inputs)
