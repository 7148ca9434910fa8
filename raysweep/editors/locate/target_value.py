"""The target value: the vector that, at the subject's last token, makes the model say the target (ROME's v*, MEMIT's z).

One optimisation for the whole family (ROME eq. 4, MEMIT eq. 16; docs/methods/rome.md). A shift ``δ`` of block ``l``'s output at the
subject's last token of every row is found by Adam::

    L(δ) = mean_c [ −(1/m) Σ_j log p_δ(y_j | c, x, y_{<j}) ]         the target, in every context c
         + kl · Σ P_δ (log P_δ − log P_0)                            what the model predicts after "{subject} is" must stay
         + weight_decay · ‖δ‖ / ‖v_0‖²                               (a norm over a squared norm, as published)

and after each update ``‖δ‖ ≤ clamp · ‖v_0‖``, ``v_0`` the un-shifted output at the bare prompt. It ends once ``L < 0.05``.

A shift changes neither the tokens before it nor the blocks below, so each step runs only the blocks above, only the tokens from
the look-up token on, all rows in one pack without padding, and the head only where a prediction is needed (exact up to rounding).

Shape legend: ``n`` records optimised together, ``c`` contexts, ``m`` target tokens, ``N`` nodes of a record's prefix tree, ``k``
demanded predictions of all of them, ``d`` width of the residual stream, ``d_in`` width of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysweep.editors.locate.rowwise_adam import RowwiseAdam
from raysweep.editors.specs import ValueSpec
from raysweep.models import hooks, tokens
from raysweep.models.forward import head, prefix_tree, resume
from raysweep.models.lm import LanguageModel

# nats; published constant of ROME and MEMIT
STOP_LOSS = 5e-2
MIN_ACTIVE_SHARE = (
    0.75  # of the tasks computed; below it those that have stopped are left out, which costs about a step
)


@dataclass(frozen=True, slots=True)
class ValueTask:
    """Rows of one record: its prompt in every context followed by all but the last target token, then the KL row.

    ``lookups`` are the indices of the subject's last token; ``targets`` are the ids demanded at the last ``m`` positions
    of every row but the last.
    """

    rows: tuple[tuple[int, ...], ...]
    lookups: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """Result of one optimisation.

    Attributes:
        shift: ``δ [d]`` fp32.
        origin: ``v₀ [d]``, the un-shifted output at the bare prompt's look-up token.
        keys: ``[c, d_in]`` inputs of the value module at the look-up token, per context.
        output: ``[d_out]`` output of the value module there, bare prompt.
        loss: the last loss measured; ``first_loss`` the first; ``steps`` how many were measured.
    """

    shift: Tensor
    origin: Tensor
    keys: Tensor
    output: Tensor
    loss: float
    first_loss: float
    steps: int


def value_task(
    lm: LanguageModel,
    template: str,
    subject: str,
    target: tokens.Target,
    contexts: Sequence[str],
    *,
    decoded: bool = False,
) -> ValueTask:
    """Return the rows of one record: its prompt in every context with the target behind it, and "{subject} is a".

    Args:
        lm: the model, for its tokenizer.
        template: the prompt with ``{}`` in place of the subject.
        subject: what the prompt is about.
        target: the ids demanded.
        contexts: templates with ``{}`` in place of the prompt, the bare ``"{}"`` first.
        decoded: what comes after the prompt is the text of all target ids but the last, encoded again, as published. Where that
            cuts a character of several tokens, the row holds a replacement character instead (quirk Q50).
    """
    rows, lookups = [], []
    for context in contexts:
        in_context = context.replace("{}", template)
        prompt = in_context.replace("{}", subject)
        lookups.append(tokens.subject_last(lm, in_context, subject))
        # The last target token is only predicted, never read: rows end before it.
        if decoded:
            rows.append(tuple(tokens.encode(lm, prompt + tokens.decode(lm, target.alone[:-1]))))
        else:
            rows.append(tuple(tokens.before_last(lm, prompt, target)))
    # The KL row: what the model predicts right behind the subject should stay.
    lookups.append(tokens.subject_last(lm, "{} is a", subject))
    rows.append(tuple(tokens.encode(lm, f"{subject} is a")))
    return ValueTask(tuple(rows), tuple(lookups), target.demanded)


def optimise(
    lm: LanguageModel, tasks: Sequence[ValueTask], *, layer: int, site: Literal["mlp", "block"], spec: ValueSpec
) -> list[Value]:
    """Find the shift of each task; tasks never see each other.

    Args:
        lm: the model; left as it was.
        tasks: one per record.
        layer: the block to shift.
        site: ``mlp`` measures the origin at the MLP's output (ROME), ``block`` at the block's (MEMIT). The shift itself
            acts on the residual stream either way, which is the same thing in pre-norm blocks.
        spec: hyper-parameters; ``spec.batch`` tasks are computed together.

    Returns:
        One value per task, in order.
    """
    values: list[Value] = []
    for begin in range(0, len(tasks), spec.batch):
        values += _optimise(lm, tasks[begin : begin + spec.batch], layer, site, spec)
    return values


def _read_origin(
    lm: LanguageModel, trees: Sequence[_TaskTree], layer: int, site: str
) -> tuple[_Remainder, list[Tensor], Tensor, Tensor]:
    """Return what later steps start from, each task's keys ``[c, d_in]``, and the un-shifted outputs and ``v_0`` ``[n, d]``."""
    layout = lm.layout
    names = {"key": layout.mlp_out.format(layer), "mlp": layout.mlp.format(layer), "block": layout.block.format(layer)}
    sides: list[tuple[str, hooks.Side]] = [
        (names["key"], "input"),
        (names["key"], "output"),
        (names["mlp"], "output"),
        (names["block"], "output"),
    ]
    with hooks.capture(lm, sides) as seen:
        remainder = _Remainder.compute(lm, trees, layer)
    # Row i of what was captured is the tree of task i: [n, N, …], gathered at the look-up nodes.
    keys = [seen[names["key"], "input"][i, list(t.lookups)].float() for i, t in enumerate(trees)]
    # The bare prompt is the first context: one look-up node per task, so output and origin are [n, d].
    bare = (list(range(len(trees))), [t.lookups[0] for t in trees])
    return remainder, keys, seen[names["key"], "output"][bare].float(), seen[names[site], "output"][bare].float()


