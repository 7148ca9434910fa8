"""Attention on an accelerator: fused kernels of torch, masks laid out as those read them, heads of a group without copies.

Shape legend: ``B`` packs, ``S`` slots of a pack, ``A`` of them that ask, ``P`` reused tokens, ``M = P + S``, ``h`` query heads,
``k`` key heads, ``g = h / k``, ``e`` width of a head, ``n ≤ B·S`` tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raysweep.models.forward.given import PastKeysValues

# Columns of a mask: kernels of attention read its rows in pieces of 16 bytes, and copy a mask that does not allow it at every call.
_MASK_COLUMNS = 16


def attend(q: Tensor, keys: Tensor, values: Tensor, past: PastKeysValues | None, mask: Tensor, scale: float) -> Tensor:
    """Let queries ``[B, A, h, e]`` look at keys and values ``[B, S, k, e]`` behind those of the past: ``[B, A, h·e]``."""
    (b, a, h, e), k = q.shape, keys.shape[2]
    if h > k and b == 1:
        # Key heads stand where packs would, the heads of a group share theirs: [k, g, A, e] and [k, g, M, e], all views.
        q = q.view(a, k, -1, e).permute(1, 2, 0, 3)
        keys, values = _ForGroups.apply(keys, values, past, h // k)  # type: ignore[no-untyped-call]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        return out.permute(2, 0, 1, 3).reshape(1, a, h * e)
    if past is not None:
        keys, values = torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
    # [B, h, A, e] and [B, h, M, e]: each query head has keys and values
    keys, values = (t.transpose(1, 2)[:, :, None].expand(-1, -1, h // k, -1, -1).flatten(1, 2) for t in (keys, values))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(2)


class _ForGroups(torch.autograd.Function):
    """Keys and values ``[1, S, k, e]`` of one pack behind those of the past, shown to the heads of a group: ``[k, g, M, e]``.

    One launch for both, none without a past; the gradient of a new key is the sum over its group.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, past: PastKeysValues | None, g: int) -> tuple[Tensor, ...]:
        ctx.count = keys.shape[1]
        both = keys, values
        if past is not None:
            first, second = torch.cat([past[0], keys, past[1], values], 1).chunk(2, 1)
            both = first, second
        return tuple(t[0].transpose(0, 1)[:, None].expand(-1, g, -1, -1) for t in both)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        k, _, _, e = grads[0].shape
        sums = [grad.new_empty(1, ctx.count, k, e) for grad in grads]
        for grad, total in zip(grads, sums, strict=True):
            # written as the tokens lie, [S, k, e]
            torch.sum(grad[:, :, -ctx.count :], 1, out=total[0].transpose(0, 1))
        return *sums, None, None


def mask_of_one_pack(mask: Tensor, slot_of_token: Tensor | None) -> Tensor:
    """Return the mask of packs as one: ``[B, 1, S, P + S]`` → ``[1, 1, n, B·P + n]``; nobody looks into another pack."""
    b, _, s, m = mask.shape
    whole = mask.new_full((b, s, b, m), torch.finfo(mask.dtype).min)
    # whole[i, :, i] = mask[i]: the diagonal is [S, M, B]
    whole.diagonal(dim1=0, dim2=2).copy_(mask[:, 0].permute(1, 2, 0))
    reused, own = (part.reshape(b * s, -1) for part in whole.split_with_sizes([m - s, s], 3))
    if slot_of_token is not None:
        reused, own = reused.index_select(0, slot_of_token), own.index_select(0, slot_of_token)
        own = own.index_select(1, slot_of_token)
    return torch.cat([reused, own], 1)[None, None]


def aligned(mask: Tensor) -> Tensor:
    """Return *mask* with rows that begin at multiples of what kernels of attention read at once."""
    columns = mask.shape[-1]
    return F.pad(mask, (0, -columns % _MASK_COLUMNS))[..., :columns]
