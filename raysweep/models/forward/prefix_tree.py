"""Rows that begin alike, computed once: prefix trees of tokens in place of padded rows.

By causality the states of a token depend on the tokens before it only, so rows that share their first tokens share the states
of those tokens. A pack is one sequence that holds each distinct beginning of its rows once: a prefix tree (trie) of tokens, laid
flat, with positions counted along the rows and a mask that lets a token look at itself and at what comes before it in its rows
(tree attention). Nothing is computed twice and little is padding (docs/methods/forward.md).

For example the rows ``a b c`` and ``a b d`` make one pack ``a b c d`` with the positions 0 1 2 2, in which ``d`` looks at ``a``,
``b`` and itself, and not at ``c``.

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
Place = tuple[int, int]
AttentionMask = Tensor | dict[str, Tensor]


@dataclass(slots=True)
class PrefixTree:
    """The distinct beginnings of some rows. Node i is one token behind its parent, whose number is lower.

    Attributes:
        ids: the token of each node.
        parents: the node before it; -1: it begins rows.
        depths: how many nodes are before it, which is its position in every row that passes through it.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    # (parent, token, marked) → node
    _children: dict[tuple[int, int, bool], int] = field(default_factory=dict)

    def count_new_nodes(self, row: Sequence[int]) -> int:
        """Return how many nodes *row* would add."""
        node = -1
        for depth, token in enumerate(row):
            child = self._children.get((node, token, False))
            if child is None:
                return len(row) - depth
            node = child
        return 0

    def add(self, row: Sequence[int], *, mark: int = -1) -> Columns:
        """Add *row* and return the nodes of its tokens.

        Args:
            row: token ids.
            mark: index of a token that is shared only with rows marked there too (because a change will be made at it); -1: none.
        """
        path: list[int] = []
        node = -1
        for depth, token in enumerate(row):
            # a marked token is another child than the same token unmarked
            key = (node, token, depth == mark)
            node = self._children.setdefault(key, len(self.ids))
            if node == len(self.ids):
                self.ids.append(token)
                self.parents.append(key[0])
                self.depths.append(depth)
            path.append(node)
        return tuple(path)

    def path(self, node: int) -> Columns:
        """Return the nodes up to *node*, itself included, in the order of their tokens."""
        found = [node]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return tuple(reversed(found))

    def visible(self) -> Tensor:
        """Return ``[N, N]``: True where the column's node is the row's, or comes before it."""
        table = torch.eye(len(self.ids), dtype=torch.bool)
        # parents have lower numbers: their rows are complete
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                table[node] |= table[parent]
        return table


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows as a batch of packs; where a pack is shorter than the batch, the columns left over look at themselves only.

    Attributes:
        ids: ``[B, N]``.
        positions: ``[B, N]``, of each token in its rows.
        visible: ``[B, N, N]``, whether a token (second axis) may look at another (third).
        real: ``[B, N]`` False at the columns left over; on the host, where layouts are worked out.
        row_positions: of each row, its pack and the columns of its tokens.
        copies: of each node of each tree, every (pack, column) at which it lies, where rows go one by one; None: node j of tree i
            is column j of pack i.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    real: Tensor
    row_positions: tuple[tuple[int, Columns], ...]
    copies: tuple[tuple[tuple[Place, ...], ...], ...] | None = None

    def where(self, tree: int, node: int) -> tuple[Place, ...]:
        """Return every (pack, column) at which a node of a tree lies, at least one."""
        return ((tree, node),) if self.copies is None else self.copies[tree][node]

    def last_states(self, states: Tensor) -> Tensor:
        """Return ``[R, d]``: of ``states [B, N, d]``, those at the last token of each row."""
        packs, columns = (
            torch.tensor(c, device=states.device)
            for c in zip(*((p, c[-1]) for p, c in self.row_positions), strict=True)
        )
        return states[packs, columns]

    def to_rows(self, states: Tensor) -> Tensor:
        """Lay ``states [B, N, d]`` out as rows ``[R, T, d]``, padded on the right with their last token."""
        width = max(len(columns) for _, columns in self.row_positions)
        packs = torch.tensor([p for p, _ in self.row_positions], device=states.device)
        padded = [[*c, *[c[-1]] * (width - len(c))] for _, c in self.row_positions]
        columns = torch.tensor(padded, device=states.device)
        # shared tokens are copied into every row
        return states[packs[:, None], columns]


