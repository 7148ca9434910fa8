"""A linear map with side memories: a row that excites one of them gets that memory's output (WISE; editors.md §11.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from raysweep.models.lm import LanguageModel
from raysweep.models.modules.replacement import ReplacementModule, weight_and_bias

Activation = Callable[[Tensor], Tensor]
LONG_ROW = 100  # rows longer than this are judged by their largest token, not by the mean


def mlp_activation(lm: LanguageModel) -> Activation:
    """Return the model's MLP activation."""
    config: Any = lm.module.config
    name = getattr(config, "hidden_act", None) or config.activation_function
    found: Activation = ACT2FN[name]
    return found


class FixedOutput(ReplacementModule):
    """Returns a given output, whatever comes in."""

    def __init__(self, inner: nn.Module, output: Tensor) -> None:
        super().__init__(inner)
        self.output = output

    def forward(self, states: Tensor) -> Tensor:
        """Return the given output."""
        return self.output


def activation_distance(act: Activation, base: Tensor, other: Tensor) -> Tensor:
    """Return ``[B, T]`` the distances ``‖φ(other) − φ(base)‖₂`` of two outputs ``[B, T, d_out]``, in fp32."""
    found: Tensor = torch.linalg.vector_norm((act(other) - act(base)).float(), dim=-1)
    return found


def mean_distance(distance: Tensor, real: Tensor) -> Tensor:
    """Average distances ``[B, T]`` over the real tokens of each row."""
    return (distance * real).sum(1) / real.sum(1).clamp(min=1)


class SideMemory(ReplacementModule):
    """Routes each row to the frozen map or to one of several other weights.

    *retrieve*: the first weight (the side memory that is being written) serves a row that moves its activations by at least
    its threshold; a later one takes the row if it moves them more than the best so far and more than its own threshold.
    Otherwise (merge mode; two weights, one threshold): the one that moves them more, unless both stay below it.
    Rows sent to the frozen map pass through bit for bit.

    Shape: weights ``[d_out, d_in]`` (logical orientation); biases are the frozen map's.
    """

    def __init__(
        self,
        inner: nn.Module,
        act: Activation,
        weights: Callable[[], Sequence[Tensor]],
        thresholds: Sequence[float],
        *,
        retrieve: bool = True,
    ) -> None:
        super().__init__(inner)
        self.act, self.thresholds, self.retrieve = act, tuple(thresholds), retrieve
        self._make = weights  # merging costs; done once, and only if the model is asked something
        self._weights: tuple[Tensor, ...] = ()

    @property
    def weights(self) -> Sequence[Tensor]:
        """The weights besides the frozen one."""
        if not self._weights:
            frozen = weight_and_bias(self.inner)[0]
            self._weights = tuple(w.to(frozen.device, frozen.dtype) for w in self._make())
        return self._weights

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, T, d_out]``."""
        out: Tensor = self.inner(states)
        frozen, bias = weight_and_bias(self.inner)
        base = out if isinstance(self.inner, nn.Linear) else F.linear(states, frozen, bias)
        real = self.real_tokens(states)
        best: Tensor | None = None
        for weight, threshold in zip(self.weights, self.thresholds, strict=True):
            other = F.linear(states, weight, bias)
            moved = self._moved(base, other, real)
            wins = moved >= threshold if best is None or not self.retrieve else moved > threshold
            if best is not None:
                wins = wins & (moved > best)
            out = torch.where(wins[:, None, None], other, out)
            best = moved if best is None else torch.where(wins, moved, best)  # the first is to beat even if it lost
        return out

    def _moved(self, base: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """Return ``[B]`` how far each row's activations are from the frozen map's."""
        distance = activation_distance(self.act, base, other)
        largest = distance.masked_fill(~real, 0.0).max(1).values
        return torch.where(real.sum(1) > LONG_ROW, largest, mean_distance(distance, real))
