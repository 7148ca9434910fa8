"""Parameters of maps that read the same, one behind the other in memory, so that an accelerator multiplies with them at once.

Queries, keys and values are one product then, gate and up another. Each parameter is a view of its rows: there is no second
copy, and what is written into one is seen by the product. Nothing depends on it: :func:`joined` looks where parameters lie, each
time anew, and whoever replaces one has separate products again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from raysweep.models.layout import Layout


def join(module: nn.Module, layout: Layout) -> None:
    """Lay those parameters of *module* out anew, block by block; numbers stay. Call it before anybody holds one of them."""
    if layout.form is None:
        return
    for block in range(len(module.get_submodule(layout.blocks))):  # type: ignore[arg-type]
        for names in (layout.form.qkv, layout.mlp_in):
            parts = [module.get_submodule(name.format(block)) for name in names]
            for leaf in ("weight", "bias"):
                held = [p for part in parts if (p := part._parameters.get(leaf)) is not None]
                if len(held) == len(parts) > 1 and all(isinstance(part, nn.Linear) for part in parts):
                    rows = torch.cat([p.detach() for p in held]).split_with_sizes([len(p) for p in held])
                    for part, row, before in zip(parts, rows, held, strict=True):
                        part._parameters[leaf] = nn.Parameter(row, before.requires_grad)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return *parts* as one tensor, by rows, a view; None if they do not lie one behind the other in the same memory."""
    tensors = [part.detach() for part in parts if part is not None]
    if not tensors or len(tensors) < len(parts):
        return None
    if len(tensors) == 1:
        return tensors[0]
    if not all(t.is_contiguous() and _follows(t, after) for t, after in pairwise(tensors)):
        return None
    rows = sum(len(t) for t in tensors)
    return tensors[0].as_strided((rows, *tensors[0].shape[1:]), tensors[0].stride(), tensors[0].storage_offset())


def _follows(first: Tensor, second: Tensor) -> bool:
    """Tell whether the rows of *second* are behind those of *first*, of the same width."""
    same = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    alike = first.shape[1:] == second.shape[1:] and first.dtype == second.dtype and first.stride() == second.stride()
    return same and alike and second.storage_offset() == first.storage_offset() + first.numel()