def _optimise(lm: LanguageModel, tasks: Sequence[ValueTask], layer: int, site: str, spec: ValueSpec) -> list[Value]:
    trees = [_TaskTree.build(t) for t in tasks]
    remainder, keys, output, origin = _read_origin(lm, trees, layer, site)
    shift = torch.zeros_like(origin)
    adam = RowwiseAdam(shift, spec.lr)
    limit = spec.clamp * origin.norm(dim=1, keepdim=True)
    active = torch.ones(len(tasks), dtype=torch.bool, device=lm.device)
    # indices of the tasks that still take part in the forward pass
    computed = torch.arange(len(tasks), device=lm.device)
    # log P_0 at the KL rows, known after the first pass
    base_logp: Tensor | None = None
    first, last = (torch.zeros(len(tasks), device=lm.device) for _ in range(2))
    steps = torch.zeros(len(tasks), dtype=torch.int64, device=lm.device)
    for iteration in range(spec.steps):
        # Stopped tasks would only cost; leaving them out needs new packs, which costs about a step.
        if len(computed) > 1 and len(computed) * MIN_ACTIVE_SHARE > int(active.sum()):
            assert base_logp is not None
            computed, base_logp = active.nonzero()[:, 0], base_logp[active[computed]]
            remainder = _Remainder.compute(lm, [trees[i] for i in computed.tolist()], layer)
        # Only the shift is a leaf: no parameter of the model gets a gradient.
        leaf = shift[computed].requires_grad_(True)
        with torch.enable_grad():
            loss, all_hit, base_logp = remainder.loss(lm, base_logp, leaf, origin[computed], spec)
        # Stopped tasks keep the loss they stopped with, [n] over all tasks.
        value = last.index_put((computed,), loss.detach())
        first = value if iteration == 0 else first
        last = torch.where(active, value, last)
        steps = steps + active
        active = active & (value >= STOP_LOSS)
        if spec.stop_on_argmax:
            active[computed[all_hit]] = False
        # The last pass only measures, as published: at most steps − 1 updates.
        if iteration == spec.steps - 1 or not bool(active.any()):
            break
        # Tasks share nothing, so the gradient of the sum is each task's own.
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        moved = adam.step(shift, torch.zeros_like(shift).index_put((computed,), gradient), active)
        # Project onto the ball ‖δ‖ ≤ clamp · ‖v_0‖ of each task.
        norm = moved.norm(dim=1, keepdim=True)
        moved = torch.where(norm > limit, moved * limit / norm, moved)
        shift = torch.where(active[:, None], moved, shift)
    return [
        Value(
            shift=shift[i],
            origin=origin[i],
            keys=keys[i],
            output=output[i],
            loss=float(last[i]),
            first_loss=float(first[i]),
            steps=int(steps[i]),
        )
        for i in range(len(tasks))
    ]


