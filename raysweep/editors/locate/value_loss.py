"""The loss of a target value, as a function of the shift alone: what a shift cannot change is computed once.

``L(δ)`` is written out in ``locate/target_value.py``. A record is ``c + 1`` rows, and a step of Adam would be a forward and a
backward pass over all of them. But a shift ``δ`` of block ``l``'s output at the look-up tokens changes neither the tokens before
them nor the blocks below. So each step runs only the blocks above ``l``, only the tokens from the look-up token on, and the head
only where a prediction is needed (exact up to rounding; docs/methods/forward.md).

A record's rows are laid out as one *prefix tree*, a *node* per token, in which what rows begin with in common is there once; the
trees of several records are the *packs* of one batch (``models/forward/prefix_tree.py``). From rows to the loss:

* :class:`TaskTree`: the rows of a record as a tree, and its nodes that matter;
* :class:`ReadPlan`: where those nodes are among the tokens that a step computes;
* :class:`ValueLoss`: un-shifted states of these tokens; adds the shifts, runs the blocks above, reads the predictions.

Shape legend: ``n`` records optimised together, ``c`` contexts, ``m`` target tokens, ``N`` nodes of a record's prefix tree, ``T`` of
them that a step computes, ``k`` demanded predictions of all records, ``d`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raysweep.editors.specs import ValueSpec
from raysweep.models.forward import head, prefix_tree, resume
from raysweep.models.forward.model_guard import ModelGuard
from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class TaskTree:
    """A task's rows as one tree, and the nodes that matter.

    Attributes:
        tree: all tokens but those after the KL row's look-up token, which nothing reads.
        lookups: the look-up node in each context, the bare prompt's first.
        begins: of each row, the first node that the shift changes or that is read.
        demanded: (node that predicts it, demanded id, weight) per demanded prediction; the weights add up to 1.
        kl: the KL row's look-up node.
    """

    tree: prefix_tree.PrefixTree
    lookups: tuple[int, ...]
    begins: tuple[int, ...]
    demanded: tuple[tuple[int, int, float], ...]
    kl: int

    @classmethod
    def build(cls, rows: Sequence[Sequence[int]], lookups: Sequence[int], targets: Sequence[int]) -> TaskTree:
        """Lay *rows* into one prefix tree.

        Args:
            rows: ids; the last is the KL row.
            lookups: of each row, the index of its look-up token.
            targets: the ids demanded at the last ``m`` positions of every row but the last.
        """
        tree, m, c = prefix_tree.PrefixTree(), len(targets), len(rows) - 1
        ends = [*(len(row) for row in rows[:-1]), lookups[-1] + 1]
        # The mark keeps a look-up token apart from equal tokens at which nothing is shifted.
        paths = [tree.add(row[:end], mark=lookup) for row, lookup, end in zip(rows, lookups, ends, strict=True)]
        # the last m nodes of a row predict its m target tokens
        demanded = [(n, t, 1.0 / (c * m)) for p in paths[:-1] for n, t in zip(p[-m:], targets, strict=True)]
        nodes = [p[lookup] for p, lookup in zip(paths, lookups, strict=True)]
        # A row matters from its look-up token on, or from its first prediction if that comes before.
        begins = [p[min(lookup, len(p) - m)] for p, lookup in zip(paths, lookups[:-1], strict=False)]
        return cls(tree, tuple(nodes[:-1]), (*begins, nodes[-1]), tuple(demanded), nodes[-1])


def _flags(like: Tensor, nodes: Sequence[Sequence[int]]) -> Tensor:
    """Return ``[B, N]``, True at each pack's *nodes*."""
    flags = torch.zeros(like.shape, dtype=torch.bool)
    for i, chosen in enumerate(nodes):
        flags[i, list(chosen)] = True
    return flags.to(like.device)


