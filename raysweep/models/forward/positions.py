"""Final states at the tokens where something is asked, for a batch of rows; nothing is computed that they do not need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks, llama_fused, prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement


def states(
    lm: LanguageModel, rows: Sequence[Sequence[int]], last: Sequence[int], spots: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the normed final states ``[n, d]`` at *spots*. Call it without gradient.

    What rows begin with in common is computed once (:mod:`.prefix_tree`), up to the first block with a stand-in: those look at
    whole rows, so that block sees padded rows; above it, padding and what comes after a row's last spot are left out.

    Args:
        lm: the model.
        rows: ids.
        last: index of each prompt's last token, for stand-ins.
        spots: (row, token) pairs, at least one.
    """
    first = replacement.first_block(lm)
    reach = [0] * len(rows)  # what comes after the last spot matters to nothing
    for i, j in spots:
        reach[i] = max(reach[i], j + 1)
    if first is None:
        packs = prefix_tree.pack(lm, [row[:n] for row, n in zip(rows, reach, strict=True)])
        return blocks.at(lm, packs, *_columns(lm, [(packs.places[i][0], packs.places[i][1][j]) for i, j in spots]))
    return _padded(lm, rows, last, first, reach, _columns(lm, spots))


def _columns(lm: LanguageModel, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    row, column = (torch.tensor(c, device=lm.device) for c in zip(*pairs, strict=True))
    return row, column


def _padded(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    last: Sequence[int],
    first: int,
    reach: Sequence[int],
    spots: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the states at *spots*; block *first* sees padded rows."""
    ids, mask = tokens.pad(rows, lm.device)
    given, entering = ids if not first else None, None
    if first:
        packs, name = prefix_tree.pack(lm, rows), lm.layout.block.format(first - 1)
        with hooks.capture(lm, [(name, "output")]) as seen:
            blocks.run_packs(lm, packs, last=first - 1)
        entering = packs.rows(seen[name, "output"])
    if not llama_fused.fit(lm, first + 1):
        with replacement.asking(lm, last, mask):
            return blocks.run(lm, ids=given, states=entering, mask=mask, first=first)[spots]
    name = lm.layout.block.format(first)
    with replacement.asking(lm, last, mask), hooks.capture(lm, [(name, "output")]) as seen:
        blocks.run(lm, ids=given, states=entering, mask=mask, first=first, last=first)
    place = torch.arange(ids.shape[1], device=lm.device)
    asked = place < torch.tensor(reach, device=lm.device)[:, None]
    upper = blocks.Upper.of(
        lm, first + 1, place.expand_as(ids), (place <= place[:, None]).expand(len(ids), -1, -1), real=asked
    )
    return upper.at(*spots).hidden(lm, seen[name, "output"])
