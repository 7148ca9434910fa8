"""Log-probabilities of given tokens, without the logits of all others: the head part by part, forward and backward at once.

The gradient of ``−log p`` comes from the mean of the rows of ``W`` under the soft-max. Both are gathered while a part of ``W`` is
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
    anchor = wanted.new_zeros(len(hidden)).scatter_reduce(0, which, wanted, "amax")  # one id of each row
    surprise: Tensor = _Surprise.apply(hidden, weight, anchor)  # type: ignore[no-untyped-call]
    return (hidden[which] * (weight[wanted] - weight[anchor[which]])).sum(-1) - surprise[which]


def _bare(head: Any) -> bool:
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    constant = head.weight.dtype == torch.float32 and not head.weight.requires_grad
    return constant and getattr(head, "bias", None) is None


class _Surprise(torch.autograd.Function):
    """``−log p`` of one id per row ``[n]``; its gradient is made in the same pass.

    That id is left out of the sums, so neither the value nor the gradient is a difference of nearly equal numbers where p → 1.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, anchor: Tensor) -> Tensor:
        size = max(1, PART // hidden.shape[1])
        logit = (hidden * weight[anchor]).sum(1, keepdim=True)
        top, others, mean = logit, torch.zeros_like(logit), torch.zeros_like(hidden)
        for i, part in enumerate(torch.split(weight, size)):
            logits = hidden @ part.T
            here = (anchor // size == i).nonzero()[:, 0]
            logits[here, anchor[here] % size] = -torch.inf
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            kept, p = (top - higher).exp(), logits.sub_(higher).exp_()
            others, top = others * kept + p.sum(1, keepdim=True), higher
            if ctx.needs_input_grad[0]:
                mean = torch.addmm(mean * kept, p, part)
        own = (logit - top).exp()
        ctx.save_for_backward((mean - others * weight[anchor]) / (own + others))
        return torch.where(own > 0.5, (others / own).log1p(), top - logit + (own + others).log())[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0][:, None] * gradient, None, None
