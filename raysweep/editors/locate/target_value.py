"""The target value: the vector that, at the subject's last token, makes the model say the target (ROME's v*, MEMIT's z).

One optimisation for the whole family (ROME eq. 4, MEMIT eq. 16; docs/methods/rome.md). A shift ``δ`` of block ``l``'s output at the
subject's last token of every row, the *look-up token*, is found by Adam from 0::

    L(δ) = mean_c [ −(1/m) Σ_j log p_δ(y_j | c, x, y_{<j}) ]         the target, in every context c
         + kl · Σ P_δ (log P_δ − log P_0)                            what the model predicts right behind the subject must stay
         + weight_decay · ‖δ‖ / ‖v_0‖²                               (a norm over a squared norm, as published)

and after each update ``‖δ‖ ≤ clamp · ‖v_0‖``, ``v_0`` the un-shifted output at the bare prompt (the one without a context before
it). It ends once ``L < 0.05``. ``P`` is read at the look-up token of one more row, "{subject} is a", the *KL row*; ``P_0`` is that
of the model without a shift.

This module makes the rows of a record (:func:`value_task`) and holds the loop of Adam (:func:`optimise`); how ``L`` is computed
without running the whole model in every step is in ``locate/value_loss.py``.

Shape legend: ``n`` records optimised together, ``c`` contexts, ``m`` target tokens, ``d`` width of the residual stream, ``d_in``
width of a key, ``d_out`` of the value matrix's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.editors.locate import captured_value, value_loss
from raysweep.editors.locate.rowwise_adam import RowwiseAdam, clamped
from raysweep.editors.locate.value_loss import Site, TaskTree, ValueLoss
from raysweep.editors.specs import ValueSpec
from raysweep.editors.stopping import steps_between_reads
from raysweep.models import hooks, tokens
from raysweep.models.lm import LanguageModel
from raysweep.models.step_graphs import StepGraphs

# nats; published constant of ROME and MEMIT
STOP_LOSS = 5e-2
# Of the tasks computed; below it those that have stopped are left out, which costs about a step.
MIN_ACTIVE_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class ValueTask:
    """What is optimised for one record.

    Attributes:
        rows: ids of its prompt in every context, each followed by all target tokens but the last; then those of the KL row.
        lookups: of each row, the index of the subject's last token.
        targets: ids demanded at the last ``m`` positions of every row but the KL row.
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
        keys: ``[c, d_in]`` inputs of the value matrix at the look-up token, per context; the bare prompt's is the first.
        output: ``[d_out]`` output of the value matrix there, bare prompt.
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
        decoded: as published, what comes after the prompt is the text of all target ids but the last, encoded again. Where that
            cuts a character of several tokens, the row holds a replacement character instead (quirk Q50).
    """
    rows, lookups = [], []
    for context in contexts:
        in_context = tokens.in_context(lm, context, template)
        prompt = in_context.replace("{}", subject)
        lookups.append(tokens.subject_last(lm, in_context, subject))
        # The last target token is only predicted, never read: rows end before it.
        if decoded:
            rows.append(tuple(tokens.encode(lm, prompt + tokens.decode(lm, target.alone[:-1]))))
        else:
            rows.append(tuple(tokens.before_last(lm, prompt, target)))
    # The KL row. Only the prediction right behind the subject is read, in which "is a" has no part; but the published code
    # encodes the subject together with these words, and so it is done here.
    lookups.append(tokens.subject_last(lm, "{} is a", subject))
    rows.append(tuple(tokens.encode(lm, f"{subject} is a")))
    return ValueTask(tuple(rows), tuple(lookups), target.demanded)


def optimise(
    lm: LanguageModel,
    tasks: Sequence[ValueTask],
    *,
    layer: int,
    site: Site,
    spec: ValueSpec,
    graphs: StepGraphs | None = None,
) -> list[Value]:
    """Find the shift of each task; tasks never see each other.

    Args:
        lm: the model; left as it was.
        tasks: one per record.
        layer: the block to shift.
        site: ``mlp`` measures the origin at the MLP's output (ROME), ``block`` at the block's (MEMIT). The shift itself
            acts there, too; where the MLP's output is added to the stream as it is, that makes no difference.
        spec: hyper-parameters; ``spec.batch`` tasks are computed together.
        graphs: where ``spec.captured``, the steps recorded so far.

    Returns:
        One value per task, in order.

    Raises:
        ModelError: steps are to be captured, and cannot be on the model's device.
    """
    if graphs is not None:
        return [_optimise_captured(lm, task, layer, site, spec, graphs) for task in tasks]
    values: list[Value] = []
    for begin in range(0, len(tasks), spec.batch):
        values += _optimise_together(lm, tasks[begin : begin + spec.batch], layer, site, spec)
    return values


def _optimise_together(
    lm: LanguageModel, tasks: Sequence[ValueTask], layer: int, site: Site, spec: ValueSpec
) -> list[Value]:
    """Run the loop for some tasks at once: row i of ``shift [n, d]`` is the δ of task i."""
    trees = [TaskTree.build(t.rows, t.lookups, t.targets) for t in tasks]
    measured, keys, output, origin = _read_origin(lm, trees, layer, site)
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
    every, going_on = steps_between_reads(origin), len(tasks)
    for iteration in range(spec.steps):
        # Stopped tasks would only cost; leaving them out needs new packs, which costs about a step.
        if len(computed) * MIN_ACTIVE_SHARE > going_on:
            assert base_logp is not None
            computed, base_logp = active.nonzero()[:, 0], base_logp[active[computed]]
            left = [trees[i] for i in computed.tolist()]
            measured = ValueLoss.prepare(lm, left, value_loss.lay_out(lm, left), layer, site)
        some = None if len(computed) == len(tasks) else computed
        # Only the shift is a leaf: no parameter of the model gets a gradient.
        leaf = _of(shift, some).detach().requires_grad_(True)
        with torch.enable_grad():
            loss, all_hit, base_logp = measured.at(lm, leaf, _of(origin, some), spec, base_logp)
        # Stopped tasks keep the loss they stopped with, [n] over all tasks.
        value = _put(last, some, loss.detach())
        first = value if iteration == 0 else first
        last = torch.where(active, value, last)
        steps = steps + active
        active = active & (value >= STOP_LOSS)
        if spec.stop_on_argmax:
            active = active & ~_put(torch.zeros_like(active), some, all_hit)
        # The last pass only measures, as published: at most steps − 1 updates.
        if iteration == spec.steps - 1:
            break
        # What has stopped is neither moved nor measured any more, so it does not matter when this is read.
        if (iteration + 1) % every == 0:
            going_on = int(active.sum())
            if not going_on:
                break
        # Tasks share nothing, so the gradient of the sum is each task's own.
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        moved = adam.step(shift, _put(torch.zeros_like(shift), some, gradient), active)
        # Project onto the ball ‖δ‖ ≤ clamp · ‖v_0‖ of each task.
        shift = torch.where(active[:, None], clamped(moved, limit), shift)
    return _values(shift, origin, keys, output, torch.stack([last.double(), first.double(), steps.double()]))


def _of(everyone: Tensor, some: Tensor | None) -> Tensor:
    """Return the rows *some* of ``everyone [n, …]``; None: all."""
    return everyone if some is None else everyone[some]


def _put(everyone: Tensor, some: Tensor | None, rows: Tensor) -> Tensor:
    """Return ``everyone [n, …]`` with *rows* in place of those at *some*; None: of all."""
    return rows if some is None else everyone.index_put((some,), rows)


def _optimise_captured(
    lm: LanguageModel, task: ValueTask, layer: int, site: Site, spec: ValueSpec, graphs: StepGraphs
) -> Value:
    """Run the loop for one task by recorded steps."""
    trees = [TaskTree.build(task.rows, task.lookups, task.targets)]
    measured, keys, output, origin = _read_origin(lm, trees, layer, site, fill=True)
    shift, *numbers = captured_value.find(lm, measured, origin, spec, graphs, stop_loss=STOP_LOSS)
    return _values(shift, origin, keys, output, torch.stack([n.double() for n in numbers]))[0]


def _values(shift: Tensor, origin: Tensor, keys: Sequence[Tensor], output: Tensor, numbers: Tensor) -> list[Value]:
    """Return the results of ``n`` tasks; *numbers* ``[3, n]`` are last losses, first losses and steps."""
    # one read for all of them; fp64 holds losses and counts exactly
    return [
        Value(
            shift=shift[i], origin=origin[i], keys=keys[i], output=output[i], loss=end, first_loss=start, steps=int(n)
        )
        for i, (end, start, n) in enumerate(zip(*numbers.tolist(), strict=True))
    ]


def _read_origin(
    lm: LanguageModel, trees: Sequence[TaskTree], layer: int, site: Site, *, fill: bool = False
) -> tuple[ValueLoss, Sequence[Tensor], Tensor, Tensor]:
    """Make the pass without a shift that everything starts from.

    Returns:
        The loss, ready for any shift; of each task the keys ``[c, d_in]``; the outputs ``[n, d_out]`` of the value matrix and
        ``v_0 [n, d]`` at the bare prompt's look-up token.
    """
    layout = lm.layout
    names = {"key": layout.mlp_out.format(layer), "mlp": layout.mlp.format(layer), "block": layout.block.format(layer)}
    sides: list[tuple[str, hooks.Side]] = [
        (names["key"], "input"),
        (names["key"], "output"),
        (names["mlp"], "output"),
        (names["block"], "output"),
    ]
    # Preparing the loss runs all rows through the blocks up to this one, and so fills the capture on its way.
    packs = value_loss.lay_out(lm, trees)
    with hooks.capture(lm, sides) as seen:
        measured = ValueLoss.prepare(lm, trees, packs, layer, site, fill=fill)
    # The look-up tokens: each task's bare prompt, which is its first context, then all contexts of all tasks, as they lie in what
    # was captured, [B, N, …].
    contexts = [packs.where(i, node)[0] for i, t in enumerate(trees) for node in t.lookups]
    pairs = [*(packs.where(i, t.lookups[0])[0] for i, t in enumerate(trees)), *contexts]
    pack, column = torch.tensor(pairs, device=lm.device).T
    n = len(trees)
    keys = torch.split(seen[names["key"], "input"][pack[n:], column[n:]].float(), [len(t.lookups) for t in trees])
    output, origin = (seen[side, "output"][pack[:n], column[:n]].float() for side in (names["key"], names[site]))
    return measured, keys, output, origin
