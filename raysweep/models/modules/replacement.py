"""Modules that stand in for others (memory editors), and how they learn what is being asked.

A stand-in that acts at one token, or that decides for a whole row, must know where each row's prompt ends and which tokens are
padding. Whoever asks the model says so with :func:`asking`; outside of it every token counts and the prompt ends with the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class RowContext:
    """What is asked of a batch of rows.

    Attributes:
        last: ``[B]`` index of each prompt's last token.
        mask: ``[B, T]``, 1 = a real token.
    """

    last: Tensor
    mask: Tensor


class ReplacementModule(nn.Module):
    """A module around the linear map that it replaces; ``question`` is what is being asked now, None = not known."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training
        self.context: RowContext | None = None

    @property
    def weight(self) -> Any:
        """The inner map's weight."""
        return self.inner.weight

    @property
    def bias(self) -> Any:
        """The inner map's bias, or None."""
        return getattr(self.inner, "bias", None)

    def last_tokens(self, states: Tensor) -> Tensor:
        """Return ``[B]`` the index of each prompt's last token among ``states [B, T, d]``."""
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
    """Return *module* without a stand-in around it."""
    return module.inner if isinstance(module, ReplacementModule) else module


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight ``[d_out, d_in]`` (logical orientation, a view) and bias of a linear map."""
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    weight = weight.detach()
    return (weight if isinstance(module, nn.Linear) else weight.t()), None if bias is None else bias.detach()


@contextmanager
def modules_replaced(lm: LanguageModel, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let *modules* take the place of those called so inside the block; what was there comes back."""
    kept: list[tuple[nn.Module, str, nn.Module | None]] = []
    try:
        for name, module in modules.items():
            owner_name, _, leaf = name.rpartition(".")
            owner = lm.part(owner_name)
            kept.append((owner, leaf, owner._modules[leaf]))
            owner._modules[leaf] = module
        yield
    finally:
        for owner, leaf, module_before in reversed(kept):
            owner._modules[leaf] = module_before


def first_replaced_block(lm: LanguageModel) -> int | None:
    """Return the first block in which there is a stand-in, None if there is none at all."""
    for number in range(lm.n_blocks):
        if any(isinstance(m, ReplacementModule) for m in lm.part(lm.layout.block.format(number)).modules()):
            return number
    return None


@contextmanager
def row_context(lm: LanguageModel, last: Sequence[int], mask: Tensor) -> Iterator[None]:
    """Tell every stand-in of the model, inside the block, where the prompts end and which tokens are real.

    Args:
        lm: the model.
        last: index of each prompt's last token, one per row (clamped at 0 for empty prompts).
        mask: ``[B, T]``, 1 = a real token.
    """
    listeners = [m for m in lm.module.modules() if isinstance(m, ReplacementModule)]
    before = [m.context for m in listeners]
    question = RowContext(torch.tensor([max(q, 0) for q in last], device=mask.device), mask)
    try:
        for module in listeners:
            module.context = question
        yield
    finally:
        for module, earlier in zip(listeners, before, strict=True):
            module.context = earlier
