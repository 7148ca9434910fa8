"""Tall matrices as lists of row blocks, so that an editor's state can take in rows without copying or changing what it holds.

An editor must not write to the state it was given. A matrix ``R [N, d]`` that grows by a few rows per edit is therefore a list of
*chunks* ``R_i [n_i, d]``; products with it are sums over chunks. Chunk lists pair up row by row: ``R`` and ``L`` stand for
``Σ Rᵢᵀ Lᵢ [d_r, d_l]`` without the product being formed.

Shape legend: ``N`` rows in all, ``n_i`` rows of chunk i, ``d`` (``d_l``, ``d_r``) width of the rows, ``k`` rows that come in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# columns computed together: enough for a fast product, few enough to skip most of the upper half
_BLOCK = 384


def append_chunk(chunks: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """Return *chunks* ``[n_i, d]`` with *rows* ``[k, d]`` at their end; no tensor is written to.

    Neighbours are joined as a binary counter carries, so there are O(log N) chunks and each row is copied O(log N) times.
    """
    # Like carries in binary addition: equal neighbours merge, so chunk sizes fall by halves.
    joined = [*chunks, rows.contiguous()]
    while len(joined) > 1 and len(joined[-2]) <= len(joined[-1]):
        last = joined.pop()
        joined[-1] = torch.cat([joined[-1], last])
    return joined


def n_rows(chunks: Sequence[Tensor]) -> int:
    """Return how many rows *chunks* have."""
    return sum(len(c) for c in chunks)


def add_gram_product(
    total: Tensor, rows: Tensor, right: Sequence[Tensor], left: Sequence[Tensor], *, scale: float = 1.0
) -> Tensor:
    """Add ``scale Σ x Rᵀ L`` to *total* ``[k, d_l]`` (in place) and return it; no matrix ``Rᵀ L`` is formed.

    Args:
        total: what to add to.
        rows: ``x [k, d_r]``.
        right: chunks ``R [n_i, d_r]``.
        left: chunks ``L [n_i, d_l]`` of the same lengths.
        scale: of what is added.
    """
    for one, other in zip(right, left, strict=True):
        # (x Rᵢᵀ) Lᵢ: k n_i numbers between, not d_r d_l
        total.addmm_(rows @ one.T, other, alpha=scale)
    return total


def fold_chunks(base: Tensor | None, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return ``base + Σ Lᵀ R`` ``[d_l, d_r]`` as a new matrix.

    Args:
        base: what to add to, not modified; None = 0.
        left: chunks ``L [n_i, d_l]``, at least one.
        right: chunks ``R [n_i, d_r]`` of the same lengths.
    """
    total = right[0].new_zeros(left[0].shape[1], right[0].shape[1]) if base is None else base.clone()
    for one, other in zip(left, right, strict=True):
        total.addmm_(one.T, other)
    return total


def add_gram(base: Tensor | None, chunks: Sequence[Tensor], *, scale: float = 1.0) -> Tensor:
    """Return ``base + scale Σ Rᵀ R`` ``[d, d]`` for chunks ``R [n_i, d]`` and symmetric *base*; None is 0.

    Blocks on and below the diagonal are computed, the others copied.
    """
    if base is not None and not chunks:
        return base
    rows = torch.cat(list(chunks))
    d = rows.shape[1]
    total = rows.new_zeros(d, d) if base is None else base.clone()
    # Rows start:stop of the product, up to the diagonal block; what is right of it is the mirror image.
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop], alpha=scale)
        total[:start, start:stop] = total[start:stop, :start].T  # the mirrored block, exactly symmetric
    return total
