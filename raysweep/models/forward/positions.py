"""Final states at the tokens where something is asked, for a batch of rows; nothing is computed that they do not need.

Rows become packs (``prefix_tree.py``), unless an editor has put a module of its own into a block (GRACE's codebook, WISE's side
memory). Such a module decides by row, and needs to know each row's prompt; so the rows are laid out side by side for that block.

Shape legend: ``B`` rows, ``T`` tokens of a padded row, ``n`` positions that are read, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks, fused, prefix_tree, resume
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement


def hidden_at(
    lm: LanguageModel, rows: Sequence[Sequence[int]], last: Sequence[int], positions: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the normed final states ``[n, d]`` at *positions*. Call it without gradient.

    What rows begin with in common is computed once (:mod:`.prefix_tree`), up to the first block with a replacement module: those
    look at whole rows, so that block sees padded rows; above it, padding and what comes after a row's last position are left out.

    Args:
        lm: the model.
        rows: ids.
        last: index of each prompt's last token, for replacement modules.
        positions: (row, token) pairs, at least one.
    """
    first = replacement.first_replaced_block(lm)
    # what comes after the last position of a row matters to nothing
    lengths = [0] * len(rows)
    for i, j in positions:
        lengths[i] = max(lengths[i], j + 1)
    if first is None:
        packs = prefix_tree.pack_rows(lm, [row[:n] for row, n in zip(rows, lengths, strict=True)])
        where = [(packs.row_positions[i][0], packs.row_positions[i][1][j]) for i, j in positions]
        return resume.packed_hidden_at(lm, packs, *_to_tensors(where))
    return _hidden_of_padded(lm, rows, last, first, lengths, _to_tensors(positions))


def _to_tensors(pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return rows and columns of *pairs*, on the host: whoever needs them on the device takes them there as indices."""
    row, column = (torch.tensor(c) for c in zip(*pairs, strict=True))
    return row, column


def _hidden_of_padded(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    last: Sequence[int],
    first: int,
    lengths: Sequence[int],
    positions: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the states at *positions*; block *first* sees padded rows, those below it packs, those above it no padding."""
    ids, mask = tokens.pad(rows, lm.device)
    first_ids, entering = ids if not first else None, None
    if first:
        packs, name = prefix_tree.pack_rows(lm, rows), lm.layout.block.format(first - 1)
        with hooks.capture(lm, [(name, "output")]) as captured:
            blocks.run_packs(lm, packs, last=first - 1)
        entering = packs.to_rows(captured[name, "output"])
    # the blocks above cannot be fused: run them on padded rows, with the replacement module told
    if not fused.supports(lm, first + 1):
        with replacement.row_context(lm, last, mask):
            return blocks.run(lm, ids=first_ids, states=entering, mask=mask, first=first)[positions]
    name = lm.layout.block.format(first)
    with replacement.row_context(lm, last, mask), hooks.capture(lm, [(name, "output")]) as captured:
        blocks.run(lm, ids=first_ids, states=entering, mask=mask, first=first, last=first)
    place = torch.arange(ids.shape[1], device=lm.device)
    # [B, T]: tokens up to a row's last position, on the host, where the lengths are
    needed = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    # [B, T, T]: padding lies to the right, so nothing real looks at it
    causal = (place <= place[:, None]).expand(len(ids), -1, -1)
    upper = resume.UpperBlocks.prepare(lm, first + 1, place.expand_as(ids), causal, real=needed)
    return upper.read_at(*positions).hidden(lm, captured[name, "output"])
