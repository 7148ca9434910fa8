"""Final states at the tokens where something is asked, for a batch of rows; nothing is computed that they do not need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysweep.models import hooks, packing, partial, tokens, wrapping
from raysweep.models.lm import LanguageModel


def states(
    lm: LanguageModel, rows: Sequence[Sequence[int]], last: Sequence[int], spots: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the normed final states ``[n, d]`` at *spots*. Call it without gradient.

    What rows begin with in common is computed once (:mod:`raysweep.models.packing`), up to the first block with a stand-in:
    those look at whole rows, so from there on rows are padded.

    Args:
        lm: the model.
        rows: ids.
        last: index of each prompt's last token, for stand-ins.
        spots: (row, token) pairs, at least one.
    """
    first = wrapping.first_block(lm)
    if first is None:
        reach = [0] * len(rows)  # what comes after the last spot matters to nothing
        for i, j in spots:
            reach[i] = max(reach[i], j + 1)
        packs = packing.pack(lm, [row[:n] for row, n in zip(rows, reach, strict=True)])
        return partial.at(lm, packs, *_columns(lm, [(packs.places[i][0], packs.places[i][1][j]) for i, j in spots]))
    return _padded(lm, rows, last, first)[_columns(lm, spots)]


def _columns(lm: LanguageModel, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    row, column = (torch.tensor(c, device=lm.device) for c in zip(*pairs, strict=True))
    return row, column


def _padded(lm: LanguageModel, rows: Sequence[Sequence[int]], last: Sequence[int], first: int) -> Tensor:
    """Return ``[R, T, d]``; blocks from *first* on see padded rows."""
    ids, mask = tokens.pad(rows, lm.device)
    if not first:
        with wrapping.asking(lm, last, mask):
            return partial.run(lm, ids=ids, mask=mask)
    packs = packing.pack(lm, rows)
    name = lm.layout.block.format(first - 1)
    with hooks.capture(lm, [(name, "output")]) as seen:
        partial.run_packs(lm, packs, last=first - 1)
    with wrapping.asking(lm, last, mask):
        return partial.run(lm, states=packs.rows(seen[name, "output"]), mask=mask, first=first)