@dataclass(frozen=True, slots=True)
class _TaskTree:
    """A task's rows as one tree, and the nodes that matter.

    Attributes:
        tree: all tokens but those after the KL row's look-up token, which nothing reads.
        lookups: of each context.
        begins: of each row, the first node that the shift changes or that is read.
        demanded: (node, demanded id, weight) per demanded prediction; the weights add up to 1.
        kl: the KL row's look-up node.
    """

    tree: prefix_tree.PrefixTree
    lookups: tuple[int, ...]
    begins: tuple[int, ...]
    demanded: tuple[tuple[int, int, float], ...]
    kl: int

    @classmethod
    def build(cls, task: ValueTask) -> _TaskTree:
        """Lay the rows of *task* into one prefix tree; what two rows begin with in common is there once."""
        tree, m, c = prefix_tree.PrefixTree(), len(task.targets), len(task.rows) - 1
        ends = [*(len(row) for row in task.rows[:-1]), task.lookups[-1] + 1]
        paths = [
            tree.add(row[:end], mark=lookup) for row, lookup, end in zip(task.rows, task.lookups, ends, strict=True)
        ]
        # the last m nodes of a row predict its m target tokens
        demanded = [(n, t, 1.0 / (c * m)) for p in paths[:-1] for n, t in zip(p[-m:], task.targets, strict=True)]
        lookups = [p[lookup] for p, lookup in zip(paths, task.lookups, strict=True)]
        # A row matters from its look-up token on, or from its first prediction if that comes before.
        begins = [p[min(lookup, len(p) - m)] for p, lookup in zip(paths[:-1], task.lookups, strict=False)]
        return cls(tree, tuple(lookups[:-1]), (*begins, lookups[-1]), tuple(demanded), lookups[-1])


def _flags(like: Tensor, nodes: Sequence[Sequence[int]]) -> Tensor:
    """Return ``[B, N]``, True at each pack's *nodes*."""
    flags = torch.zeros_like(like, dtype=torch.bool)
    for i, chosen in enumerate(nodes):
        flags[i, list(chosen)] = True
    return flags


