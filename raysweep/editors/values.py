"""Values: the vector that, put at the subject's last token, makes the model say the target (ROME v*, MEMIT z).

One optimisation for the whole family (editors.md §6.3, §7.1). A shift ``δ`` of one token of one block's output changes neither
the tokens before it nor the blocks below, so each step runs only the blocks above, only the tokens from the look-up token on,
and the head only where a prediction is needed (exact up to rounding).

Shape legend: ``n`` records optimised together, ``R`` rows of all of them, ``m`` target tokens, ``d`` width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysweep.editors.base import ValueSpec
from raysweep.editors.keys import at
from raysweep.models import hooks, partial, tokens
from raysweep.models.lm import LanguageModel

STOP_LOSS = 5e-2  # published constant of ROME and MEMIT


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
    lm: LanguageModel, template: str, subject: str, targets: Sequence[int], contexts: Sequence[str], *, skip: int = 0
) -> Task:
    """Build the rows of one record (§6.3, steps 2–4); the first *skip* of *targets* are written but not demanded."""
    head = tokens.decode(lm, targets[:-1])
    rows, lookups = [], []
    for context in contexts:
        whole = context.replace("{}", template)
        lookups.append(tokens.subject_last(lm, whole, subject))
        rows.append(tuple(tokens.encode(lm, whole.replace("{}", subject) + head)))
    lookups.append(tokens.subject_last(lm, "{} is a", subject))
    rows.append(tuple(tokens.encode(lm, f"{subject} is a")))
    return Task(tuple(rows), tuple(lookups), tuple(targets[skip:]))


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
    plan = _Plan.of(lm, tasks)
    layout = lm.layout
    names = {"key": layout.mlp_out.format(layer), "mlp": layout.mlp.format(layer), "block": layout.block.format(layer)}
    wanted: list[tuple[str, hooks.Side]] = [
        (names["key"], "input"),
        (names["key"], "output"),
        (names["mlp"], "output"),
        (names["block"], "output"),
    ]
    with torch.no_grad(), hooks.capture(lm, wanted) as seen:
        rest = partial.tail(lm, plan.ids, plan.mask, layer=layer, start=plan.start)
        keys, output = at(seen[names["key"], "input"], plan.lookups), at(seen[names["key"], "output"], plan.lookups)
        origin = at(seen[names[site], "output"], plan.lookups)[plan.bare].float()
        state_dtype = rest.states.dtype
    shift = torch.zeros_like(origin)
    adam = _Adam(shift, spec.lr)
    limit = spec.clamp * origin.norm(dim=1, keepdim=True)
    active = torch.ones(len(tasks), dtype=torch.bool, device=lm.device)
    base: Tensor | None = None
    first = last = torch.zeros(len(tasks), device=lm.device)
    steps = torch.zeros(len(tasks), dtype=torch.int64, device=lm.device)
    for iteration in range(spec.steps):
        leaf = shift.clone().requires_grad_(True)
        with torch.enable_grad():
            moved = rest.states.index_put((plan.row, plan.column), leaf[plan.owner].to(state_dtype), accumulate=True)
            loss, hit, base = plan.loss(lm, rest.hidden(lm, moved), base, leaf, origin, spec)
        value = loss.detach()
        first = value if iteration == 0 else first
        last = torch.where(active, value, last)
        steps = steps + active
        active = active & (value >= STOP_LOSS)
        if spec.stop_on_argmax:
            active = active & ~hit
        if iteration == spec.steps - 1 or not bool(active.any()):
            break
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        moved_shift = adam.step(shift, gradient, active)
        norm = moved_shift.norm(dim=1, keepdim=True)
        moved_shift = torch.where(norm > limit, moved_shift * limit / norm, moved_shift)
        shift = torch.where(active[:, None], moved_shift, shift)
    return [
        Value(
            shift=shift[i],
            origin=origin[i],
            keys=keys[plan.contexts[i]].float(),
            output=output[plan.bare[i]].float(),
            loss=float(last[i]),
            first_loss=float(first[i]),
            steps=int(steps[i]),
        )
        for i in range(len(tasks))
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where everything is when the rows of several tasks lie in one padded batch."""

    ids: Tensor
    mask: Tensor
    lookups: list[int]
    start: list[int]
    bare: list[int]  # row of each task's bare prompt
    contexts: list[list[int]]  # rows of each task but its KL row
    row: Tensor  # [R] 0 … R-1
    column: Tensor  # [R] column of the look-up token among the remaining ones
    owner: Tensor  # [R] task of each row
    ask_row: Tensor  # rows, columns and ids of every demanded prediction
    ask_column: Tensor
    ask_id: Tensor
    ask_owner: Tensor
    ask_weight: Tensor  # 1 / (contexts · m)
    kl_row: Tensor  # [n]
    kl_column: Tensor

    @classmethod
    def of(cls, lm: LanguageModel, tasks: Sequence[Task]) -> _Plan:
        rows = [row for t in tasks for row in t.rows]
        ids, mask = tokens.pad(rows, lm.device)
        lookups: list[int] = []
        start: list[int] = []
        owner: list[int] = []
        bare: list[int] = []
        contexts: list[list[int]] = []
        asks: list[tuple[int, int, int, int, float]] = []
        kl: list[tuple[int, int]] = []
        for number, t in enumerate(tasks):
            bare.append(len(lookups))
            contexts.append(list(range(len(lookups), len(lookups) + len(t.rows) - 1)))
            m, c = len(t.targets), len(t.rows) - 1
            for i, (row, lookup) in enumerate(zip(t.rows, t.lookups, strict=True)):
                at_row = len(lookups)
                first = min(lookup, len(row) - m) if i < c else lookup
                lookups.append(lookup)
                start.append(first)
                owner.append(number)
                if i < c:
                    spots = range(len(row) - m, len(row))
                    asks += [
                        (at_row, spot - first, target, number, 1.0 / (c * m))
                        for spot, target in zip(spots, t.targets, strict=True)
                    ]
                else:
                    kl.append((at_row, 0))

        def tensor(values: Sequence[int | float]) -> Tensor:
            return torch.tensor(list(values), device=lm.device)

        return cls(
            ids, mask, lookups, start, bare, contexts,
            row=tensor(range(len(lookups))),
            column=tensor([a - b for a, b in zip(lookups, start, strict=True)]),
            owner=tensor(owner),
            ask_row=tensor([a[0] for a in asks]), ask_column=tensor([a[1] for a in asks]),
            ask_id=tensor([a[2] for a in asks]), ask_owner=tensor([a[3] for a in asks]),
            ask_weight=tensor([a[4] for a in asks]),
            kl_row=tensor([k[0] for k in kl]), kl_column=tensor([k[1] for k in kl]),
        )  # fmt: skip

    def loss(
        self, lm: LanguageModel, hidden: Tensor, base: Tensor | None, shift: Tensor, origin: Tensor, spec: ValueSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss ``[n]``, whether every demanded id is the arg-max ``[n]``, and ``log P_0`` of the KL rows.

        ``mean over contexts of −(1/m) Σ log p(target) + kl · Σ P_δ (log P_δ − log P_0) + decay · ‖δ‖ / ‖v₀‖²``.
        """
        rows = torch.cat([self.ask_row, self.kl_row])
        columns = torch.cat([self.ask_column, self.kl_column])
        logp = partial.logits(lm, hidden[rows, columns]).log_softmax(-1)
        ask, now = logp[: len(self.ask_row)], logp[len(self.ask_row) :]
        base = now.detach() if base is None else base
        chosen = ask.gather(1, self.ask_id[:, None])[:, 0]
        zeros = torch.zeros(len(self.bare), device=logp.device)
        nll = zeros.index_add(0, self.ask_owner, -chosen * self.ask_weight)
        kl = (now.exp() * (now - base)).sum(-1)
        decay = torch.linalg.vector_norm(shift, dim=1) / origin.norm(dim=1) ** 2
        missed = zeros.index_add(0, self.ask_owner, (ask.argmax(-1) != self.ask_id).float())
        loss: Tensor = nll + spec.kl * kl + spec.weight_decay * decay
        return loss, missed == 0, base


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
