"""LoRA: a fresh adapter on every block's last MLP map, trained on the records and folded into the weights (docs/methods/lora.md).

    W + (alpha / rank) · B A        A [rank, d_in], B [d_out, rank]; B = 0 at the start
    L = mean over records of −(1/m) Σ_j log p(y_j | x, y_{<j})

minimised by AdamW with a clipped gradient. Sources: Hu et al. 2021, arXiv 2106.09685; Hase et al. 2024, arXiv 2406.19354, who
edit with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Unpack

from raysweep.config.schema import Count, NonNegative, Positive
from raysweep.config.theirs import lora as published
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import BaseEditor, Checkpoint, EditInputs, EditorConfig, EditStep, JointInputs
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.patches import Delta, LowRank, WeightDelta
from raysweep.records import EditRecord
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.models import tokens
    from raysweep.models.lm import LanguageModel
    from raysweep.models.modules import lora
    from raysweep.models.sizes import ModelSize
else:
    torch = lazy("torch")
    lora, tokens = lazy("raysweep.models.modules.lora"), lazy("raysweep.models.tokens")


class LoraConfig(EditorConfig):
    """Defaults: published, but for the rate (published 5e-5 or 1e-4 on 83 M parameters; 2e-3 suits 1 M).

    Attributes:
        rank, alpha: the change of a weight is ``alpha / rank · B A``.
        lr: constant rate of AdamW.
        weight_decay: of AdamW.
        clip: norm to which the gradient is clipped.
        steps (updates): optimiser steps.
        published_divisor: divide the loss by the tokens of prompt and target, as published, not by the target's.
        eval_every (updates): where records are edited apart (the belief study), optimiser steps between two rounds of questions.
        at_once (records): records that are then edited together, each with an adapter of its own.
        batch (records): the same where edits of a lifelong run do not see each other (SimIE in ``init`` mode with ``closed64``).
    """

    added: ClassVar[frozenset[str]] = frozenset({"batch"})
    theirs: ClassVar[Table] = published.LORA

    rank: Count = 1
    alpha: Positive = 8.0
    lr: Positive = 1e-4
    weight_decay: NonNegative = 1e-4
    clip: Positive = 1.0
    steps: Count = 40
    published_divisor: bool = False
    eval_every: Count = 1
    at_once: Count = 64
    batch: Count = 1


class Lora(BaseEditor[LoraConfig, None]):
    """One adapter per batch of records; the loss is the mean over records of the mean over target tokens."""

    name = "lora"
    version = 1
    config_type = LoraConfig
    is_stateless = True
    paper = "Hu et al. 2021, arXiv 2106.09685; Hase et al. 2024, arXiv 2406.19354"

    @classmethod
    def working_bytes(cls, config: LoraConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what training takes: all blocks are kept, and logits at every token.

        Of ``batch`` records; the belief study trains ``at_once`` together.
        """
        tokens, wide = config.batch * activations.ROW, shape.mlp_width
        adapters = config.batch * config.rank * shape.layers * (shape.hidden + wide)
        # An adapter reads what enters the map, in fp32.
        entering = shape.layers * tokens * wide * (4 if size == 4 else 4 + size)
        kept = activations.kept_of_rows(shape, size, blocks=shape.layers, tokens=tokens) + entering
        # Log-probabilities, their gradient, and that of the logits; besides the logits themselves in half precision.
        head = tokens * shape.vocab * (3 * 4 + size)
        # In fp32: the adapters, their gradients, Adam's two means.
        return {"trained copies": 4 * 4 * adapters, "activations": kept + head}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the last MLP map of every block."""
        return tuple(f"{lm.layout.mlp_out.format(i)}.weight" for i in range(lm.n_blocks))

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **given: Unpack[EditInputs]
    ) -> EditStep[None]:
        """Train one adapter on the whole batch."""
        # Records of a batch share one adapter and their losses add up: divisors make the sum a mean.
        return self._edit_each(lm, [batch], [given["rng"]])[0]

    @property
    def group_size(self) -> int:
        """``batch``."""
        return self.config.batch

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[None]]:
        """Train an adapter for each of *batches*, all in the same passes."""
        return self._edit_each(lm, batches, given["rngs"])

    def _edit_each(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], rngs: Sequence[torch.Generator]
    ) -> list[EditStep[None]]:
        """Train an adapter for each of *batches*; they do not see each other."""
        # An adapter's start is drawn from its edit's generator, so it depends on the trial's seed and the step.
        seeds = [derive(int(torch.randint(2**31 - 1, (1,), generator=rng)), "adapter") for rng in rngs]
        bank = lora.LoraBank(lm, seeds, rank=self.config.rank, alpha=self.config.alpha)
        owners = [owner for owner, batch in enumerate(batches) for _ in batch]
        losses_by_step = list(self._train(bank, [record for batch in batches for record in batch], owners))
        # one read for all steps
        by_step: list[list[float]] = torch.stack(losses_by_step).tolist()
        steps: list[EditStep[None]] = []
        for owner in range(len(batches)):
            losses = [sum(loss for loss, o in zip(rows, owners, strict=True) if o == owner) for rows in by_step]
            deltas: dict[str, Delta] = {n: LowRank(left, right) for n, (left, right) in bank.factors(owner).items()}
            stats = {"loss": losses[-1], "first_loss": losses[0], "steps": float(self.config.steps)}
            steps.append(EditStep(WeightDelta(deltas), None, stats))
        return steps

    @property
    def checkpoint_batch(self) -> int:
        """How many records to edit together."""
        return self.config.at_once

    def edit_with_checkpoints(
        self, lm: LanguageModel, records: Sequence[EditRecord], *, seeds: Sequence[int]
    ) -> Iterator[Checkpoint]:
        """Train an adapter for each record and yield every ``eval_every`` steps and after the last."""
        bank = lora.LoraBank(lm, seeds, rank=self.config.rank, alpha=self.config.alpha)
        for step, losses in enumerate(self._train(bank, records, range(len(records))), 1):
            last = step == self.config.steps
            if last or step % self.config.eval_every == 0:
                yield Checkpoint(step, last, losses.tolist(), bank.attached, bank.select_owners)

    def _train(self, bank: lora.LoraBank, batch: Sequence[EditRecord], owners: Sequence[int]) -> Iterator[Tensor]:
        """Train the owners on their records; yield the loss of each record ``[n]``, step by step."""
        config, lm = self.config, bank.lm
        rows = [tokens.labelled_ids(lm, r.prompt, tokens.join(r.prompt, r.target)) for r in batch]
        special = len(tokens.encode(lm, ""))  # BOS, where the tokenizer adds it: not a token of the text
        sizes = [len(r.ids) - special if config.published_divisor else len(r.labels) for r in rows]
        return lora.train(
            bank,
            [r.ids for r in rows],
            [r.start for r in rows],
            owners=owners,
            steps=config.steps,
            lr=config.lr,
            weight_decay=config.weight_decay,
            clip=config.clip,
            # a record's loss is divided by its tokens, and by how many records its owner has
            divisors=[size * list(owners).count(owner) for size, owner in zip(sizes, owners, strict=True)],
        )
