"""Log-probabilities of given tokens, without the logits of all others: the head part by part, forward and backward at once.

The gradient of ``log Σ exp(W h)`` is the mean of the rows of ``W`` under the soft-max. Both are gathered while a part of ``W`` is
in the processor's cache, so ``W`` is read once per step and no ``[n, vocabulary]`` table is ever written.

Shape legend: ``n`` positions, ``k`` tokens asked for, ``V`` vocabulary, ``d`` width of the stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raysweep.models import partial
from raysweep.models.lm import LanguageModel

PART = 2**20  # weights of a part: 4 MB, so that the second product finds it in the cache


def of(lm: LanguageModel, hidden: Tensor, which: Tensor, wanted: Tensor) -> Tensor:
    """Return ``log p [k]`` (fp32) of the ids *wanted* at the rows *which* of the normed states ``hidden [n, d]``.

    Differentiable in *hidden*. Heads other than a bare fp32 matrix that is not trained, and accelerators, go the ordinary way.
    """
    head: Any = lm.part(lm.layout.head)
    if not _bare(head) or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return partial.logits(lm, hidden).log_softmax(-1)[which, wanted]
    weight: Tensor = head.weight
    log_sum: Tensor = _LogSum.apply(hidden, weight)  # type: ignore[no-untyped-call]
    return (hidden[which] * weight[wanted]).sum(-1) - log_sum[which]


def _bare(head: Any) -> bool:
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    constant = head.weight.dtype == torch.float32 and not head.weight.requires_grad
    return constant and getattr(head, "bias", None) is None


class _LogSum(torch.autograd.Function):
    """``log Σ exp(W h)`` of each row ``[n]``; its gradient is made in the same pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        n, d = hidden.shape
        top, total = hidden.new_full((n, 1), -torch.inf), hidden.new_zeros(n, 1)
        mean = torch.zeros_like(hidden)
        for part in torch.split(weight, max(1, PART // d)):
            logits = hidden @ part.T
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            kept, p = (top - higher).exp(), logits.sub_(higher).exp_()
            total, top = total * kept + p.sum(1, keepdim=True), higher
            if ctx.needs_input_grad[0]:
                mean = torch.addmm(mean * kept, p, part)
        ctx.save_for_backward(mean / total)
        return (top + total.log())[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mean,) = ctx.saved_tensors
        return grads[0][:, None] * mean, None
