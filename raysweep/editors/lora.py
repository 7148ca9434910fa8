"""LoRA (Hu et al. 2021, arXiv 2106.09685) as Hase et al. 2024 (arXiv 2406.19354) edit with it: a fresh low-rank adapter on every
block's last MLP map, trained on the records alone and folded into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raysweep.config.schema import Count, NonNegative, Positive
from raysweep.editors.base import ArtifactRequest, Delta, EditorConfig, EditStep, LowRank, WeightDelta
from raysweep.lazy import lazy
from raysweep.records import EditRecord
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.models import adapters, tokens
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    adapters, tokens = lazy("raysweep.models.adapters"), lazy("raysweep.models.tokens")


class LoraConfig(EditorConfig):
    """Defaults: published, but for the rate (published 5e-5 or 1e-4 on 83 M parameters; 2e-3 suits 1 M).

    Attributes:
        rank, alpha: the change of a weight is ``alpha / rank · B A``.
        lr: constant rate of AdamW.
        weight_decay: of AdamW.
        clip: norm to which the gradient is clipped.
        steps: optimiser steps.
    """

    rank: Count = 1
    alpha: Positive = 8.0
    lr: Positive = 1e-4
    weight_decay: NonNegative = 1e-4
    clip: Positive = 1.0
    steps: Count = 40


class Lora:
    """One adapter per batch of records; the loss is the mean over records of the mean over target tokens."""

    name: ClassVar[str] = "lora"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]] = LoraConfig
    patch_kind: ClassVar[Literal["weights", "modules"]] = "weights"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685; Hase et al. 2024, arXiv 2406.19354"

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def edited(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the last MLP map of every block."""
        return tuple(f"{lm.layout.mlp_out.format(i)}.weight" for i in range(lm.n_blocks))

    def needs(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for nothing."""
        return {}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> None:
        """Remember nothing: every batch gets a fresh adapter."""

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: None,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[None]:
        """Train one adapter on the whole batch."""
        own = self.config
        rows = [tokens.scored(lm, r.prompt, tokens.join(r.prompt, r.target)) for r in batch]
        seed = derive(int(torch.randint(2**31 - 1, (1,), generator=rng)), "adapter")
        bank = adapters.Bank(lm, [seed], rank=own.rank, alpha=own.alpha)
        training = adapters.fit(
            bank,
            [r.ids for r in rows],
            [r.start for r in rows],
            owners=[0] * len(rows),
            steps=own.steps,
            lr=own.lr,
            weight_decay=own.weight_decay,
            clip=own.clip,
            divisors=[len(r.labels) * len(rows) for r in rows],
        )
        losses = [sum(found) for found in training]
        deltas: dict[str, Delta] = {n: LowRank(left, right) for n, (left, right) in bank.factors(0).items()}
        stats = {"loss": losses[-1], "first_loss": losses[0], "steps": float(own.steps)}
        return EditStep(WeightDelta(deltas), state, stats)