@dataclass(frozen=True, slots=True)
class _ReadPlan:
    """Where what is shifted and what is read lies among the remaining tokens; task i is row i of the batch.

    Attributes:
        shifted: (task, column) of every look-up token, each once.
        demanded: (task, column) of every demanded prediction, ``[k]`` each.
        token: the ids demanded there, ``[k]``.
        weight: ``[k]``, 1 / (contexts · m).
        kl: (task, column) of the KL rows' look-up tokens.
    """

    shifted: tuple[Tensor, Tensor]
    demanded: tuple[Tensor, Tensor]
    token: Tensor
    weight: Tensor
    kl: tuple[Tensor, Tensor]

    @classmethod
    def build(cls, trees: Sequence[_TaskTree], column: Tensor) -> _ReadPlan:
        """Translate nodes into columns of what remains; ``column [n, N]`` tells where each node is."""

        def locate(nodes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
            task, node = torch.tensor(nodes, device=column.device).T
            return task, column[task, node]

        demanded = [(i, *one) for i, t in enumerate(trees) for one in t.demanded]
        return cls(
            shifted=locate([(i, node) for i, t in enumerate(trees) for node in sorted({*t.lookups, t.kl})]),
            demanded=locate([(i, node) for i, node, _, _ in demanded]),
            token=torch.tensor([token for _, _, token, _ in demanded], device=column.device),
            weight=torch.tensor([weight for *_, weight in demanded], device=column.device),
            kl=locate([(i, t.kl) for i, t in enumerate(trees)]),
        )

    def read(self) -> tuple[Tensor, Tensor]:
        """Return (task, column) of everything that is read: the demanded predictions, then the KL rows."""
        rows, columns = (torch.cat(both) for both in zip(self.demanded, self.kl, strict=True))
        return rows, columns


@dataclass(frozen=True, slots=True)
class _Remainder:
    """What each step has to compute for some tasks: from the output of the shifted block to the predictions that are read.

    Attributes:
        states: ``[n, T, d]`` un-shifted outputs of the block at the tokens that the shift changes or that are read.
        plan: where the look-up tokens and the predictions are among them.
        spots: the blocks above, read where the plan reads.
    """

    states: Tensor
    plan: _ReadPlan
    spots: resume.ReadPositions

    @classmethod
    def compute(cls, lm: LanguageModel, trees: Sequence[_TaskTree], layer: int) -> _Remainder:
        """Compute everything that no shift after block *layer* moves."""
        # One pack per task, no rows to look up by place: nodes are translated by the remainder's columns.
        packs = prefix_tree.lay_out(lm, [t.tree for t in trees], ())
        with torch.no_grad():
            rest = resume.remainder_after(lm, packs, _flags(packs.ids, [t.begins for t in trees]), first=layer + 1)
        plan = _ReadPlan.build(trees, rest.column_of)
        return cls(rest.states, plan, rest.upper.read_at(*plan.read()))

    def loss(
        self, lm: LanguageModel, base_logp: Tensor | None, shift: Tensor, origin: Tensor, spec: ValueSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss ``[n]`` of the shifts ``[n, d]``, whether every demanded id is the arg-max ``[n]``, and ``log P_0``.

        ``mean over contexts of −(1/m) Σ log p(target) + kl · Σ P_δ (log P_δ − log P_0) + decay · ‖δ‖ / ‖v_0‖²``, where ``P`` are
        the predictions at the KL rows; ``log P_0`` is *base_logp*, None: that of now.
        """
        plan = self.plan
        # add each task's δ at its look-up tokens: states[task, column] += shift[task]
        moved = self.states.index_put(plan.shifted, shift[plan.shifted[0]].to(self.states.dtype), accumulate=True)
        readout = head.logprobs_and_kl(lm, self.spots.hidden(lm, moved), plan.token, base_logp)
        zeros = torch.zeros(len(shift), device=shift.device)
        nll = zeros.index_add(0, plan.demanded[0], -readout.logp * plan.weight)
        decay = torch.linalg.vector_norm(shift, dim=1) / origin.norm(dim=1) ** 2
        # A task has hit when none of its demanded predictions misses, in any context.
        missed = zeros.index_add(0, plan.demanded[0], (~readout.is_argmax).float())
        loss: Tensor = nll + spec.kl * readout.kl + spec.weight_decay * decay
        return loss, missed == 0, readout.base
