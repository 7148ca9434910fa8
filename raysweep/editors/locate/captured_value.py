"""The optimisation of one target value by steps that are recorded once and replayed (:mod:`raysweep.models.step_graphs`).

The loss and the loop are those of ``locate/target_value.py``; only where things stand differs. What Python decides there from step
to step, the device decides here: which update it is, whether it is the last one, whether the loop goes on. Everything that a step
reads or writes is in :class:`Inputs`, of which a step changes the tensors in place.

Shape legend: ``n`` = 1 record, ``d`` width of the residual stream, ``s`` steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.editors.locate import rowwise_adam
from raysweep.editors.locate.value_loss import ValueLoss
from raysweep.editors.specs import ValueSpec
from raysweep.editors.stopping import steps_between_reads
from raysweep.errors import ModelError
from raysweep.models.lm import LanguageModel
from raysweep.models.step_graphs import StepGraphs


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a step reads and writes.

    Attributes:
        loss: of the record.
        origin: ``v_0 [n, d]``.
        limit: ``[n, 1]`` the greatest norm that ``δ`` may have.
        base: ``log P_0 [n, vocabulary]`` at the KL row.
        factors: ``[s, 2]`` of each update, those of :func:`rowwise_adam.factors`.
        shift: ``δ [n, d]``; ``mean`` and ``square`` the moments of Adam.
        count: ``[1]`` steps made, also after the record has stopped.
        active: ``[n]`` whether it goes on.
        first: ``[n]`` the first loss; ``last`` the latest; ``steps`` how many were measured.
    """

    loss: ValueLoss
    origin: Tensor
    limit: Tensor
    base: Tensor
    factors: Tensor
    shift: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor
    active: Tensor
    first: Tensor
    last: Tensor
    steps: Tensor

    @classmethod
    def begin(cls, lm: LanguageModel, loss: ValueLoss, origin: Tensor, spec: ValueSpec) -> Inputs:
        """Return what the first step starts from; ``log P_0`` is that of a pass of its own."""
        nothing, none = torch.zeros_like(origin), torch.zeros(len(origin), device=origin.device)
        with torch.no_grad():
            *_, base = loss.at(lm, nothing, origin, spec, None)
        factors = [rowwise_adam.factors(spec.lr, t + 1) for t in range(spec.steps)]
        return cls(
            loss=loss,
            origin=origin,
            limit=spec.clamp * origin.norm(dim=1, keepdim=True),
            base=base,
            factors=torch.tensor(factors, device=origin.device),
            shift=nothing,
            mean=nothing,
            square=nothing,
            count=torch.zeros(1, dtype=torch.int64, device=origin.device),
            active=torch.ones_like(none, dtype=torch.bool),
            first=none,
            last=none,
            steps=torch.zeros_like(none, dtype=torch.int64),
        )


def find(
    lm: LanguageModel, loss: ValueLoss, origin: Tensor, spec: ValueSpec, graphs: StepGraphs, *, stop_loss: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimise the loss of one record.

    Args:
        lm: the model.
        loss: of the record, filled up to the size of its bucket.
        origin: ``v_0 [1, d]``.
        spec: hyper-parameters.
        graphs: recorded steps; one more where no record of this size came before.
        stop_loss: it ends below.

    Returns:
        ``δ [1, d]``; the last loss, the first one, and how many were measured, ``[1]`` each.

    Raises:
        ModelError: the model is not on an accelerator, or its blocks do not run in few operations.
    """
    guard = loss.guard()
    if guard is None:
        raise ModelError(
            f"captured steps need blocks that run in few operations on {lm.device}, which are not written for this model",
            hint="leave value.captured out",
        )
    inputs = Inputs.begin(lm, loss, origin, spec)
    step, own = graphs.prepare(inputs, guard, lambda static: lambda: _step(lm, static, spec, stop_loss))
    every = steps_between_reads(origin)
    for iteration in range(spec.steps):
        step.run()
        # What has stopped is neither moved nor measured any more, so it does not matter when this is read.
        if (iteration + 1) % every == 0 and not bool(own.active.any()):
            break
    # the next record is copied over them
    return own.shift.clone(), own.last.clone(), own.first.clone(), own.steps.clone()


def _step(lm: LanguageModel, own: Inputs, spec: ValueSpec, stop_loss: float) -> None:
    """Make one step, in place; nothing here may wait for the device, nor depend on a number that Python counts."""
    leaf = own.shift.clone().requires_grad_(True)
    with torch.enable_grad():
        loss, all_hit, _ = own.loss.at(lm, leaf, own.origin, spec, own.base)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    with torch.no_grad():
        value = loss.detach()
        own.first.copy_(torch.where(own.count == 0, value, own.first))
        own.last.copy_(torch.where(own.active, value, own.last))
        own.steps.add_(own.active)
        own.active.logical_and_(value >= stop_loss)
        if spec.stop_on_argmax:
            own.active.logical_and_(~all_hit)
        # The last pass only measures, as published: at most steps − 1 updates.
        moving = (own.active & (own.count < spec.steps - 1))[:, None]
        rate, root = own.factors.index_select(0, own.count.clamp(max=spec.steps - 1)).split_with_sizes([1, 1], 1)
        mean, square = rowwise_adam.moments(own.mean, own.square, gradient)
        own.mean.copy_(mean)
        own.square.copy_(square)
        moved = rowwise_adam.clamped(rowwise_adam.moved(own.shift, mean, square, rate, root), own.limit)
        own.shift.copy_(torch.where(moving, moved, own.shift))
        own.count.add_(1)
