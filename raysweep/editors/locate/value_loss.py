"""The loss of a target value, as a function of the shift alone: what a shift cannot change is computed once.

``L(δ)`` is written out in ``locate/target_value.py``. A record is ``c + 1`` rows, and a step of Adam would be a forward and a
backward pass over all of them. But a shift ``δ`` of block ``l``'s output at the look-up tokens changes neither the tokens before
them nor the blocks below. So each step runs only the blocks above ``l``, only the tokens from the look-up token on, and the head
only where a prediction is needed (exact up to rounding; docs/methods/forward.md).

A record's rows are laid out as one *prefix tree*, a *node* per token, in which what rows begin with in common is there once; the
trees of several records are the *packs* of one batch (``models/forward/prefix_tree.py``). Where rows must go one by one, each is a
pack of its own, and a node lies in several of them. From rows to the loss:

* :class:`TaskTree`: the rows of a record as a tree, and its nodes that matter;
* :class:`ReadPlan`: where those nodes are among the tokens that a step computes;
* :class:`ValueLoss`: un-shifted states of these tokens; adds the shifts, runs the blocks above, reads the predictions.

Shape legend: ``n`` records optimised together, ``B`` packs, ``c`` contexts, ``m`` target tokens, ``N`` tokens of a pack, ``T`` of
them that a step computes, ``k`` demanded predictions of all records, ``d`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from raysweep.editors.specs import ValueSpec
from raysweep.models import hooks
from raysweep.models.forward import head, prefix_tree, resume
from raysweep.models.forward.model_guard import ModelGuard
from raysweep.models.lm import LanguageModel

Site = Literal["mlp", "block"]


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


def _flags(packs: prefix_tree.PackedRows, nodes: Sequence[Sequence[int]]) -> Tensor:
    """Return ``[B, N]``, True wherever one of each tree's *nodes* lies."""
    flags = torch.zeros(packs.ids.shape, dtype=torch.bool)
    places = [place for i, chosen in enumerate(nodes) for node in chosen for place in packs.where(i, node)]
    pack, column = torch.tensor(places).T
    flags[pack, column] = True
    return flags.to(packs.ids.device)


