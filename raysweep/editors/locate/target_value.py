"""Values: the vector that, put at the subject's last token, makes the model say the target (ROME v*, MEMIT z).

One optimisation for the whole family (editors.md §6.3, §7.1). A shift ``δ`` of one token of one block's output changes neither
the tokens before it nor the blocks below, so each step runs only the blocks above, only the tokens from the look-up token on,
all rows in one pack without padding, and the head only where a prediction is needed (exact up to rounding).

Shape legend: ``n`` records optimised together, ``R`` rows of all of them, ``m`` target tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysweep.editors.specs import ValueSpec
from raysweep.models import hooks, tokens
from raysweep.models.forward import head, prefix_tree, resume
from raysweep.models.lm import LanguageModel

STOP_LOSS = 5e-2  # published constant of ROME and MEMIT
BUSY = 0.75  # leave out the tasks that have stopped once fewer than this share of those computed go on: it costs about a step


@dataclass(frozen=True, slots=True)
class Task:
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


def task(
    lm: LanguageModel,
    template: str,
    subject: str,
    target: tokens.Target,
    contexts: Sequence[str],
    *,
    decoded: bool = False,
) -> Task:
    """Build the rows of one record (§6.3, steps 2–4).

    *decoded*: what comes after the prompt is the text of all target ids but the last, encoded again, as published. Where that cuts
    a character of several tokens, the row holds a replacement character instead (quirk Q50).
    """
    rows, lookups = [], []
    for context in contexts:
        whole = context.replace("{}", template)
        prompt = whole.replace("{}", subject)
        lookups.append(tokens.subject_last(lm, whole, subject))
        if decoded:
            rows.append(tuple(tokens.encode(lm, prompt + tokens.decode(lm, target.alone[:-1]))))
        else:
            rows.append(tuple(tokens.before_last(lm, prompt, target)))
    lookups.append(tokens.subject_last(lm, "{} is a", subject))
    rows.append(tuple(tokens.encode(lm, f"{subject} is a")))
    return Task(tuple(rows), tuple(lookups), target.demanded)


def optimise(
    lm: LanguageModel, tasks: Sequence[Task], *, layer: int, site: Literal["mlp", "block"], spec: ValueSpec
) -> list[Value]:
    """Find the shift of each task; tasks never see each other.

    Args:
        lm: the model; left as it was.
        tasks: one per record.
        layer: the block to shift.
        site: ``mlp`` measures the origin at the MLP's output (ROME), ``block`` at the block's (MEMIT). The shift itself
            acts on the residual stream either way, which is the same thing in pre-norm blocks.
        spec: hyper-parameters.
    """
    found: list[Value] = []
    for begin in range(0, len(tasks), spec.batch):
        found += _optimise(lm, tasks[begin : begin + spec.batch], layer, site, spec)
    return found


def _optimise(lm: LanguageModel, tasks: Sequence[Task], layer: int, site: str, spec: ValueSpec) -> list[Value]:
    layout = lm.layout
    names = {"key": layout.mlp_out.format(layer), "mlp": layout.mlp.format(layer), "block": layout.block.format(layer)}
    wanted: list[tuple[str, hooks.Side]] = [
        (names["key"], "input"),
        (names["key"], "output"),
        (names["mlp"], "output"),
        (names["block"], "output"),
    ]
    trees = [_Nodes.of(t) for t in tasks]
    with hooks.capture(lm, wanted) as seen:
        left = _Left.of(lm, trees, layer)
    keys = [seen[names["key"], "input"][i, list(t.lookups)].float() for i, t in enumerate(trees)]
    bare = (list(range(len(trees))), [t.lookups[0] for t in trees])
    output = seen[names["key"], "output"][bare].float()
    origin = seen[names[site], "output"][bare].float()
    shift = torch.zeros_like(origin)
    adam = _Adam(shift, spec.lr)
    limit = spec.clamp * origin.norm(dim=1, keepdim=True)
    active = torch.ones(len(tasks), dtype=torch.bool, device=lm.device)
    who = torch.arange(len(tasks), device=lm.device)  # the tasks that are still computed
    base: Tensor | None = None
    first, last = (torch.zeros(len(tasks), device=lm.device) for _ in range(2))
    steps = torch.zeros(len(tasks), dtype=torch.int64, device=lm.device)
    for iteration in range(spec.steps):
        if len(who) > 1 and len(who) * BUSY > int(active.sum()):
            assert base is not None
            who, base = active.nonzero()[:, 0], base[active[who]]
            left = _Left.of(lm, [trees[i] for i in who.tolist()], layer)
        leaf = shift[who].requires_grad_(True)
        with torch.enable_grad():
            loss, hit, base = left.loss(lm, base, leaf, origin[who], spec)
        value = last.index_put((who,), loss.detach())
        first = value if iteration == 0 else first
        last = torch.where(active, value, last)
        steps = steps + active
        active = active & (value >= STOP_LOSS)
        if spec.stop_on_argmax:
            active[who[hit]] = False
        if iteration == spec.steps - 1 or not bool(active.any()):
            break
        (found,) = torch.autograd.grad(loss.sum(), leaf)
        moved = adam.step(shift, torch.zeros_like(shift).index_put((who,), found), active)
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
class _Nodes:
    """A task's rows as one tree, and the nodes that matter.

    Attributes:
        tree: all tokens but those after the KL row's look-up token, which ask nothing.
        lookups: of each context.
        begins: of each row, from where on it changes or is asked.
        asks: (node, demanded id, weight) per demanded prediction; the weights add up to 1.
        kl: the KL row's look-up token.
    """

    tree: prefix_tree.PrefixTree
    lookups: tuple[int, ...]
    begins: tuple[int, ...]
    asks: tuple[tuple[int, int, float], ...]
    kl: int

    @classmethod
    def of(cls, task: Task) -> _Nodes:
        tree, m, c = prefix_tree.PrefixTree(), len(task.targets), len(task.rows) - 1
        ends = [*(len(row) for row in task.rows[:-1]), task.lookups[-1] + 1]
        paths = [
            tree.add(row[:end], mark=lookup) for row, lookup, end in zip(task.rows, task.lookups, ends, strict=True)
        ]
        asks = [(n, t, 1.0 / (c * m)) for p in paths[:-1] for n, t in zip(p[-m:], task.targets, strict=True)]
        lookups = [p[lookup] for p, lookup in zip(paths, task.lookups, strict=True)]
        begins = [p[min(lookup, len(p) - m)] for p, lookup in zip(paths[:-1], task.lookups, strict=False)]
        return cls(tree, tuple(lookups[:-1]), (*begins, lookups[-1]), tuple(asks), lookups[-1])


def _flags(like: Tensor, nodes: Sequence[Sequence[int]]) -> Tensor:
    """Return ``[B, N]``, True at each pack's *nodes*."""
    flags = torch.zeros_like(like, dtype=torch.bool)
    for i, chosen in enumerate(nodes):
        flags[i, list(chosen)] = True
    return flags


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the remaining tokens that matter are; task i is row i of the batch.

    Attributes:
        shifted: (task, column) of every look-up token, each once.
        asked: (task, column) of every demanded prediction.
        wanted: the ids demanded there, ``[n]``.
        weight: ``[n]``, 1 / (contexts · m).
        kl: (task, column) of the KL rows' look-up tokens.
    """

    shifted: tuple[Tensor, Tensor]
    asked: tuple[Tensor, Tensor]
    wanted: Tensor
    weight: Tensor
    kl: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, tasks: Sequence[_Nodes], column: Tensor) -> _Plan:
        def at(nodes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
            task, node = torch.tensor(nodes, device=column.device).T
            return task, column[task, node]

        asks = [(i, *ask) for i, t in enumerate(tasks) for ask in t.asks]
        return cls(
            shifted=at([(i, node) for i, t in enumerate(tasks) for node in sorted({*t.lookups, t.kl})]),
            asked=at([(i, node) for i, node, _, _ in asks]),
            wanted=torch.tensor([wanted for _, _, wanted, _ in asks], device=column.device),
            weight=torch.tensor([weight for *_, weight in asks], device=column.device),
            kl=at([(i, t.kl) for i, t in enumerate(tasks)]),
        )

    def read(self) -> tuple[Tensor, Tensor]:
        """Return (task, column) of everything that is read: the demanded predictions, then the KL rows."""
        rows, columns = (torch.cat(both) for both in zip(self.asked, self.kl, strict=True))
        return rows, columns


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left to compute in each step for some tasks."""

    states: Tensor
    plan: _Plan
    spots: resume.ReadPositions

    @classmethod
    def of(cls, lm: LanguageModel, trees: Sequence[_Nodes], layer: int) -> _Left:
        """Compute everything that no shift after block *layer* moves."""
        packs = prefix_tree.lay_out(lm, [t.tree for t in trees], ())
        with torch.no_grad():
            rest = resume.remainder_after(lm, packs, _flags(packs.ids, [t.begins for t in trees]), first=layer + 1)
        plan = _Plan.of(trees, rest.column_of)
        return cls(rest.states, plan, rest.upper.read_at(*plan.read()))

    def loss(
        self, lm: LanguageModel, base: Tensor | None, shift: Tensor, origin: Tensor, spec: ValueSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Given the shifts ``[n, d]``, return the loss ``[n]``, whether every demanded id is the arg-max ``[n]``, and ``log P_0``.

        ``mean over contexts of −(1/m) Σ log p(target) + kl · Σ P_δ (log P_δ − log P_0) + decay · ‖δ‖ / ‖v₀‖²``, where ``P`` are
        the predictions at the KL rows; ``P_0`` is *base*, None: those of now.
        """
        plan = self.plan
        moved = self.states.index_put(plan.shifted, shift[plan.shifted[0]].to(self.states.dtype), accumulate=True)
        told = head.logprobs_and_kl(lm, self.spots.hidden(lm, moved), plan.wanted, base)
        zeros = torch.zeros(len(shift), device=shift.device)
        nll = zeros.index_add(0, plan.asked[0], -told.logp * plan.weight)
        decay = torch.linalg.vector_norm(shift, dim=1) / origin.norm(dim=1) ** 2
        missed = zeros.index_add(0, plan.asked[0], (~told.is_argmax).float())
        loss: Tensor = nll + spec.kl * told.kl + spec.weight_decay * decay
        return loss, missed == 0, told.base


class _Adam:
    """Adam (β = 0.9, 0.999; ε = 1e-8) on rows that stop at different times."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr = lr
        self.mean = torch.zeros_like(like)
        self.square = torch.zeros_like(like)
        self.count = 0

    def step(self, value: Tensor, gradient: Tensor, active: Tensor) -> Tensor:
        """Return *value* after one update; rows that are not *active* are the caller's to keep."""
        self.count += 1
        gradient = torch.where(active[:, None], gradient, torch.zeros_like(gradient))
        self.mean = self.mean + (gradient - self.mean) * (1 - 0.9)
        self.square = self.square * 0.999 + gradient * gradient * (1 - 0.999)
        scale: Tensor = (self.square.sqrt() / (1 - 0.999**self.count) ** 0.5) + 1e-8
        moved: Tensor = value - (self.lr / (1 - 0.9**self.count)) * self.mean / scale
        return moved