def lay_out(lm: LanguageModel, trees: Sequence[PrefixTree], row_positions: Sequence[tuple[int, Columns]]) -> PackedRows:
    """Lay *trees* flat, one pack each, in the order of their nodes; or one pack for each row, where rows must go one by one.

    Args:
        lm: the model, for its device and its longest row.
        trees: one per pack.
        row_positions: of each row, its tree and nodes (:meth:`PrefixTree.add`); may be left empty by those who don't need it.

    Raises:
        ModelError: a row is longer than the model allows (:func:`raysweep.models.attention.row_limit`).
    """
    attention.check_row(lm.module.config, max(max(tree.depths) for tree in trees) + 1)
    if not lm.layout.shares_prefixes:
        return _lay_out_rows(lm, trees, row_positions)
    width = matmul.best_rows(max(len(tree.ids) for tree in trees), lm.device)
    ids = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros(len(trees), width, dtype=torch.int64)
    # columns left over look at themselves, or their soft-max would be 0 / 0
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for i, tree in enumerate(trees):
        n = len(tree.ids)
        ids[i, :n] = torch.tensor(tree.ids)
        positions[i, :n] = torch.tensor(tree.depths)
        visible[i, :n, :n] = tree.visible()
    real = torch.arange(width) < torch.tensor([len(tree.ids) for tree in trees])[:, None]
    tables = [tensor.to(lm.device) for tensor in (ids, positions, visible)]
    return PackedRows(tables[0], tables[1], tables[2], real, tuple(row_positions))


def _lay_out_rows(
    lm: LanguageModel, trees: Sequence[PrefixTree], row_positions: Sequence[tuple[int, Columns]]
) -> PackedRows:
    """Lay every path from a beginning of *trees* to an end into a pack of its own, with all of its tokens."""
    rows: list[Columns] = []
    copies: list[list[list[Place]]] = []
    for tree in trees:
        places: list[list[Place]] = [[] for _ in tree.ids]
        for end in sorted(set(range(len(tree.ids))) - set(tree.parents)):
            path = tree.path(end)
            for column, node in enumerate(path):
                places[node].append((len(rows), column))
            rows.append(tuple(tree.ids[node] for node in path))
        copies.append(places)
    width = max(len(row) for row in rows)
    real = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=lm.device)
    positions = torch.arange(width, device=lm.device).expand_as(ids)
    # padding lies behind a row, where none of its tokens looks
    visible = (positions[:, None, :] <= positions[:, :, None]).contiguous()
    # a row that others go on from lies at the beginning of one of them
    found = tuple((copies[tree][nodes[-1]][0][0], tuple(range(len(nodes)))) for tree, nodes in row_positions)
    return PackedRows(ids, positions, visible, real, found, tuple(tuple(tuple(p) for p in c) for c in copies))


def pack_rows(lm: LanguageModel, rows: Sequence[Sequence[int]], *, width: int = WIDTH) -> PackedRows:
    """Put *rows* into packs of at most *width* tokens, or more for a row that is longer itself.

    Rows go in by dictionary order, in which neighbours share most; as few packs as *width* allows, of about equal size.
    ``row_positions`` keeps the order of *rows*.

    Args:
        lm: the model.
        rows: token ids of each row.
        width: tokens of a pack.

    Raises:
        ModelError: a row is longer than the model allows.
    """
    # each row alone where rows that are computed together would not be what they are alone
    width = width if lm.layout.shares_prefixes else 0
    trees, positions = _fill(rows, width)
    # packs of unequal size are padded to the longest, so look for the smallest width that needs no more of them
    least = sum(len(tree.ids) for tree in trees) // len(trees)
    for narrower in range(least, width, max(1, width // 16)):
        fewer_columns = _fill(rows, narrower)
        if len(fewer_columns[0]) == len(trees):
            trees, positions = fewer_columns
            break
    return lay_out(lm, trees, positions)


def _fill(rows: Sequence[Sequence[int]], width: int) -> tuple[list[PrefixTree], list[tuple[int, Columns]]]:
    """Fill one pack after the other; return them and where each row is."""
    trees = [PrefixTree()]
    positions: list[tuple[int, Columns]] = [(0, ())] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        if trees[-1].ids and len(trees[-1].ids) + trees[-1].count_new_nodes(rows[i]) > width:
            trees.append(PrefixTree())
        positions[i] = (len(trees) - 1, trees[-1].add(rows[i]))
    return trees, positions


def attention_mask(lm: LanguageModel, visible: Tensor, queries: Tensor, keys: Tensor) -> AttentionMask:
    """Return what is added to attention scores: 0 where a token may look, else the least number of the model's dtype.

    Args:
        lm: the model.
        visible: ``[B, N, M]``, whether a query (second axis) may look at a key (third), were it not for windows.
        queries: ``[B, N]`` positions of the queries.
        keys: ``[B, M]`` positions of the keys.

    Returns:
        ``[B, 1, N, M]`` (the second axis stands for the heads). Where blocks differ in their windows, such a table for each of
        transformers' kinds of attention, by its name.
    """
    tables = {}
    for window in set(attention.windows(lm.module.config, lm.layout)):
        reach = visible if window is None else visible & (queries[:, :, None] - keys[:, None, :] < window)
        tables[attention.FULL if window is None else attention.SLIDING] = additive_mask(reach, lm.dtype)
    return tables if len(tables) > 1 else next(iter(tables.values()))


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``[B, 1, N, M]``, what is added to attention scores: 0 where ``visible [B, N, M]``, else *dtype*'s least number."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)[
        :, None
    ]
