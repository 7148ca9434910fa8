"""Which operations of ATen give other bits from run to run on a GPU, by what torch says of them.

Where several threads add to one place by atomics, the order of the sum is whose turn it happens to be. torch lists such operations
(``torch.use_deterministic_algorithms``): some have a second version that adds up in order, by sorting first, which is taken where
the process asks for it; others raise there. :func:`repeats` says which of the three an operation is; the sham device raises what a
GPU raises, and counts what would be sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

Repeats = Literal["always", "sorted", "never"]

# no second version, whatever the arguments
_NEVER = (
    "aten.avg_pool3d_backward", "aten._adaptive_avg_pool2d_backward", "aten._adaptive_avg_pool3d_backward",
    "aten.adaptive_max_pool2d_backward", "aten.fractional_max_pool2d_backward", "aten.fractional_max_pool3d_backward",
    "aten.max_unpool2d", "aten.max_unpool3d", "aten.upsample_linear1d_backward", "aten.upsample_bilinear2d_backward",
    "aten.upsample_bicubic2d_backward", "aten.upsample_trilinear3d_backward", "aten.reflection_pad1d_backward",
    "aten.reflection_pad2d_backward", "aten.reflection_pad3d_backward", "aten.nll_loss2d_forward", "aten._ctc_loss_backward",
    "aten._embedding_bag_backward", "aten.put", "aten.histc", "aten.median.dim", "aten.kthvalue", "aten.grid_sampler_2d_backward",
    "aten.grid_sampler_3d_backward", "aten.index_reduce",
)  # fmt: skip
# a second version that sorts; gradients of gather, index_select and repeat_interleave are among these
_SORTED = ("aten.scatter_add", "aten.index_add", "aten.index_copy", "aten.scatter.src", "aten.scatter_.src")
_SUMS = ("aten.cumsum", "aten.cumprod", "aten.logcumsumexp")
_WRITES = ("aten.index_put", "aten._index_put_impl_", "aten._unsafe_index_put")


def repeats(name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Repeats:
    """Tell whether an operation repeats to the bit on a GPU.

    Args:
        name: in ATen, as ``aten.index_add.default``.
        args: what it is called with.
        kwargs: the same by name.

    Returns:
        ``always``; ``sorted``: where the process asks for it, at the price of a sort; ``never``: there it raises.
    """
    if name.startswith("aten.scatter_reduce"):
        how = kwargs.get("reduce", args[4] if len(args) > 4 else None)
        return "never" if how == "prod" else "sorted" if how in ("sum", "mean") else "always"
    if name.startswith(_WRITES):
        # with accumulate a GPU sorts in any case
        adds = bool(kwargs.get("accumulate", len(args) > 3 and args[3]))
        return "always" if adds else "sorted"
    if name.startswith(_SUMS) or name.startswith("aten.bincount"):
        floats = any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in (*args, *kwargs.values()))
        return "never" if floats else "always"
    if name.startswith(_SORTED):
        return "sorted"
    return "never" if name.startswith(_NEVER) else "always"
