"""What the plain editors share: whole forward passes, hooks, changes of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raysweep.models import tokens
from raysweep.models.lm import LanguageModel

Changes = dict[str, Tensor]  # additive, by parameter name, oriented as the parameter is stored


def stored(lm: LanguageModel, name: str, logical: Tensor) -> Tensor:
    """Return a logical ``[d_out, d_in]`` change as parameter *name* is stored, in its precision."""
    return (logical.T if lm.transposed(name) else logical).to(lm.weight(name).dtype)


def add(lm: LanguageModel, changes: Mapping[str, Tensor]) -> None:
    """Add *changes* to the model, in place."""
    with torch.no_grad():
        for name, change in changes.items():
            lm.weight(name).add_(change)


@contextmanager
def put_back(lm: LanguageModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield copies of parameters; write them back at the end of the block."""
    before = {name: lm.weight(name).detach().clone() for name in names}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                lm.weight(name).copy_(tensor)


def logits(lm: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of every position: ``[B, T]`` → ``[B, T, vocabulary]``."""
    found: Tensor = lm.module(input_ids=ids, attention_mask=mask).logits
    return found


def first(value: Any) -> Tensor:
    """Return *value*, or its first element if it is a tuple."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


@contextmanager
def hooked(lm: LanguageModel, module: str, hook: Callable[..., Any]) -> Iterator[None]:
    """Let *hook* be a forward hook of *module* inside the block."""
    handle = lm.part(module).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def through(lm: LanguageModel, rows: Sequence[Sequence[int]], module: str) -> tuple[Tensor, Tensor, Tensor]:
    """Run the whole model on *rows*; return what enters and leaves *module* ``[B, T, …]``, and the mask ``[B, T]``."""
    seen: list[Tensor] = []

    def hook(_: Any, arguments: tuple[Any, ...], output: Any) -> None:
        # copies: some blocks add to what their MLP has put out in place
        seen[:] = [first(arguments).clone(), first(output).clone()]

    ids, mask = tokens.pad(rows, lm.device)
    with torch.no_grad(), hooked(lm, module, hook):
        logits(lm, ids, mask)
    return seen[0], seen[1], mask


def at_subject(lm: LanguageModel, templates: Sequence[str], subject: str, module: str) -> tuple[Tensor, Tensor]:
    """Return what enters and leaves *module* ``[B, d]`` at the subject's last token of each filled-in template."""
    rows = [tokens.encode(lm, t.replace("{}", subject)) for t in templates]
    spots = [tokens.subject_last(lm, t, subject) for t in templates]
    entering, leaving, _ = through(lm, rows, module)
    return entering[range(len(rows)), spots], leaving[range(len(rows)), spots]


def damped(moments: Tensor, damping: float) -> Tensor:
    """Return ``C + damping · mean(diag C) · I`` in fp64."""
    full = moments.double()
    return full + damping * full.diagonal().mean() * torch.eye(full.shape[0], dtype=full.dtype, device=full.device)