def _appended(places: tuple[Tensor, Tensor], columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return (task, column) *places* with further *columns* of task 0 behind them."""
    return torch.cat([places[0], torch.zeros_like(columns)]), torch.cat([places[1], columns])


class PlanTables(NamedTuple):
    """A plan as tables, which take fewer launches than indices, and whose sums have one order.

    Attributes:
        moves: ``[n, T, 1]`` 1 at the look-up tokens, else 0, in the states' dtype.
        lookups: ``[n, L, 1]`` their columns; a task that has fewer repeats one.
        real: ``[n, L, 1]`` 0 where it does, else 1; None: no task has fewer.
        share: ``[n, k]`` the weight of each demanded prediction in its task's loss, else 0.
        demanded: ``[n, k]`` True where that is more than 0.
    """

    moves: Tensor
    lookups: Tensor
    real: Tensor | None
    share: Tensor
    demanded: Tensor

    @classmethod
    def of(cls, plan: ReadPlan, states: Tensor, counts: Sequence[int]) -> PlanTables:
        """Write *plan* out for ``states [n, T, d]`` of tasks with so many look-up tokens each."""
        n, most, columns, real = len(states), max(counts), plan.shifted[1], None
        if n == 1 or len(set(counts)) == 1:
            lookups = columns.view(n, -1, 1)
        else:
            begins = [sum(counts[:i]) for i in range(n)]
            rows = [[b + min(j, c - 1) for j in range(most)] for b, c in zip(begins, counts, strict=True)]
            flags = [[j < c for j in range(most)] for c in counts]
            rows_and_flags = torch.tensor([rows, flags], device=states.device)
            lookups, real = columns[rows_and_flags[0]][..., None], rows_and_flags[1].to(states.dtype)[..., None]
        moves = states.new_zeros(*states.shape[:2], 1).index_put(plan.shifted, states.new_ones(1, 1))
        tasks = torch.arange(n, device=states.device)
        share = torch.where(tasks[:, None] == plan.demanded[0], plan.weight, 0.0)
        return cls(moves, lookups, real, share, share > 0)


class _Shifted(torch.autograd.Function):
    """``states [n, T, d]`` with each task's ``shift [n, d]`` added at its look-up tokens; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, shift: Tensor, states: Tensor, tables: PlanTables) -> Tensor:
        ctx.tables = tables
        return torch.addcmul(states, tables.moves, shift[:, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        at = grads[0].gather(1, ctx.tables.lookups.expand(-1, -1, grads[0].shape[2]))
        return (at if ctx.tables.real is None else at * ctx.tables.real).sum(1), None, None


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Where what is shifted and what is read lies among the tokens that a step computes; task i is row i of the batch.

    Attributes:
        shifted: (task, column) of every look-up token, each once.
        demanded: (task, column) of every demanded prediction, ``[k]`` each.
        token: the ids demanded there, ``[k]``.
        weight: ``[k]``, 1 / (contexts · m).
        kl: (task, column) of the KL rows' look-up tokens.
        filled: some of what is demanded has no weight and only fills up.
        on_device: the same as tables to multiply with, on an accelerator; None on a CPU.
    """

    shifted: tuple[Tensor, Tensor]
    demanded: tuple[Tensor, Tensor]
    token: Tensor
    weight: Tensor
    kl: tuple[Tensor, Tensor]
    filled: bool = False
    on_device: PlanTables | None = None

    @classmethod
    def build(cls, trees: Sequence[TaskTree], column: Tensor) -> ReadPlan:
        """Translate nodes into columns of what remains; ``column [n, N]`` tells where each node is."""

        shifted = [(i, node, -1) for i, t in enumerate(trees) for node in sorted({*t.lookups, t.kl})]
        demanded = [(i, node, token) for i, t in enumerate(trees) for node, token, _ in t.demanded]
        kl = [(i, t.kl, -1) for i, t in enumerate(trees)]
        # all of them in one table, which goes to the device at once
        task, node, token = torch.tensor([*shifted, *demanded, *kl], device=column.device).T
        places, sizes = column[task, node], [len(shifted), len(demanded), len(kl)]
        pairs = list(zip(torch.split(task, sizes), torch.split(places, sizes), strict=True))
        weight = torch.tensor([weight for t in trees for *_, weight in t.demanded], device=column.device)
        return cls(pairs[0], pairs[1], torch.split(token, sizes)[1], weight, pairs[2])

    def fill(self, width: int, lookups: int) -> ReadPlan:
        """Return the plan of one task with as many shifts and reads as others of about its size have; the rest change nothing.

        Args:
            width: how many columns a step computes; the last of them is nobody's.
            lookups: of the task's rows, of which some may be one node.
        """
        columns = self.read()[1]
        asked = set(columns.tolist())
        # As many different columns, since the last block computes those asked for, and as many questions.
        different = min(resume.bucket(len(asked)), width)
        others = [c for c in reversed(range(width)) if c not in asked][: different - len(asked)]
        count = resume.bucket(max(len(self.token), different))
        more = [
            *others,
            *[width - 1 if width - 1 in others else int(columns[0])] * (count - len(self.token) - len(others)),
        ]
        extra = torch.tensor([more, [0] * len(more)], device=columns.device)
        lent = torch.full((lookups - len(self.shifted[1]),), width - 1, device=columns.device)
        return ReadPlan(
            shifted=_appended(self.shifted, lent),
            demanded=_appended(self.demanded, extra[0]),
            token=torch.cat([self.token, extra[1]]),
            weight=torch.cat([self.weight, extra[1].to(self.weight.dtype)]),
            kl=self.kl,
            filled=True,
        )

    def read(self) -> tuple[Tensor, Tensor]:
        """Return (task, column) of everything that is read: the demanded predictions, then the KL rows."""
        rows, columns = (torch.cat(both) for both in zip(self.demanded, self.kl, strict=True))
        return rows, columns


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The loss of some tasks: from the output of the shifted block to the predictions that are read.

    Attributes:
        states: ``[n, T, d]`` un-shifted outputs of the block at the tokens that the shift changes or that are read.
        plan: where the look-up tokens and the predictions are among them.
        upper: the blocks above, which compute their last states only where the plan reads.
    """

    states: Tensor
    plan: ReadPlan
    upper: resume.ReadPositions

    @classmethod
    def prepare(cls, lm: LanguageModel, trees: Sequence[TaskTree], layer: int, *, fill: bool = False) -> ValueLoss:
        """Compute once, without gradient, everything that no shift after block *layer* moves.

        With *fill* the one tree is filled up to the size of its bucket (``resume.bucket``), so that few sizes occur.
        """
        # One pack per task; where a row's tokens lie is not asked of the packs, since nodes are translated by column_of.
        packs = prefix_tree.lay_out(lm, [t.tree for t in trees], ())
        with torch.no_grad():
            rest = resume.remainder_after(
                lm, packs, _flags(packs.ids, [t.begins for t in trees]), first=layer + 1, fill=fill
            )
        plan = ReadPlan.build(trees, rest.column_of)
        if fill:
            plan = plan.fill(rest.states.shape[1], len(trees[0].lookups) + 1)
        if not rest.states.is_cpu:
            counts = [len({*t.lookups, t.kl}) for t in trees]
            plan = replace(plan, on_device=PlanTables.of(plan, rest.states, counts))
        return cls(rest.states, plan, rest.upper.read_at(*plan.read()))

    def guard(self) -> ModelGuard | None:
        """Return the model as it was, where its blocks run in few operations and nothing has changed since; else None."""
        blocks = self.upper.upper.fused
        return blocks.guard if blocks is not None and blocks.is_unchanged() else None

    def at(
        self, lm: LanguageModel, shift: Tensor, origin: Tensor, spec: ValueSpec, base_logp: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of the shifts, and what else the pass has shown; differentiable in *shift*.

        Args:
            lm: the model.
            shift: ``δ [n, d]``.
            origin: ``v_0 [n, d]``.
            spec: the weights of the loss's parts.
            base_logp: ``log P_0 [n, vocabulary]`` at the KL rows; None in the first pass, whose shift is 0: that of now.

        Returns:
            The loss ``[n]``, whether every demanded id is the arg-max ``[n]``, and ``log P_0``.
        """
        readout = head.logprobs_and_kl(lm, self.upper.hidden(lm, self._moved(shift)), self.plan.token, base_logp)
        nll, hit = self._per_task(readout, len(shift))
        decay = torch.linalg.vector_norm(shift, dim=1) / origin.norm(dim=1) ** 2
        loss: Tensor = nll + spec.kl * readout.kl + spec.weight_decay * decay
        return loss, hit, readout.base

    def _moved(self, shift: Tensor) -> Tensor:
        """Add each task's δ at its look-up tokens: ``states[task, column] += shift[task]``."""
        shift, tables = shift.to(self.states.dtype), self.plan.on_device
        if tables is not None:
            moved: Tensor = _Shifted.apply(shift, self.states, tables)  # type: ignore[no-untyped-call]
            return moved
        return self.states.index_put(self.plan.shifted, shift[self.plan.shifted[0]], accumulate=True)

    def _per_task(self, readout: head.HeadReadout, n: int) -> tuple[Tensor, Tensor]:
        """Return each task's negative log-likelihood, a mean over contexts by the weights, and whether it has hit, ``[n]`` each.

        A task has hit when none of its demanded predictions misses, in any context.
        """
        plan, tables = self.plan, self.plan.on_device
        if tables is not None:
            return -(tables.share * readout.logp).sum(1), ~(tables.demanded & ~readout.is_argmax).any(1)
        zeros = torch.zeros(n, device=readout.logp.device)
        nll = zeros.index_add(0, plan.demanded[0], -readout.logp * plan.weight)
        misses = ~readout.is_argmax & (plan.weight > 0) if plan.filled else ~readout.is_argmax
        return nll, zeros.index_add(0, plan.demanded[0], misses.float()) == 0
