"""Products of a few rows with a large matrix, in the order in which this machine makes them fastest.

``x Wᵀ`` and ``(W xᵀ)ᵀ`` are the same numbers up to rounding, but a library that splits the rows of its first factor among threads
has little to split when there are forty. With two threads on AVX2, 40 to 64 rows go 1.2 to 1.5 times as fast the second way, 7 to
15 rows up to twice as fast the first; with one thread the first way is as fast or faster (docs/performance.md). Results of the
second way lie column by column in memory; everything between the products takes them as they are.

Whoever lays out tokens asks :func:`best_rows` how many there should be; filling up with others costs less than an odd number.

Shape legend: ``n`` rows (tokens), ``W [d_out, d_in]``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_ROWS = 16  # below it products are bound by reading W, which wants whole rows of x beside each other
PAIRED_ROWS = 6  # up to it, an even number of rows goes faster than the odd one below, and a single row fastest


def weights_first(x: Tensor) -> bool:
    """Tell whether products with ``x`` go faster with the weights as the first factor: on a CPU with several threads."""
    return x.device.type == "cpu" and torch.get_num_threads() > 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b``.

    Args:
        x: ``[n, d_in]``.
        weight: ``W [d_out, d_in]``.
        bias: ``[d_out]``.

    Returns:
        ``[n, d_out]``, in memory by rows or by columns.
    """
    # 7 to 15 rows: whole rows of x beside each other read W faster
    if not weights_first(x) or PAIRED_ROWS < len(x) < FEW_ROWS:
        return F.linear(x, weight, bias)
    # x Wᵀ = (W xᵀ)ᵀ
    product = torch.mm(weight, (x.contiguous() if len(x) < FEW_ROWS else x).t()).t()
    return product if bias is None else product.add_(bias)


def linear_backward(grad: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
    """Return ``∂L/∂x = g W`` of :func:`linear`, added to *start* if given.

    Args:
        grad: ``g = ∂L/∂(x Wᵀ)``, ``[n, d_out]``.
        weight: ``W [d_out, d_in]``.
        start: ``[n, d_in]``.

    Returns:
        ``[n, d_in]``.
    """
    if not weights_first(grad) or len(grad) < FEW_ROWS:
        return torch.mm(grad, weight) if start is None else torch.addmm(start, grad, weight)
    if start is None:
        # g W = (Wᵀ gᵀ)ᵀ
        return torch.mm(weight.t(), grad.t()).t()
    return torch.addmm(start.t(), weight.t(), grad.t()).t()


def best_rows(n: int, device: torch.device | None = None) -> int:
    """Return the number of rows, at least *n*, that takes the least time: on a CPU a multiple of what a product works on at once.

    Args:
        n: rows that are needed.
        device: where the product is made; None: on the CPU.
    """
    if device is not None and device.type != "cpu":
        return n
    if torch.get_num_threads() > 1:
        return max(FEW_ROWS, -(-n // 8) * 8)
    return -(-n // 4) * 4


def pad_rows(rows: Tensor) -> Tensor:
    """Return ``rows [n, d]`` with the last repeated until they are as many as :func:`linear` likes."""
    n = len(rows)
    if weights_first(rows):
        # below FEW_ROWS only an odd handful gains by one more row
        target = n + n % 2 if 1 < n <= PAIRED_ROWS else n if n <= 1 else best_rows(n)
    else:
        target = n if n <= FEW_ROWS else best_rows(n)
    return rows if target == n else torch.cat([rows, rows[-1:].expand(target - n, -1)])
