"""Modules that take the place of others (memory editors), and how they learn which rows they are given.

A replacement module that acts at one token, or that decides for a whole row, must know where each row's prompt ends and which
tokens are padding. Whoever runs the model says so with :func:`row_context`; outside of it every token counts and the prompt ends
with the row.

Shape legend: ``B`` rows, ``T`` tokens of a padded row, ``d_in`` and ``d_out`` of a linear map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class RowContext:
    """What replacement modules must know of the rows of a batch.

    Attributes:
        last: ``[B]`` index of each prompt's last token.
        mask: ``[B, T]``, 1 = a real token.
    """

    last: Tensor
    mask: Tensor


class ReplacementModule(nn.Module):
    """A module around the linear map that it replaces; it has the same weight and bias.

    Attributes:
        inner: the linear map.
        context: the rows that are being run, None = not known.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training
        self.context: RowContext | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The inner map's weight."""
        return cast("nn.Parameter", self.inner.weight)

    @property
    def bias(self) -> nn.Parameter | None:
        """The inner map's bias, or None."""
        return cast("nn.Parameter | None", getattr(self.inner, "bias", None))

    def last_tokens(self, states: Tensor) -> Tensor:
        """Return ``[B]`` the index of each prompt's last token among ``states [B, T, d]``."""
        # a pass may be cut short of the prompt's end
        end = states.shape[1] - 1
        if self.context is None:
            return torch.full((states.shape[0],), end, device=states.device)
        return self.context.last.to(states.device).clamp(max=end)

    def real_tokens(self, states: Tensor) -> Tensor:
        """Return ``[B, T]`` True where a token of ``states [B, T, d]`` is real."""
        if self.context is None:
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return self.context.mask.to(states.device).bool()


def unwrap(module: nn.Module) -> nn.Module:
    """Return *module* without a replacement module around it."""
    return module.inner if isinstance(module, ReplacementModule) else module


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight ``[d_out, d_in]`` (logical orientation, a view) and bias ``[d_out]`` or None of a linear map."""
    # Linear stores [d_out, d_in]; GPT-2's Conv1D its transpose
    weight = cast("nn.Parameter", module.weight).detach()
    bias = cast("nn.Parameter | None", getattr(module, "bias", None))
    return (weight if isinstance(module, nn.Linear) else weight.t()), None if bias is None else bias.detach()


@contextmanager
def modules_replaced(lm: LanguageModel, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let *modules* take the place of those called so inside the ``with`` statement; what was there comes back."""
    originals: list[tuple[nn.Module, str, nn.Module | None]] = []
    copies = []
    try:
        for name, module in modules.items():
            owner_name, _, leaf = name.rpartition(".")
            owner = lm.part(owner_name)
            originals.append((owner, leaf, owner._modules[leaf]))
            owner._modules[leaf] = module
            if lm.layout.overwrites_mlp_output:
                # the tensor that comes out may be kept by the module, and is added to in place
                copies.append(module.register_forward_hook(lambda module, args, output: output.clone()))
        yield
    finally:
        for handle in copies:
            handle.remove()
        # in reverse, for a module may have been named twice
        for owner, leaf, original in reversed(originals):
            owner._modules[leaf] = original


def first_replaced_block(lm: LanguageModel) -> int | None:
    """Return the number of the first block with a replacement module in it, None if there is none at all."""
    for number in range(lm.n_blocks):
        if any(isinstance(m, ReplacementModule) for m in lm.part(lm.layout.block.format(number)).modules()):
            return number
    return None


@contextmanager
def row_context(lm: LanguageModel, last: Sequence[int], mask: Tensor) -> Iterator[None]:
    """Tell every replacement module, inside the ``with`` statement, where the prompts end and which tokens are real.

    Args:
        lm: the model.
        last: index of each prompt's last token, one per row (clamped at 0 for empty prompts).
        mask: ``[B, T]``, 1 = a real token.
    """
    listeners = [m for m in lm.module.modules() if isinstance(m, ReplacementModule)]
    # contexts nest: whoever is asked in the middle of a pass must not lose the outer one
    before = [m.context for m in listeners]
    context = RowContext(torch.tensor([max(q, 0) for q in last], device=mask.device), mask)
    try:
        for module in listeners:
            module.context = context
        yield
    finally:
        for module, earlier in zip(listeners, before, strict=True):
            module.context = earlier
