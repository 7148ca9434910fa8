"""Log-probabilities of given tokens and shifts of whole distributions, their gradients made in the same pass.

With normed states ``x``, head ``W [V, d]`` and ``p = softmax(W x)``:

    −log p_y                                     gradient  Σ_v p_v W_v − W_y
    KL(P ‖ P₀) = Σ_v p_v log(p_v / p₀_v)         gradient  Σ_v p_v (log(p_v / p₀_v) − KL) W_v

So the first needs the mean of the rows of ``W`` under the soft-max, the second also their mean times the log-ratio. Both are
gathered while a part of ``W`` is in the processor's cache, with a running maximum as in online soft-max (Milakov & Gimelshein
2018, arXiv 1805.02867), so ``W`` is read once per step and no ``[n, V]`` table is ever written (docs/methods/forward.md).

Shape legend: ``n`` positions, ``k`` tokens whose probability is asked, ``t`` distributions compared, ``V`` vocabulary, ``d`` width
of the stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.models.forward import blocks, matmul
from raysweep.models.lm import LanguageModel

WEIGHTS_PER_PART = 2**20  # 4 MB, so that the second product finds a part in the cache


def target_logprobs(lm: LanguageModel, hidden: Tensor, rows: Tensor | None, targets: Tensor) -> Tensor:
    """Return the log-probabilities of given tokens; differentiable in *hidden*.

    Heads other than a bare fp32 matrix that is not trained, and accelerators, go the ordinary way.

    Args:
        lm: the model.
        hidden: normed states ``[n, d]``.
        rows: ``[k]`` at which of them each token is asked; None: one token at each, in order.
        targets: ``[k]`` their ids.

    Returns:
        ``log p [k]``, fp32.
    """
    head = lm.part(lm.layout.head)
    if not _is_bare(head) or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        logp = blocks.logits(lm, hidden).log_softmax(-1)
        return logp[rows, targets] if rows is not None else _at(logp, targets)
    weight = head.weight
    rows = torch.arange(len(hidden)) if rows is None else rows
    # The anchor: one of the ids asked at each state. The pass over W gives its log-probability, the others' follow from it.
    anchor = targets.new_zeros(len(hidden)).scatter_reduce(0, rows, targets, "amax")
    anchor_nll: Tensor = _FusedHead.apply(hidden, weight, anchor, None)[0]  # type: ignore[no-untyped-call]
    # log p_y = log p_anchor + x · (W_y − W_anchor): other tokens of the row cost a dot product each
    return (hidden[rows] * (weight[targets] - weight[anchor[rows]])).sum(-1) - anchor_nll[rows]


class HeadReadout(NamedTuple):
    """What :func:`logprobs_and_kl` reads.

    Attributes:
        logp: ``log p [k]`` of the targets, fp32.
        is_argmax: ``[k]`` whether each is the arg-max.
        kl: ``KL(P ‖ P₀) [t]``.
        base: ``log P₀ [t, V]``, without gradient.
    """

    logp: Tensor
    is_argmax: Tensor
    kl: Tensor
    base: Tensor


def logprobs_and_kl(lm: LanguageModel, hidden: Tensor, targets: Tensor, base: Tensor | None) -> HeadReadout:
    """Read log-probabilities at the first ``k`` states and divergences at the others; differentiable in *hidden*.

    Heads other than a bare fp32 matrix that is not trained, and accelerators, go the ordinary way.

    Args:
        lm: the model.
        hidden: normed states ``[k + t, d]``.
        targets: ids ``[k]``, one for each of the first ``k`` states.
        base: ``log P₀ [t, V]``; None: the present distributions, which makes the divergences zero.
    """
    head = lm.part(lm.layout.head)
    if _is_bare(head) and hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        nll, *rest = _FusedHead.apply(hidden, head.weight, targets, base)  # type: ignore[no-untyped-call]
        return HeadReadout(-nll, *rest)
    k = len(targets)
    asked, now = blocks.logits(lm, hidden).log_softmax(-1).split_with_sizes([k, len(hidden) - k])
    base = now.detach() if base is None else base
    # The log-ratios are left out of the gradient, where they would only add Σ ∂p = 0. So it is exactly 0 where the distributions
    # are the same: its rounding would be a step of full size to Adam, if nothing else has a gradient.
    kl = (now.exp() * (now - base).detach()).sum(-1)
    return HeadReadout(_at(asked, targets), asked.argmax(-1) == targets, kl, base)


def _at(logp: Tensor, targets: Tensor) -> Tensor:
    """Return ``log p [k]`` of one target each from ``logp [k, V]``.

    As torch's own loss, whose gradient writes each place once; that of an index would add up there, and sort to do it in order.
    """
    return -F.nll_loss(logp, targets, reduction="none")


def argmax_and_logprob(lm: LanguageModel, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most likely ids and the log-probabilities of *labels*; no gradient.

    Args:
        lm: the model.
        hidden: normed states ``[n, d]``.
        labels: ids ``[n]``.

    Returns:
        Arg-max ids ``[n]`` and ``log p [n]``, fp32.
    """
    head = lm.part(lm.layout.head)
    if not _is_bare(head) or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        logits = blocks.logits(lm, hidden)
        return logits.argmax(-1), logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(-1)
    n, weight = len(hidden), head.weight
    rows, size = matmul.pad_rows(hidden), max(1, WEIGHTS_PER_PART // hidden.shape[1])
    sums, top, best = hidden.new_zeros(n), hidden.new_full((n,), -torch.inf), torch.zeros_like(labels)
    label_logits = torch.zeros_like(sums)
    for begin in range(0, len(weight), size):
        logits = matmul.linear(rows, weight[begin : begin + size])[:n]
        # labels whose row of W is in this part
        here = ((labels >= begin) & (labels < begin + size)).nonzero()[:, 0]
        label_logits[here] = logits[here, labels[here] - begin]
        part_best = logits.argmax(1)
        highest = logits.gather(1, part_best[:, None])[:, 0]
        best = torch.where(highest > top, part_best + begin, best)
        higher = torch.maximum(top, highest)
        # Σ exp(logit − top) over all parts so far, rescaled whenever the maximum grows
        sums, top = (logits - higher[:, None]).exp_().sum(1) + sums * (top - higher).exp(), higher
    return best, label_logits - top - sums.log()


def _is_bare(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether the head is a plain fp32 matrix: no bias, no hook, nothing around it, not trained."""
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    constant = head.weight.dtype == torch.float32 and not head.weight.requires_grad
    return constant and getattr(head, "bias", None) is None


class _FusedHead(torch.autograd.Function):
    """``−log p [k]`` of one id (the anchor) per row of the first ``k``, and ``KL(P ‖ P₀) [t]`` at the others.

    The gradient is made in the same pass. The anchor is left out of the sums, so neither the value nor the gradient is a difference
    of nearly equal numbers where p → 1. For the same reason the log-ratios of a divergence are taken from that of P₀'s most likely
    token. Returns also whether each anchor is the arg-max, and ``log P₀``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, anchor: Tensor, base: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, k = len(hidden), len(anchor)
        size, twice = max(1, WEIGHTS_PER_PART // hidden.shape[1]), slice(n, 2 * n - k)
        logit = (hidden[:k] * weight[anchor]).sum(1, keepdim=True)
        # compared rows come twice: for the sum of p and for that of p times the log-ratio
        rows = matmul.pad_rows(torch.cat([hidden, hidden[k:]]))
        top = torch.cat([logit, logit.new_full((len(rows) - k, 1), -torch.inf)])
        sums, mean = torch.zeros_like(top), torch.zeros_like(rows)
        ratio, raw = logit.new_zeros(n - k, 1), []
        # log-ratio of P₀'s most likely token, but for log Z: logit − log p₀
        if base is not None and n > k:
            likely = base.argmax(1)
            ratio = (hidden[k:] * weight[likely]).sum(1, keepdim=True) - base.gather(1, likely[:, None])
        anchors_in = _anchors_by_part(anchor, size)
        for i, part in enumerate(torch.split(weight, size)):
            logits = matmul.linear(rows, part)
            if i in anchors_in:
                # the anchor's own term stays out of the sums
                logits[anchors_in[i]] = -torch.inf
            if n > k:
                # kept only for this part (with base), or to become log P₀ (without)
                raw.append(logits[k:n].clone())
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink, p = (top - higher).exp(), logits.sub_(higher).exp_()
            if base is not None and n > k:
                p[twice] *= raw.pop() - base[:, i * size : i * size + len(part)] - ratio
            # Σ_v e^(logit − top) (× log-ratio)
            sums, top = torch.addcmul(p.sum(1, keepdim=True), sums, shrink), higher
            if ctx.needs_input_grad[0]:
                # the same sum, times W_v
                mean = matmul.linear_backward(p, part, mean * shrink)
        # p_anchor = own / (own + others); −log p = log(1 + others / own), or the stable form of it where p is small
        own, others = (logit - top[:k]).exp(), sums[:k]
        nll = torch.where(own > 0.5, (others / own).log1p(), top[:k] - logit + (own + others).log())
        # KL = mean(logit − log p₀) − log Z, and mean(logit − log p₀) = shift + ratio
        total, shift = sums[k:n], sums[twice] / sums[k:n]
        log_z = top[k:n] + total.log()
        kl = logit.new_zeros(n - k) if base is None else (shift + ratio - log_z)[:, 0]
        if ctx.needs_input_grad[0]:
            # ∂(−log p)/∂x = Σ_{v ≠ y} p_v W_v − (1 − p_y) W_y
            d_nll = (mean[:k] - others * weight[anchor]) / (own + others)
            # ∂KL/∂x = Σ_v p_v (log-ratio_v − mean log-ratio) W_v: constants added to all log-ratios cancel
            d_kl = torch.zeros_like(mean[k:n]) if base is None else (mean[twice] - shift * mean[k:n]) / total
            ctx.save_for_backward(d_nll, d_kl)
        is_argmax = (top[:k] == logit)[:, 0]
        base = base if base is not None else torch.cat([*raw, log_z[:, :0]], dim=1) - log_z
        ctx.mark_non_differentiable(is_argmax, base)
        return nll[:, 0], is_argmax, kl, base

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        d_nll, d_kl = ctx.saved_tensors
        return torch.cat([grads[0][:, None] * d_nll, grads[2][:, None] * d_kl]), None, None, None


def _anchors_by_part(anchor: Tensor, size: int) -> dict[int, tuple[list[int], list[int]]]:
    """Return for each part of *size* rows of ``W`` that holds anchors: the positions, and their anchors' indices in the part."""
    parts: dict[int, tuple[list[int], list[int]]] = {}
    for row, token in enumerate(anchor.tolist()):
        rows, columns = parts.setdefault(token // size, ([], []))
        rows.append(row)
        columns.append(token % size)
    return parts