def _appended(places: tuple[Tensor, Tensor], columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return (pack, column) *places* with further *columns* of pack 0 behind them."""
    return torch.cat([places[0], torch.zeros_like(columns)]), torch.cat([places[1], columns])


def lay_out(lm: LanguageModel, trees: Sequence[TaskTree]) -> prefix_tree.PackedRows:
    """Lay the trees of some tasks flat; where a row's tokens lie is not asked, since nodes are translated one by one."""
    return prefix_tree.lay_out(lm, [t.tree for t in trees], ())


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
    """Where what is shifted and what is read lies among the tokens that a step computes.

    Attributes:
        shifted: (pack, column) of every look-up token, each once.
        demanded: (pack, column) of every demanded prediction, ``[k]`` each.
        token: the ids demanded there, ``[k]``.
        weight: ``[k]``, 1 / (contexts · m).
        kl: (pack, column) of the KL rows' look-up tokens.
        filled: some of what is demanded has no weight and only fills up.
        tasks: whose shift each of ``shifted`` takes, and whose each of ``demanded`` is; None: pack i is that of task i.
        on_device: the same as tables to multiply with, on an accelerator where pack i is that of task i; else None.
    """

    shifted: tuple[Tensor, Tensor]
    demanded: tuple[Tensor, Tensor]
    token: Tensor
    weight: Tensor
    kl: tuple[Tensor, Tensor]
    filled: bool = False
    tasks: tuple[Tensor, Tensor] | None = None
    on_device: PlanTables | None = None

    @classmethod
    def build(cls, trees: Sequence[TaskTree], packs: prefix_tree.PackedRows, column: Tensor) -> ReadPlan:
        """Translate nodes into columns of what remains; ``column [B, N]`` tells where each token of *packs* is."""
        # A look-up token is shifted wherever it lies; a prediction is read at the first of its places, for they are all alike.
        shifted = [
            (*place, -1, i)
            for i, t in enumerate(trees)
            for node in sorted({*t.lookups, t.kl})
            for place in packs.where(i, node)
        ]
        demanded = [(*packs.where(i, node)[0], token, i) for i, t in enumerate(trees) for node, token, _ in t.demanded]
        kl = [(*packs.where(i, t.kl)[0], -1, i) for i, t in enumerate(trees)]
        # all of them in one table, which goes to the device at once
        pack, node, token, task = torch.tensor([*shifted, *demanded, *kl], device=column.device).T
        places, sizes = column[pack, node], [len(shifted), len(demanded), len(kl)]
        pairs = list(zip(torch.split(pack, sizes), torch.split(places, sizes), strict=True))
        weight = torch.tensor([weight for t in trees for *_, weight in t.demanded], device=column.device)
        whose = torch.split(task, sizes)
        tasks = None if packs.copies is None else (whose[0], whose[1])
        return cls(pairs[0], pairs[1], torch.split(token, sizes)[1], weight, pairs[2], tasks=tasks)

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return whose shift each of ``shifted`` takes, and whose each of ``demanded`` is."""
        return (self.shifted[0], self.demanded[0]) if self.tasks is None else self.tasks

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
        """Return (pack, column) of everything that is read: the demanded predictions, then the KL rows."""
        rows, columns = (torch.cat(both) for both in zip(self.demanded, self.kl, strict=True))
        return rows, columns


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The loss of some tasks: from the output of the shifted block to the predictions that are read.

    Attributes:
        states: ``[B, T, d]`` un-shifted outputs of the block at the tokens that the shift changes or that are read.
        plan: where the look-up tokens and the predictions are among them.
        upper: the blocks above, which compute their last states only where the plan reads.
        layer: the block.
        outputs: ``[k, d]`` un-shifted outputs of its MLP at the look-up tokens, where the shift is one of these, and a norm stands
            between them and the stream; None: the shift is one of the stream.
    """

    states: Tensor
    plan: ReadPlan
    upper: resume.ReadPositions
    layer: int
    outputs: Tensor | None = None

    @classmethod
    def prepare(
        cls,
        lm: LanguageModel,
        trees: Sequence[TaskTree],
        packs: prefix_tree.PackedRows,
        layer: int,
        site: Site,
        *,
        fill: bool = False,
    ) -> ValueLoss:
        """Compute once, without gradient, everything that no shift of the *site* of block *layer* moves.

        Args:
            lm: the model.
            trees: of the tasks.
            packs: what :func:`lay_out` made of them.
            layer: the block.
            site: whether its output is shifted or its MLP's.
            fill: fill the one tree up to the size of its bucket (``resume.bucket``), so that few sizes occur.
        """
        mlp = lm.layout.mlp.format(layer)
        is_normed = site == "mlp" and lm.layout.mlp_out_norm is not None
        with torch.no_grad(), hooks.capture(lm, [(mlp, "output")] if is_normed else []) as seen:
            rest = resume.remainder_after(
                lm, packs, _flags(packs, [t.begins for t in trees]), first=layer + 1, fill=fill
            )
        plan = ReadPlan.build(trees, packs, rest.column_of)
        if fill:
            plan = plan.fill(rest.states.shape[1], len(trees[0].lookups) + 1)
        outputs = rest.select(seen[mlp, "output"])[plan.shifted] if is_normed else None
        if not rest.states.is_cpu and plan.tasks is None and outputs is None:
            counts = [len({*t.lookups, t.kl}) for t in trees]
            plan = replace(plan, on_device=PlanTables.of(plan, rest.states, counts))
        return cls(rest.states, plan, rest.upper.read_at(*plan.read()), layer, outputs)

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
        readout = head.logprobs_and_kl(lm, self.upper.hidden(lm, self._moved(lm, shift)), self.plan.token, base_logp)
        nll, hit = self._per_task(readout, len(shift))
        decay = torch.linalg.vector_norm(shift, dim=1) / origin.norm(dim=1) ** 2
        loss: Tensor = nll + spec.kl * readout.kl + spec.weight_decay * decay
        return loss, hit, readout.base

    def _moved(self, lm: LanguageModel, shift: Tensor) -> Tensor:
        """Add each task's δ at its look-up tokens: ``states[pack, column] += shift[task]``."""
        plan = self.plan
        if plan.on_device is not None:
            whole = shift.to(self.states.dtype)
            moved: Tensor = _Shifted.apply(whole, self.states, plan.on_device)  # type: ignore[no-untyped-call]
            return moved
        of_shifted, _ = plan.owners()
        change = shift[of_shifted].to(self.states.dtype)
        if self.outputs is not None:
            # What is shifted is normed on its way to the stream: N(m + δ) − N(m).
            before, after = (lm.to_stream(self.layer, m) for m in (self.outputs, self.outputs + change))
            change = after - before
        return self.states.index_put(plan.shifted, change, accumulate=True)

    def _per_task(self, readout: head.HeadReadout, n: int) -> tuple[Tensor, Tensor]:
        """Return each task's negative log-likelihood, a mean over contexts by the weights, and whether it has hit, ``[n]`` each.

        A task has hit when none of its demanded predictions misses, in any context.
        """
        plan, tables = self.plan, self.plan.on_device
        if tables is not None:
            return -(tables.share * readout.logp).sum(1), ~(tables.demanded & ~readout.is_argmax).any(1)
        zeros = torch.zeros(n, device=readout.logp.device)
        _, of_demanded = plan.owners()
        nll = zeros.index_add(0, of_demanded, -readout.logp * plan.weight)
        misses = ~readout.is_argmax & (plan.weight > 0) if plan.filled else ~readout.is_argmax
        return nll, zeros.index_add(0, of_demanded, misses.float()) == 0
