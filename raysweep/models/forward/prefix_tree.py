"""Rows that begin alike, computed once: packs of distinct tokens in place of padded rows.

By causality the states of a token depend on the tokens before it only, so rows that share their first tokens share the states
of those tokens. A pack is one sequence that holds each distinct beginning of its rows once (a tree of tokens, laid flat); its
mask lets a token see itself and what comes before it in its rows. Nothing is computed twice and little is padding.

Shape legend: ``B`` packs, ``N`` tokens of a pack, ``R`` rows, ``T`` tokens of a row, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raysweep.models import attention
from raysweep.models.forward import matmul
from raysweep.models.lm import LanguageModel

WIDTH = 128  # tokens of a pack: attention adds width / (6 d) to a block's products; narrower packs share less

Columns = tuple[int, ...]
Mask = Tensor | dict[str, Tensor]


@dataclass(slots=True)
class Tree:
    """The distinct beginnings of some rows. Node i is one token, after its parent (-1: it begins rows)."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    _found: dict[tuple[int, int, bool], int] = field(default_factory=dict)

    def missing(self, row: Sequence[int]) -> int:
        """Return how many nodes *row* would add."""
        node = -1
        for depth, token in enumerate(row):
            found = self._found.get((node, token, False))
            if found is None:
                return len(row) - depth
            node = found
        return 0

    def add(self, row: Sequence[int], *, mark: int = -1) -> Columns:
        """Take *row* in and return the nodes of its tokens; the token at *mark* is shared only with rows marked there too."""
        path: list[int] = []
        node = -1
        for depth, token in enumerate(row):
            key = (node, token, depth == mark)
            node = self._found.setdefault(key, len(self.ids))
            if node == len(self.ids):
                self.ids.append(token)
                self.parents.append(key[0])
                self.depths.append(depth)
            path.append(node)
        return tuple(path)

    def seen(self) -> Tensor:
        """Return ``[N, N]``: True where the column's node is the row's, or comes before it."""
        table = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                table[node] |= table[parent]
        return table


@dataclass(frozen=True, slots=True)
class Packs:
    """A batch of packs; where a pack is shorter than the batch, the columns left over see only themselves.

    Attributes:
        ids: ``[B, N]``.
        positions: ``[B, N]``, of each token in its rows.
        seen: ``[B, N, N]``, whether a token (second axis) may look at another (third).
        real: ``[B, N]`` False at the columns left over.
        places: of each row, its pack and the columns of its tokens.
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    real: Tensor
    places: tuple[tuple[int, Columns], ...]

    def ends(self, states: Tensor) -> Tensor:
        """Return ``[R, d]``: of ``states [B, N, d]``, those at the last token of each row."""
        packs, columns = (
            torch.tensor(c, device=states.device) for c in zip(*((p, c[-1]) for p, c in self.places), strict=True)
        )
        return states[packs, columns]

    def rows(self, states: Tensor) -> Tensor:
        """Lay ``states [B, N, d]`` out as rows ``[R, T, d]``, padded on the right with their last token."""
        width = max(len(columns) for _, columns in self.places)
        packs = torch.tensor([p for p, _ in self.places], device=states.device)
        columns = torch.tensor([[*c, *[c[-1]] * (width - len(c))] for _, c in self.places], device=states.device)
        return states[packs[:, None], columns]


def lay(lm: LanguageModel, trees: Sequence[Tree], places: Sequence[tuple[int, Columns]]) -> Packs:
    """Lay *trees* flat, one pack each.

    Raises:
        ModelError: a row is longer than the model allows (:func:`raysweep.models.attention.row_limit`).
    """
    attention.check_row(lm.module.config, max(max(tree.depths) for tree in trees) + 1)
    width = matmul.height(max(len(tree.ids) for tree in trees))
    ids = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros(len(trees), width, dtype=torch.int64)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for i, tree in enumerate(trees):
        n = len(tree.ids)
        ids[i, :n] = torch.tensor(tree.ids)
        positions[i, :n] = torch.tensor(tree.depths)
        seen[i, :n, :n] = tree.seen()
    real = torch.arange(width) < torch.tensor([len(tree.ids) for tree in trees])[:, None]
    tables = [tensor.to(lm.device) for tensor in (ids, positions, seen, real)]
    return Packs(tables[0], tables[1], tables[2], tables[3], tuple(places))


def pack(lm: LanguageModel, rows: Sequence[Sequence[int]], *, width: int = WIDTH) -> Packs:
    """Put *rows* into packs of at most *width* tokens, or more for a row that is longer itself.

    Rows go in by dictionary order, in which neighbours share most; as few packs as *width* allows, of about equal size.
    ``places`` keeps the order of *rows*.
    """
    trees, places = _fill(rows, width)
    least = sum(len(tree.ids) for tree in trees) // len(trees)
    for narrower in range(least, width, max(1, width // 16)):
        found = _fill(rows, narrower)
        if len(found[0]) == len(trees):
            trees, places = found
            break
    return lay(lm, trees, places)


def _fill(rows: Sequence[Sequence[int]], width: int) -> tuple[list[Tree], list[tuple[int, Columns]]]:
    """Fill one pack after the other; return them and where each row is."""
    trees = [Tree()]
    places: list[tuple[int, Columns]] = [(0, ())] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        if trees[-1].ids and len(trees[-1].ids) + trees[-1].missing(rows[i]) > width:
            trees.append(Tree())
        places[i] = (len(trees) - 1, trees[-1].add(rows[i]))
    return trees, places


def attention_mask(lm: LanguageModel, seen: Tensor, asking: Tensor, positions: Tensor) -> Mask:
    """Return what is added to the scores of tokens at positions *asking* ``[B, N]`` for those at *positions* ``[B, M]``.

    ``[B, 1, N, M]``: 0 where ``seen [B, N, M]`` and inside the block's window, else the least number. Where blocks differ in their
    windows, such a table for each of transformers' kinds of attention.
    """
    found = set(attention.windows(lm.module.config))
    tables = {}
    for window in found:
        reach = seen if window is None else seen & (asking[:, :, None] - positions[:, None, :] < window)
        tables[attention.FULL if window is None else attention.SLIDING] = additive(reach, lm.dtype)
    return tables if len(tables) > 1 else next(iter(tables.values()))


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores, ``[B, 1, N, M]``: 0 where ``seen [B, N, M]``, else the least number."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
