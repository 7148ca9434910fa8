"""Log-probabilities of given tokens and shifts of whole distributions, their gradients made in the same pass.

The gradient of ``−log p`` comes from the mean of the rows of ``W`` under the soft-max, that of a KL divergence from the mean times
the log-ratio. All are gathered while a part of ``W`` is in the processor's cache, so ``W`` is read once per step and no
``[n, vocabulary]`` table is ever written.

Shape legend: ``n`` positions, ``k`` tokens asked for, ``t`` distributions compared, ``V`` vocabulary, ``d`` width of the stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raysweep.models.forward import blocks, matmul
from raysweep.models.lm import LanguageModel

PART = 2**20  # weights of a part: 4 MB, so that the second product finds it in the cache


def of(lm: LanguageModel, hidden: Tensor, which: Tensor, wanted: Tensor) -> Tensor:
    """Return ``log p [k]`` (fp32) of the ids *wanted* at the rows *which* of the normed states ``hidden [n, d]``.

    Differentiable in *hidden*. Heads other than a bare fp32 matrix that is not trained, and accelerators, go the ordinary way.
    """
    head: Any = lm.part(lm.layout.head)
    if not _bare(head) or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return blocks.logits(lm, hidden).log_softmax(-1)[which, wanted]
    weight: Tensor = head.weight
    anchor = wanted.new_zeros(len(hidden)).scatter_reduce(0, which, wanted, "amax")  # one id of each row
    surprise: Tensor = _Pass.apply(hidden, weight, anchor, None)[0]  # type: ignore[no-untyped-call]
    return (hidden[which] * (weight[wanted] - weight[anchor[which]])).sum(-1) - surprise[which]


class Told(NamedTuple):
    """Attributes:
    logp: ``log p [k]`` of the wanted ids (fp32).
    best: ``[k]`` whether each is the arg-max.
    kl: ``KL(P ‖ P₀) [t]``.
    base: ``log P₀ [t, V]``, without gradient.
    """

    logp: Tensor
    best: Tensor
    kl: Tensor
    base: Tensor


def told(lm: LanguageModel, hidden: Tensor, wanted: Tensor, base: Tensor | None) -> Told:
    """Read log-probabilities at the first ``k`` of the normed states ``hidden [k + t, d]`` and divergences at the others.

    Differentiable in *hidden*. *wanted* ``[k]`` are ids; *base* is ``log P₀``, None: the present distributions (KL 0).
    Heads other than a bare fp32 matrix that is not trained, and accelerators, go the ordinary way.
    """
    head: Any = lm.part(lm.layout.head)
    if _bare(head) and hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        surprise, *rest = _Pass.apply(hidden, head.weight, wanted, base)  # type: ignore[no-untyped-call]
        return Told(-surprise, *rest)
    k = len(wanted)
    logp = blocks.logits(lm, hidden).log_softmax(-1)
    now = logp[k:]
    base = now.detach() if base is None else base
    found = logp[:k].gather(1, wanted[:, None])[:, 0]
    return Told(found, logp[:k].argmax(-1) == wanted, (now.exp() * (now - base)).sum(-1), base)


def answered(lm: LanguageModel, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the arg-max ids ``[n]`` and ``log p [n]`` (fp32) of *labels* at the normed states ``hidden [n, d]``; no gradient."""
    head: Any = lm.part(lm.layout.head)
    if not _bare(head) or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        logits = blocks.logits(lm, hidden)
        return logits.argmax(-1), logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(-1)
    n, weight = len(hidden), head.weight
    rows, size = matmul.padded(hidden), max(1, PART // hidden.shape[1])
    sums, top, best = hidden.new_zeros(n), hidden.new_full((n,), -torch.inf), torch.zeros_like(labels)
    asked = torch.zeros_like(sums)
    for begin in range(0, len(weight), size):
        logits = matmul.forward(rows, weight[begin : begin + size])[:n]
        here = ((labels >= begin) & (labels < begin + size)).nonzero()[:, 0]
        asked[here] = logits[here, labels[here] - begin]
        which = logits.argmax(1)
        highest = logits.gather(1, which[:, None])[:, 0]
        best = torch.where(highest > top, which + begin, best)
        higher = torch.maximum(top, highest)
        sums, top = (logits - higher[:, None]).exp_().sum(1) + sums * (top - higher).exp(), higher
    return best, asked - top - sums.log()


def _bare(head: Any) -> bool:
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    constant = head.weight.dtype == torch.float32 and not head.weight.requires_grad
    return constant and getattr(head, "bias", None) is None


class _Pass(torch.autograd.Function):
    """``−log p [k]`` of one id per row of the first ``k``, and ``KL(P ‖ P₀)`` at the others; the gradient is made in the same pass.

    That id is left out of the sums, so neither the value nor the gradient is a difference of nearly equal numbers where p → 1.
    For the same reason the log-ratios of a divergence are taken from that of P₀'s most likely token.
    Returns also whether each id is the arg-max, and ``log P₀``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, anchor: Tensor, base: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, k = len(hidden), len(anchor)
        size, twice = max(1, PART // hidden.shape[1]), slice(n, 2 * n - k)
        logit = (hidden[:k] * weight[anchor]).sum(1, keepdim=True)
        # compared rows come twice: for the sum of p and for that of p times the log-ratio
        rows = matmul.padded(torch.cat([hidden, hidden[k:]]))
        top = torch.cat([logit, logit.new_full((len(rows) - k, 1), -torch.inf)])
        sums, mean = torch.zeros_like(top), torch.zeros_like(rows)
        ratio, raw = logit.new_zeros(n - k, 1), []
        if base is not None and n > k:
            likely = base.argmax(1)
            ratio = (hidden[k:] * weight[likely]).sum(1, keepdim=True) - base.gather(1, likely[:, None])
        where: dict[int, tuple[list[int], list[int]]] = {}
        for row, token in enumerate(anchor.tolist()):
            found = where.setdefault(token // size, ([], []))
            found[0].append(row)
            found[1].append(token % size)
        for i, part in enumerate(torch.split(weight, size)):
            logits = matmul.forward(rows, part)
            if i in where:
                logits[where[i]] = -torch.inf
            if n > k:
                raw.append(logits[k:n].clone())
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            kept, p = (top - higher).exp(), logits.sub_(higher).exp_()
            if base is not None and n > k:
                p[twice] *= raw.pop() - base[:, i * size : i * size + len(part)] - ratio
            sums, top = torch.addcmul(p.sum(1, keepdim=True), sums, kept), higher
            if ctx.needs_input_grad[0]:
                mean = matmul.backward(p, part, mean * kept)
        own, others = (logit - top[:k]).exp(), sums[:k]
        surprise = torch.where(own > 0.5, (others / own).log1p(), top[:k] - logit + (own + others).log())
        whole, moved = sums[k:n], sums[twice] / sums[k:n]
        level = top[k:n] + whole.log()
        kl = logit.new_zeros(n - k) if base is None else (moved + ratio - level)[:, 0]
        if ctx.needs_input_grad[0]:
            asked = (mean[:k] - others * weight[anchor]) / (own + others)
            compared = torch.zeros_like(mean[k:n]) if base is None else (mean[twice] - moved * mean[k:n]) / whole
            ctx.save_for_backward(asked, compared)
        best = (top[:k] == logit)[:, 0]
        base = base if base is not None else torch.cat([*raw, level[:, :0]], dim=1) - level
        ctx.mark_non_differentiable(best, base)
        return surprise[:, 0], best, kl, base

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        asked, compared = ctx.saved_tensors
        return torch.cat([grads[0][:, None] * asked, grads[2][:, None] * compared]), None, None, None
