"""Pretraining a small language model from scratch on a corpus, resumable bit for bit.

The loss of a batch is the mean of −log p(token | prefix) over tokens and ends, with weight 1 for tokens that a sentence answers
(object or label) and for ends, and w = ``text_weight`` for all others:

    loss = − Σ_i w_i log p(x_i | x_<i) / Σ_i w_i

The published loss (``published_divisor``) also sums over begins that are predicted from padding, and divides by the number of
tokens that are neither begin nor end. The learning rate rises linearly for ``warmup`` steps and then falls linearly from lr to
``final_lr`` · lr at the last step.

Random choices derive from the seed and the step, so a snapshot holds weights, moments and counters, and no generator.

Shapes: B rows (documents) of a batch, T tokens of the longest, V words of the vocabulary; packed: R rows of W tokens.

Source: Hase et al. 2024 (arXiv 2406.19354); docs/methods/belief.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from raysweep.belief.lm import batches
from raysweep.belief.lm.architecture import SpecialTokens
from raysweep.belief.lm.batches import EncodedDocuments, TrainingStep
from raysweep.belief.spec import PretrainSpec
from raysweep.errors import ArtifactError
from raysweep.hashing import canonical
from raysweep.lazy import lazy
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from raysweep.belief.graph.graph import Ints
    from raysweep.models import optim
else:
    torch, optim = lazy("torch"), lazy("raysweep.models.optim")

VERSION = 1  # of how a model comes from a corpus and a recipe; part of its key
_IGNORED = -100
_WEIGHT, _LOG = "weight/", "kept/"  # prefixes of a snapshot's tensors

Measurements = Mapping[str, "float | Tensor"]
"""What is measured of a model in training: numbers join a row of the log, tensors are kept beside it."""


@dataclass(slots=True)
class TrainingCounters:
    """What accumulates during training; all of it is in a snapshot and in the log.

    Attributes:
        step: steps taken.
        tokens: seen, without begin, end and padding.
        sentences: seen.
        epoch: of the last step, from 0.
        losses: sum of the losses of the epoch's batches.
        batches: of the epoch so far.
        log: rows so far.
    """

    step: int = 0
    tokens: int = 0
    sentences: int = 0
    epoch: int = 0
    losses: float = 0.0
    batches: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


class SnapshotMeta(TypedDict):
    """What a snapshot says in JSON.

    Attributes:
        version: of this module.
        spec: the recipe, as plain data.
        counters: the fields of :class:`TrainingCounters`.
    """

    version: int
    spec: object
    counters: dict[str, Any]


class Trainer:
    """A training run that can stop and go on between any two steps.

    Promise: ``Trainer.resume(…, *trainer.snapshot())`` goes on bit for bit as *trainer* does, on the same machine.

    Attributes:
        module: the model, trained in place.
        encoded: the documents.
        spec: the recipe.
        special: ids of pad, begin and end.
        counters: what has accumulated.
        log_tensors: by name, the tensor that was measured with each row of the log.
        total: steps until the budget is spent.
    """

    def __init__(
        self, module: PreTrainedModel, encoded: EncodedDocuments, spec: PretrainSpec, special: SpecialTokens
    ) -> None:
        self.module, self.encoded, self.spec, self.special = module, encoded, spec, special
        self.counters = TrainingCounters()
        self.log_tensors: dict[str, list[Tensor]] = {}
        self.total = sum(1 for _ in self._steps())
        parameters = list(module.named_parameters())
        # Muon orthogonalises the blocks' matrices; embeddings, head and norms stay with AdamW.
        inner = {n for n, p in parameters if p.ndim == 2 and spec.optimiser == "muon" and ".layers." in n}
        self._muon = optim.Muon([p for n, p in parameters if n in inner], spec.lr, spec.weight_decay) if inner else None
        rest = [(n, p) for n, p in parameters if n not in inner]
        decayed = [p for _, p in rest if p.ndim > 1 or spec.decay_all]
        undecayed = [p for _, p in rest if not (p.ndim > 1 or spec.decay_all)]
        groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.lr, betas=spec.betas)
        self._adam_names = dict(rest)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.counters.step >= self.total

    def _steps(self) -> Iterator[tuple[TrainingStep, int]]:
        spec = self.spec
        return batches.training_steps(
            self.encoded.lengths,
            spec.tokens,
            batch=spec.batch,
            accumulation=spec.accumulation,
            bucketed=spec.bucketed,
            seed=spec.seed,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of step number *step* (from 0)."""
        spec = self.spec
        if step < spec.warmup:
            return spec.lr * (step + 1) / spec.warmup
        done = (step - spec.warmup) / max(1, self.total - spec.warmup)
        return spec.lr * (1 - (1 - spec.final_lr) * done)

    def run(self, steps: int | None = None, evaluate: Callable[[], Measurements] | None = None) -> Iterator[int]:
        """Take *steps* steps (default: all that are left), yielding the number of steps taken so far after each.

        *evaluate* measures the module; it is called with the module in eval mode, as often as the spec says. Its numbers join a row
        of the log, its tensors (on the CPU, always the same names) are kept beside that row.
        """
        last = self.total if steps is None else min(self.total, self.counters.step + steps)
        every = self.spec.tokens // self.spec.evals if self.spec.evals else 0
        for number, (step, tokens_after) in enumerate(self._steps()):
            if number < self.counters.step:
                continue
            if number >= last:
                return
            tokens_before = self.counters.tokens
            self._take(step, tokens_after)
            # The log is spaced in tokens: a row where the step crosses a multiple of `every`.
            if every and min(tokens_after, self.spec.tokens) // every > tokens_before // every:
                self._log_row(number, evaluate)
            yield self.counters.step

    def _take(self, step: TrainingStep, tokens_after: int) -> None:
        """Take one optimiser step over its batches, whose gradients accumulate."""
        spec, counters = self.spec, self.counters
        if step.epoch != counters.epoch:
            counters.epoch, counters.losses, counters.batches = step.epoch, 0.0, 0
        self.module.train()
        self.module.zero_grad(set_to_none=True)
        for number, chosen in enumerate(step.batches):
            loss = self._loss(chosen, counters.step, number)
            torch.autograd.backward(loss / spec.accumulation)
            counters.losses += float(loss.detach())
            counters.batches += 1
            counters.sentences += int(self.encoded.sentences[chosen].sum())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), spec.clip)
        lr = self.rate(counters.step)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        if self._muon is not None:
            self._muon.step(lr / spec.lr)
        counters.step += 1
        counters.tokens = tokens_after

    def _loss(self, chosen: Ints, step: int, number: int) -> Tensor:
        """Return the loss of one batch: the mean over tokens and ends, or the published quotient.

        Args:
            chosen: int64 [B], its documents.
            step: number of the step, from 0.
            number: of the batch within the step.
        """
        spec, special = self.spec, self.special
        if spec.pack:
            return self._packed_loss(chosen)
        left, extra = spec.extension > 0, 0
        if left:
            generator = torch.Generator().manual_seed(derive(spec.seed, "pretrain", "extension", step, number))
            extra = int(torch.randint(spec.extension, (1,), generator=generator))
        rows = batches.token_rows(self.encoded, chosen, special.bos, special.eos)
        arrays = batches.pad_rows(rows, special.pad, left=left, extension=extra)
        device = self.module.get_input_embeddings().weight.device
        ids, mask = (torch.from_numpy(a).to(device) for a in arrays)  # [B, T]
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.autocast):
            # Padding behind a row needs no mask: the model is causal, and what is padded is not scored.
            logits = self.module(input_ids=ids, attention_mask=mask if left else None, use_cache=False).logits
        # The logits at position t predict token t + 1, hence the shift by one.
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, _IGNORED)
        if not spec.published_divisor:
            labels = labels.masked_fill(labels == special.bos, _IGNORED)
        losses = _token_losses(logits, labels)
        if spec.text_weight != 1:
            # Weights laid out like the padded rows, [B, T]; padding has none.
            weight = torch.zeros(ids.shape)
            for i, row in enumerate(batches.token_weights(self.encoded, chosen, spec.text_weight)):
                start = ids.shape[1] - len(row) if left else 0
                weight[i, start : start + len(row)] = torch.from_numpy(row)
            weight = weight[:, 1:].flatten().to(device)
            return (losses * weight).sum() / weight.sum()
        tokens = int(self.encoded.lengths[chosen].sum())
        # Each row scores its tokens and its end.
        return losses.sum() / (tokens if spec.published_divisor else tokens + len(rows))

    def _packed_loss(self, chosen: Ints) -> Tensor:
        """Return the loss of one batch in packed rows: the same as :meth:`_loss` but for rounding."""
        spec, special = self.spec, self.special
        rows = batches.token_rows(self.encoded, chosen, special.bos, special.eos)
        weights_by_row = batches.token_weights(self.encoded, chosen, spec.text_weight)
        packed = batches.pack_rows(rows, weights_by_row, special.pad, spec.pack)
        embedding = self.module.get_input_embeddings().weight
        device = embedding.device
        ids, segments, positions, weights = (
            torch.from_numpy(a).to(device) for a in (packed.ids, packed.segments, packed.positions, packed.weights)
        )  # [R, W] each
        width = ids.shape[1]
        # [R, W, W]: a token sees those before it in its own document only.
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        visible = (segments[:, :, None] == segments[:, None, :]) & causal
        dtype = embedding.dtype
        bias = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.autocast):
            logits = self.module(
                input_ids=ids, attention_mask=bias[:, None], position_ids=positions, use_cache=False
            ).logits
        labels = ids[:, 1:].masked_fill((segments[:, 1:] == 0) | (ids[:, 1:] == special.bos), _IGNORED)
        losses = _token_losses(logits, labels)
        weight = weights[:, 1:].flatten()
        return (losses * weight).sum() / weight.sum()

    def _log_row(self, step: int, evaluate: Callable[[], Measurements] | None) -> None:
        """Add a row to the log after step number *step*, with what *evaluate* measures."""
        counters = self.counters
        # Names as in the published log.
        row: dict[str, float] = {
            "epoch": counters.epoch,
            "n_tokens": counters.tokens,
            "n_sentences": counters.sentences,
            "step": counters.step,
            "LR": self.rate(step),
            "train_loss": counters.losses / counters.batches,
        }
        if evaluate is not None:
            # The next step sets train mode again.
            self.module.eval()
            for name, value in evaluate().items():
                if isinstance(value, torch.Tensor):
                    self.log_tensors.setdefault(name, []).append(value)
                else:
                    row[name] = value
        counters.log.append(row)

    # -- snapshots

    def snapshot(self) -> tuple[dict[str, Tensor], SnapshotMeta]:
        """Return tensors (copies, on the CPU) and plain JSON from which :meth:`resume` goes on."""
        tensors = {f"{_WEIGHT}{n}": p for n, p in self.module.named_parameters()}
        for name, parameter in self._adam_names.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        for i, buffer in enumerate(self._muon.buffers if self._muon is not None else ()):
            tensors[f"muon/{i}"] = buffer
        tensors |= {f"{_LOG}{name}/{i}": t for name, rows in self.log_tensors.items() for i, t in enumerate(rows)}
        meta: SnapshotMeta = {
            "version": VERSION,
            "spec": canonical(self.spec),
            "counters": {name: getattr(self.counters, name) for name in TrainingCounters.__dataclass_fields__},
        }
        return {n: t.detach().cpu().clone() for n, t in tensors.items()}, meta

    @classmethod
    def resume(
        cls,
        module: PreTrainedModel,
        encoded: EncodedDocuments,
        spec: PretrainSpec,
        special: SpecialTokens,
        tensors: Mapping[str, Tensor],
        meta: SnapshotMeta,
    ) -> Trainer:
        """Return the trainer that was written as *tensors* and *meta*; *module* gets its weights.

        Args:
            module: of the same architecture.
            encoded: the same documents.
            spec: the same recipe.
            special: ids of pad, begin and end.
            tensors: of :meth:`snapshot`.
            meta: of :meth:`snapshot`.

        Raises:
            ArtifactError: the snapshot is of another version or of another spec.
        """
        if meta.get("version") != VERSION or meta.get("spec") != canonical(spec):
            raise ArtifactError("the snapshot belongs to another training run", hint="delete it")
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[f"{_WEIGHT}{name}"])
        self = cls(module, encoded, spec, special)
        # Before the first step AdamW has no state.
        keys = ("step", "exp_avg", "exp_avg_sq") if meta["counters"]["step"] else ()
        for name, parameter in self._adam_names.items():
            moments = {key: tensors[f"adam/{key}/{name}"] for key in keys}
            # AdamW keeps its step count on the CPU, the moments beside the parameter.
            self._adam.state[parameter] = {
                k: t.clone() if k == "step" else t.to(parameter.device, copy=True) for k, t in moments.items()
            }
        for i, buffer in enumerate(self._muon.buffers if self._muon is not None else ()):
            buffer.copy_(tensors[f"muon/{i}"])
        self.counters = TrainingCounters(**meta["counters"])
        names = dict.fromkeys(n.removeprefix(_LOG).rpartition("/")[0] for n in tensors if n.startswith(_LOG))
        rows = range(len(self.counters.log))
        self.log_tensors = {name: [tensors[f"{_LOG}{name}/{i}"] for i in rows] for name in names}
        return self


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log p of each label, fp32 [B · (T − 1)], 0 where it is ignored.

    Args:
        logits: [B, T, V]; those of the last position predict nothing.
        labels: int64 [B, T − 1].
    """
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
    )
