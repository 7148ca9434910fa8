"""Instruments: capture what flows through a module, or change it. Context managers that always undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from raysweep.models.lm import LanguageModel

Side = Literal["input", "output"]


def first(value: object) -> Tensor:
    """Return *value*, or its first element if it is a tuple (blocks of some families return tuples)."""
    tensor = value[0] if isinstance(value, tuple) else value
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def capture(lm: LanguageModel, sides: Sequence[tuple[str, Side]]) -> Iterator[dict[tuple[str, Side], Tensor]]:
    """Record the input or output of modules during the forward passes inside the ``with`` statement.

    Args:
        lm: the model.
        sides: pairs of module name and side.

    Yields:
        A dict filled by each forward pass: ``{(name, side): tensor}``, on the model's device wherever the module is; the last
        pass wins. Tensors keep their graph.
    """
    captured: dict[tuple[str, Side], Tensor] = {}
    handles, home = [], lm.device

    def recorder(name: str, side: Side) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
            if side == "output":
                captured[name, side] = first(output).to(home)
                # what the block adds in place is added to a copy, so that what was captured stays what the module put out
                if lm.layout.overwrites_mlp_output and isinstance(output, Tensor):
                    return output.clone()
            else:
                # some families pass the hidden states by keyword, some by position
                captured[name, side] = first(args if args else kwargs["hidden_states"]).to(home)
            return None

        return hook

    try:
        # inside the try: if the second name is wrong, the first hook is removed all the same
        for name, side in sides:
            handles.append(lm.part(name).register_forward_hook(recorder(name, side), with_kwargs=True))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def feed(module: nn.Module, states: Tensor) -> Iterator[None]:
    """Replace the hidden states that enter *module* (a block of the model) inside the ``with`` statement.

    Args:
        module: the block.
        states: ``[B, T, d]``, what it computes with, whatever it is given.
    """

    def hook(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        # whichever way the caller passes them, they must be replaced
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
