"""Editing each point apart with LoRA, many points at once, and asking along the way (§8).

Each point has its own adapter and optimiser state, and starts from the pristine model, which is never written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.belief.asking import Reply, ask_points
from raysweep.belief.points import EvalPoint
from raysweep.config.schema import Count, NonNegative, Positive, Spec
from raysweep.errors import BeliefError
from raysweep.lazy import lazy
from raysweep.seeds import derive

if TYPE_CHECKING:
    from raysweep.models import adapters, tokens
    from raysweep.models.lm import LanguageModel
else:
    adapters, tokens = lazy("raysweep.models.adapters"), lazy("raysweep.models.tokens")


class LoraSpec(Spec):
    """How a point is edited (defaults: the published ones).

    Attributes:
        rank, alpha: of the adapters on every block's last MLP map.
        lr: constant rate of AdamW (embedded configuration: 2e-3).
        weight_decay: of AdamW.
        clip: norm to which a point's gradient is clipped.
        steps: optimiser steps.
        eval_every: steps between two evaluations; step 0 and the last step are always evaluated.
        at_once: points trained and asked together.
        published_divisor: (F4) divide the loss by the tokens of prompt and label, as published, not by the label's.
    """

    rank: Count = 1
    alpha: Positive = 8.0
    lr: Positive = 5e-5
    weight_decay: NonNegative = 1e-4
    clip: Positive = 1.0
    steps: Count = 40
    eval_every: Count = 1
    at_once: Count = 64
    published_divisor: bool = False


@dataclass(frozen=True, slots=True)
class Edited:
    """What the model says of one point after ``step`` steps on its request, and the loss of the step before (0: none)."""

    point: int
    step: int
    replies: Mapping[str, Reply]
    loss: float | None
    last_step: bool


def edit_points(
    lm: LanguageModel,
    points: Sequence[EvalPoint],
    objects: Sequence[str],
    spec: LoraSpec,
    seed: int,
    *,
    new_tokens: int,
    batch: int = 256,
) -> Iterator[Edited]:
    """Edit every point apart and yield its replies at step 0, every ``eval_every`` steps, and the last.

    Args:
        lm: pristine; bit-identical afterwards.
        points: with requests.
        objects: names of the graph's objects.
        spec: the recipe.
        seed: of the adapters' initial values (each point has its own, whatever the batch).
        new_tokens: written per question.
        batch: rows per forward pass of the evaluation.

    Raises:
        BeliefError: a point has no request.
    """
    for point in points:
        if point.request is None:
            raise BeliefError(f"point {point.id} has no request", hint="points.editing: true")
    for start in range(0, len(points), spec.at_once):
        yield from _together(lm, points[start : start + spec.at_once], objects, spec, seed, new_tokens, batch)


def _together(
    lm: LanguageModel,
    points: Sequence[EvalPoint],
    objects: Sequence[str],
    spec: LoraSpec,
    seed: int,
    new_tokens: int,
    batch: int,
) -> Iterator[Edited]:
    prompts = [f"{p.names[0]} {p.names[1]}" for p in points]
    wanted = [objects[p.request.object] for p in points if p.request is not None]
    rows = [tokens.scored(lm, p, tokens.join(p, o)) for p, o in zip(prompts, wanted, strict=True)]
    head = len(tokens.encode(lm, ""))
    bank = adapters.Bank(lm, [derive(seed, "edit", p.id) for p in points], rank=spec.rank, alpha=spec.alpha)

    def asked(step: int, losses: Sequence[float | None]) -> Iterator[Edited]:
        with bank.attached():
            replies = ask_points(lm, points, new_tokens=new_tokens, batch=batch, select=bank.select)
        for point, own, loss in zip(points, replies, losses, strict=True):
            yield Edited(point.id, step, own, loss, step == spec.steps)

    yield from asked(0, [None] * len(points))
    training = adapters.fit(
        bank,
        [r.ids for r in rows],
        [r.start for r in rows],
        owners=range(len(rows)),
        steps=spec.steps,
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        clip=spec.clip,
        divisors=[len(r.ids) - head if spec.published_divisor else len(r.labels) for r in rows],
    )
    for step, losses in enumerate(training, 1):
        if step % spec.eval_every == 0 or step == spec.steps:
            yield from asked(step, losses)
