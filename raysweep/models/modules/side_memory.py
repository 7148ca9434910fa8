"""A linear map with side memories: a row that excites one of them gets that memory's output (WISE, Wang et al. 2024).

With the activation ``φ``, the frozen weight ``W`` and a side memory ``W′`` (arXiv 2405.14768):

    Δ(x) = ‖φ(W′ x + b) − φ(W x + b)‖₂,   averaged over a row's tokens;   the row takes W′ if Δ reaches a threshold

Shape legend: ``B`` rows, ``T`` tokens of a row, ``d_in`` and ``d_out`` of the linear map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from raysweep.models.lm import LanguageModel
from raysweep.models.modules.replacement import ReplacementModule, weight_and_bias

Activation = Callable[[Tensor], Tensor]
LONG_ROW = 100  # rows longer than this are judged by their largest token, not by the mean


def mlp_activation(lm: LanguageModel) -> Activation:
    """Return the activation ``φ`` of the model's MLPs, by its configuration."""
    function: Activation = ACT2FN[getattr(lm.module.config, lm.layout.activation)]
    return function


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
    distance: Tensor = torch.linalg.vector_norm((act(other) - act(base)).float(), dim=-1)
    return distance


def mean_distance(distance: Tensor, real: Tensor) -> Tensor:
    """Average distances ``[B, T]`` over the tokens of each row at which ``real [B, T]`` is True; return ``[B]``."""
    return (distance * real).sum(1) / real.sum(1).clamp(min=1)


class SideMemory(ReplacementModule):
    """Routes each row to the frozen map or to one of several other weights.

    *retrieve*: the first weight (the side memory that is being written) serves a row that moves its activations by at least
    its threshold; a later one takes the row if it moves them more than the best so far and more than its own threshold.
    Otherwise (merge mode; two weights, one threshold): the one that moves them more, unless both stay below it.
    Rows sent to the frozen map pass through bit for bit.

    Args:
        inner: the frozen map.
        act: the activation ``φ``.
        weights: makes the other weights, ``[d_out, d_in]`` each (logical orientation); biases are the frozen map's.
        thresholds: one per weight.
        retrieve: whether weights were written in turn (above), or merged.
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
        # merging costs; done once, and only if the model is asked something
        self._make = weights
        self._weights: tuple[Tensor, ...] = ()

    @property
    def weights(self) -> Sequence[Tensor]:
        """The weights besides the frozen one."""
        if not self._weights:
            frozen = weight_and_bias(self.inner)[0]
            # on the frozen weight's device and in its precision, once
            self._weights = tuple(w.to(frozen.device, frozen.dtype) for w in self._make())
        return self._weights

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs ``[B, T, d_out]`` for ``states [B, T, d_in]``."""
        out: Tensor = self.inner(states)
        frozen, bias = weight_and_bias(self.inner)
        # a Conv1D's output is made in another order; compare like with like
        base = out if isinstance(self.inner, nn.Linear) else F.linear(states, frozen, bias)
        real = self.real_tokens(states)
        best: Tensor | None = None
        for weight, threshold in zip(self.weights, self.thresholds, strict=True):
            other = F.linear(states, weight, bias)
            distance = self._row_distance(base, other, real)
            # the first weight needs its threshold, a later one must exceed it
            wins = distance >= threshold if best is None or not self.retrieve else distance > threshold
            if best is not None:
                wins = wins & (distance > best)
            out = torch.where(wins[:, None, None], other, out)
            best = (
                distance if best is None else torch.where(wins, distance, best)
            )  # the first is to beat even if it lost
        return out

    def _row_distance(self, base: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """Return ``[B]`` how far each row's activations are from the frozen map's."""
        distance = activation_distance(self.act, base, other)
        # padding must not be the largest
        largest = distance.masked_fill(~real, 0.0).max(1).values
        return torch.where(real.sum(1) > LONG_ROW, largest, mean_distance(distance, real))
