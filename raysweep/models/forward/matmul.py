"""Products of a few rows with a large matrix, in the order in which this machine makes them fastest.

``x Wᵀ`` and ``(W xᵀ)ᵀ`` are the same numbers up to rounding, but a library that splits the rows of its first factor among threads
has little to split when there are forty. With two threads on AVX2, 40 to 64 rows go 1.2 to 1.5 times as fast the second way, 7 to
15 rows up to twice as fast the first; with one thread the first way is as fast or faster (docs/performance.md). Results of the
second way lie column by column in memory; everything between the products takes them as they are.

Shape legend: ``n`` rows, ``W [d_out, d_in]``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 16  # rows; below it products are bound by reading W, which wants whole rows of x beside each other
PAIRS = 6  # rows; up to it, an even number goes faster than the odd one below, and a single row fastest


def turned(x: Tensor) -> bool:
    """Tell whether products with ``x`` are to be made with the weights as the first factor."""
    return x.device.type == "cpu" and torch.get_num_threads() > 1


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b``: ``[n, d_in]`` → ``[n, d_out]``."""
    if not turned(x) or PAIRS < len(x) < FEW:
        return F.linear(x, weight, bias)
    product = torch.mm(weight, (x.contiguous() if len(x) < FEW else x).t()).t()
    return product if bias is None else product.add_(bias)


def backward(grad: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
    """Return ``grad W``, added to *start* if given: ``[n, d_out]`` → ``[n, d_in]``."""
    if not turned(grad) or len(grad) < FEW:
        return torch.mm(grad, weight) if start is None else torch.addmm(start, grad, weight)
    if start is None:
        return torch.mm(weight.t(), grad.t()).t()
    return torch.addmm(start.t(), weight.t(), grad.t()).t()


def height(n: int) -> int:
    """Return the number of rows, at least *n*, that takes the least time: a multiple of what a product works on at once."""
    if torch.get_num_threads() > 1:
        return max(FEW, -(-n // 8) * 8)
    return -(-n // 4) * 4


def padded(rows: Tensor) -> Tensor:
    """Return ``rows [n, d]`` with the last repeated until they are as many as :func:`forward` likes."""
    n = len(rows)
    if turned(rows):
        wanted = n + n % 2 if 1 < n <= PAIRS else n if n <= 1 else height(n)
    else:
        wanted = n if n <= FEW else height(n)
    return rows if wanted == n else torch.cat([rows, rows[-1:].expand(wanted - n, -1)])
