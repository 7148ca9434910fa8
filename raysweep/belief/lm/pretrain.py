"""Pretraining a small language model from scratch on a corpus (§7), resumable bit for bit; the result is an artifact.

The module must be right (`Trainer`), the shell around it thin (:func:`pretrained`). Random choices derive from the seed and the
step, so a snapshot holds weights, moments and counters, and no generator.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.artifacts import Artifact, ArtifactStore
from raysweep.belief.corpus.writer import Corpus
from raysweep.belief.lm import batches
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm.batches import Encoded, Step
from raysweep.belief.lm.training_log import log_inputs
from raysweep.belief.spec import BeliefSpec, PretrainSpec, ShapeSpec
from raysweep.errors import ArtifactError, SpecError, nearest
from raysweep.hashing import canonical
from raysweep.lazy import lazy
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from raysweep.artifacts import ArtifactRequest
    from raysweep.models import optim
    from raysweep.models.lm import LanguageModel
else:
    torch, optim = lazy("torch"), lazy("raysweep.models.optim")

VERSION = 1
_IGNORED = -100
_WEIGHT, _KEPT = "weight/", "kept/"


SHAPES: Mapping[str, ShapeSpec] = {
    "belief-small": ShapeSpec(hidden=128, mlp=512, heads=4, layers=4, positions=512),
    "mistral-83m": ShapeSpec(hidden=512, mlp=2048, heads=8, layers=12),
    "mistral-162m": ShapeSpec(hidden=768, mlp=3072, heads=8, layers=12),
    "mistral-334m": ShapeSpec(hidden=1024, mlp=4096, heads=8, layers=16),
    "mistral-1b": ShapeSpec(hidden=1520, mlp=6080, heads=8, layers=24),
}


def shape(name: str) -> ShapeSpec:
    """Return the named size.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in SHAPES:
        raise SpecError(f"unknown belief model '{name}'", hint=nearest(name, SHAPES))
    return SHAPES[name]


# --------------------------------------------------------------------------------------------------- the trainer


@dataclass(slots=True)
class _Counters:
    """What accumulates during training; all of it is in a snapshot and in the log."""

    step: int = 0
    tokens: int = 0
    sentences: int = 0
    epoch: int = 0
    losses: float = 0.0  # sum over the batches of the epoch
    batches: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


Measured = Mapping[str, "float | Tensor"]


class Trainer:
    """A training run that can stop and go on between any two steps.

    Promise: ``Trainer.resume(…, *trainer.snapshot())`` goes on bit for bit as *trainer* does, on the same machine.
    """

    def __init__(self, module: PreTrainedModel, encoded: Encoded, spec: PretrainSpec, special: Special) -> None:
        self.module, self.encoded, self.spec, self.special = module, encoded, spec, special
        self.counters = _Counters()
        self.kept: dict[str, list[Tensor]] = {}  # of each row of the log: tensors that were measured, by name
        self.total = sum(1 for _ in self._steps())
        named = list(module.named_parameters())
        inner = {n for n, p in named if p.ndim == 2 and spec.optimiser == "muon" and ".layers." in n}
        self._muon = optim.Muon([p for n, p in named if n in inner], spec.lr, spec.weight_decay) if inner else None
        rest = [(n, p) for n, p in named if n not in inner]
        decayed = [p for _, p in rest if p.ndim > 1 or spec.decay_all]
        kept = [p for _, p in rest if not (p.ndim > 1 or spec.decay_all)]
        groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.lr, betas=spec.betas)
        self._adam_names = dict(rest)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.counters.step >= self.total

    def _steps(self) -> Iterator[tuple[Step, int]]:
        spec = self.spec
        return batches.every_step(
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

    def run(self, steps: int | None = None, evaluate: Callable[[], Measured] | None = None) -> Iterator[int]:
        """Take *steps* steps (default: all that are left), yielding the number of steps taken so far after each.

        *evaluate* measures the module; it is called with the module in eval mode, as often as the spec says. Its numbers join a row
        of the log, its tensors (on the CPU, always the same names) are kept beside that row.
        """
        last = self.total if steps is None else min(self.total, self.counters.step + steps)
        every = self.spec.tokens // self.spec.evals if self.spec.evals else 0
        for number, (step, seen) in enumerate(self._steps()):
            if number < self.counters.step:
                continue
            if number >= last:
                return
            before = self.counters.tokens
            self._take(step, seen)
            if every and min(seen, self.spec.tokens) // every > before // every:
                self._note(number, evaluate)
            yield self.counters.step

    def _take(self, step: Step, seen: int) -> None:
        spec, count = self.spec, self.counters
        if step.epoch != count.epoch:
            count.epoch, count.losses, count.batches = step.epoch, 0.0, 0
        self.module.train()
        self.module.zero_grad(set_to_none=True)
        for number, chosen in enumerate(step.batches):
            loss = self._loss(chosen, count.step, number)
            torch.autograd.backward(loss / spec.accumulation)
            count.losses += float(loss.detach())
            count.batches += 1
            count.sentences += int(self.encoded.sentences[chosen].sum())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), spec.clip)
        lr = self.rate(count.step)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        if self._muon is not None:
            self._muon.step(lr / spec.lr)
        count.step += 1
        count.tokens = seen

    def _loss(self, chosen: Any, step: int, number: int) -> Tensor:
        """Return the loss of one batch (§7.5): the mean over tokens and ends, or the published quotient."""
        spec, special = self.spec, self.special
        if spec.pack:
            return self._packed_loss(chosen)
        left, extra = spec.extension > 0, 0
        if left:
            generator = torch.Generator().manual_seed(derive(spec.seed, "pretrain", "extension", step, number))
            extra = int(torch.randint(spec.extension, (1,), generator=generator))
        rows = batches.rows_of(self.encoded, chosen, special.bos, special.eos)
        arrays = batches.padded(rows, special.pad, left=left, extension=extra)
        device = self.module.get_input_embeddings().weight.device
        ids, mask = (torch.from_numpy(a).to(device) for a in arrays)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.autocast):
            logits = self.module(input_ids=ids, attention_mask=mask if left else None, use_cache=False).logits
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, _IGNORED)
        if not spec.published_divisor:
            labels = labels.masked_fill(labels == special.bos, _IGNORED)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        if spec.text_weight != 1:
            weight = torch.zeros(ids.shape)
            for i, own in enumerate(batches.weights_of(self.encoded, chosen, spec.text_weight)):
                start = ids.shape[1] - len(own) if left else 0
                weight[i, start : start + len(own)] = torch.from_numpy(own)
            weight = weight[:, 1:].flatten().to(device)
            return (losses * weight).sum() / weight.sum()
        tokens = int(self.encoded.lengths[chosen].sum())
        return losses.sum() / (tokens if spec.published_divisor else tokens + len(rows))

    def _packed_loss(self, chosen: Any) -> Tensor:
        """Return the loss of one batch in packed rows: the same as :meth:`_loss` but for rounding."""
        spec, special = self.spec, self.special
        rows = batches.rows_of(self.encoded, chosen, special.bos, special.eos)
        laid = batches.packed(rows, batches.weights_of(self.encoded, chosen, spec.text_weight), special.pad, spec.pack)
        device = self.module.get_input_embeddings().weight.device
        ids, segments, positions, weights = (
            torch.from_numpy(a).to(device) for a in (laid.ids, laid.segments, laid.positions, laid.weights)
        )
        width = ids.shape[1]
        seen = (segments[:, :, None] == segments[:, None, :]) & torch.ones(
            width, width, dtype=torch.bool, device=device
        ).tril()
        dtype = self.module.get_input_embeddings().weight.dtype
        blind = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.autocast):
            logits = self.module(
                input_ids=ids, attention_mask=blind[:, None], position_ids=positions, use_cache=False
            ).logits
        labels = ids[:, 1:].masked_fill((segments[:, 1:] == 0) | (ids[:, 1:] == special.bos), _IGNORED)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        weight = weights[:, 1:].flatten()
        return (losses * weight).sum() / weight.sum()

    def _note(self, step: int, evaluate: Callable[[], Measured] | None) -> None:
        count = self.counters
        row: dict[str, float] = {
            "epoch": count.epoch,
            "n_tokens": count.tokens,
            "n_sentences": count.sentences,
            "step": count.step,
            "LR": self.rate(step),
            "train_loss": count.losses / count.batches,
        }
        if evaluate is not None:
            self.module.eval()
            for name, value in evaluate().items():
                if isinstance(value, torch.Tensor):
                    self.kept.setdefault(name, []).append(value)
                else:
                    row[name] = value
        count.log.append(row)

    # -- snapshots

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors (copies, on the CPU) and plain JSON from which :meth:`resume` goes on."""
        tensors = {f"{_WEIGHT}{n}": p for n, p in self.module.named_parameters()}
        for name, parameter in self._adam_names.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        for i, buffer in enumerate(self._muon.buffers if self._muon is not None else ()):
            tensors[f"muon/{i}"] = buffer
        tensors |= {f"{_KEPT}{name}/{i}": t for name, kept in self.kept.items() for i, t in enumerate(kept)}
        c = self.counters
        meta = {
            "version": VERSION,
            "spec": canonical(self.spec),
            "counters": {name: getattr(c, name) for name in _Counters.__dataclass_fields__},
        }
        return {n: t.detach().cpu().clone() for n, t in tensors.items()}, meta

    @classmethod
    def resume(
        cls,
        module: PreTrainedModel,
        encoded: Encoded,
        spec: PretrainSpec,
        special: Special,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
    ) -> Trainer:
        """Return the trainer that was written as *tensors* and *meta*; *module* gets its weights.

        Raises:
            ArtifactError: the snapshot is of another version or of another spec.
        """
        if meta.get("version") != VERSION or meta.get("spec") != canonical(spec):
            raise ArtifactError("the snapshot belongs to another training run", hint="delete it")
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[f"{_WEIGHT}{name}"])
        self = cls(module, encoded, spec, special)
        for name, parameter in self._adam_names.items():
            own = {
                k: tensors[f"adam/{k}/{name}"] for k in ("step", "exp_avg", "exp_avg_sq") if meta["counters"]["step"]
            }
            self._adam.state[parameter] = {
                k: t.clone() if k == "step" else t.to(parameter.device, copy=True) for k, t in own.items()
            }
        for i, buffer in enumerate(self._muon.buffers if self._muon is not None else ()):
            buffer.copy_(tensors[f"muon/{i}"])
        self.counters = _Counters(**meta["counters"])
        names = dict.fromkeys(n.removeprefix(_KEPT).rpartition("/")[0] for n in tensors if n.startswith(_KEPT))
        rows = range(len(self.counters.log))
        self.kept = {name: [tensors[f"{_KEPT}{name}/{i}"] for i in rows] for name in names}
        return self


@dataclass(frozen=True, slots=True)
class Special:
    """Ids of pad, begin and end."""

    pad: int
    bos: int
    eos: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Special:
        """Return those of *tokenizer*."""
        return cls(tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)


# ------------------------------------------------------------------------------------------- models and their files


def config_of(spec: ShapeSpec, vocabulary: int, special: Special) -> Any:
    """Return the Hugging Face configuration of *spec* (built from scratch: no field of another model stays behind)."""
    from transformers import LlamaConfig, MistralConfig

    options: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.mlp,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.heads,
        "head_dim": spec.hidden // spec.heads,
        "max_position_embeddings": spec.positions,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "dtype": "float32",
    }
    return LlamaConfig(**options) if spec.family == "llama" else MistralConfig(**options, sliding_window=4096)


def module_of(config: Any) -> PreTrainedModel:
    """Return a model of *config* with weights nobody may rely on; global generators are left as they were."""
    from transformers import LlamaForCausalLM, MistralForCausalLM

    kind = LlamaForCausalLM if config.model_type == "llama" else MistralForCausalLM
    with torch.random.fork_rng(devices=[]):
        module: PreTrainedModel = kind(config)
    return module.float()


def initial(config: Any, seed: int) -> PreTrainedModel:
    """Return a model of *config* with seeded initial weights: normal with the configured deviation, norms 1."""
    module = module_of(config)
    generator = torch.Generator().manual_seed(derive(seed, "pretrain", "init"))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
                if name.endswith("embed_tokens.weight") and config.pad_token_id is not None:
                    parameter[config.pad_token_id].zero_()
    return module


def language_model(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, digest: str = "") -> LanguageModel:
    """Return *module* as every editor expects it: eval mode, no gradients, with its layout."""
    from raysweep.models.layout import layout_of
    from raysweep.models.lm import LanguageModel

    module.eval().requires_grad_(False)
    return LanguageModel(module=module, tokenizer=tokenizer, layout=layout_of(module.config), digest=digest)


def write_folder(lm: LanguageModel, folder: Path) -> None:
    """Write *lm* as a folder that ``model.path`` accepts: configuration, tokenizer, safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    lm.module.config.architectures = [type(lm.module).__name__]
    lm.module.config.save_pretrained(folder)
    weights = {name: w.detach().cpu().contiguous() for name, w in lm.module.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lm.tokenizer.save_pretrained(folder)


def write_snapshot(folder: Path, trainer: Trainer) -> None:
    """Write a snapshot (safetensors and JSON) so that the old one or the new one is there, never half of one."""
    from safetensors.torch import save_file

    tensors, meta = trainer.snapshot()
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(tensors, draft / "state.safetensors")
    (draft / "state.json").write_text(json.dumps(meta), encoding="utf-8")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(draft, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_snapshot(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the snapshot in *folder* (or the one it was about to replace), or None."""
    from safetensors.torch import load_file

    for where in (folder, folder.with_name(f"{folder.name}.old")):
        if (where / "state.json").is_file():
            meta: dict[str, Any] = json.loads((where / "state.json").read_text(encoding="utf-8"))
            return load_file(where / "state.safetensors"), meta
    return None


# -------------------------------------------------------------------------------------------------- the artifact


@dataclass(frozen=True, slots=True)
class Log:
    """What was noted while a model was trained.

    Attributes:
        rows: progress and losses, by name.
        kept: tensors that were measured with each row, by name.
    """

    rows: tuple[Mapping[str, float], ...]
    kept: Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A pretrained model, and the log of its training if it was logged as often and on as many points as asked (else None)."""

    lm: LanguageModel
    log: Log | None


@dataclass(frozen=True, slots=True)
class Content:
    """Digests of what a model is trained on: its documents, and its tokenizer (its words, or its file)."""

    documents: str
    tokenizer: str


Evaluate = Callable[["LanguageModel"], Measured]
Progress = Callable[[int, int], None]
_LOG_ONLY = {"evals", "eval_points"}  # keys of the recipe that change the log, but no weight


def model_request(spec: BeliefSpec, content: Content) -> ArtifactRequest:
    """Return the request of the model that *spec*, resolved, trains on *content*: documents, tokenizer, recipe, and no more.

    Raises:
        SpecError: the spec trains none.
    """
    from raysweep.artifacts import ArtifactRequest

    if spec.pretrain is None:
        raise SpecError("the belief spec trains no model", hint="give it a 'pretrain:' section")
    recipe = spec.pretrain.model_dump(mode="json", exclude={"tokenizer", "tokenizer_digest", *_LOG_ONLY})
    inputs = {"documents": content.documents, "tokenizer": content.tokenizer, "recipe": recipe}
    return ArtifactRequest(
        kind="belief_model", inputs=inputs, builder="raysweep.belief.lm.pretrain", model=None, version=VERSION
    )


def log_request(spec: BeliefSpec, content: Content) -> ArtifactRequest:
    """Return the request of the log of that model's training.

    Raises:
        SpecError: the spec trains none.
    """
    from raysweep.artifacts import ArtifactRequest

    inputs = {"model": model_request(spec, content).inputs, **log_inputs(spec)}
    return ArtifactRequest(
        kind="belief_log", inputs=inputs, builder="raysweep.belief.lm.pretrain", model=None, version=VERSION
    )


def pretrained(
    corpus: Callable[[], Corpus],
    spec: BeliefSpec,
    content: Content,
    store: ArtifactStore,
    *,
    tokenizer: Callable[[Corpus], PreTrainedTokenizerFast],
    evaluate: Evaluate | None = None,
    progress: Progress = lambda done, total: None,
    snapshot_every: int = 200,
) -> Pretrained:
    """Return the model that *spec* trains, training it if nobody has.

    Everybody who asks for the same documents, tokenizer and recipe gets the same artifact, trained once. An interrupted training
    goes on from its last snapshot. The log is an artifact beside it; a model that is there is never trained again for another log.

    Args:
        corpus: what to read; made only if there is something to train.
        spec: what the corpus was made from, with the recipe.
        content: digests of the corpus' documents and of the tokenizer.
        store: where the artifacts lie.
        tokenizer: of the corpus.
        evaluate: measures the model for the log, as often as the recipe says.
        progress: called with the steps done and their total, after each.
        snapshot_every: steps between two snapshots; 0 = none.
    """
    request, logged, recipe = model_request(spec, content), log_request(spec, content), spec.pretrain
    assert recipe is not None
    # Runs that are logged otherwise do not go on from each other's snapshots, which hold the log so far.
    snapshots = store.folder(request).with_name(
        f".{store.folder(request).name}-{store.folder(logged).name[:6]}.training"
    )

    def build() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        written = corpus()
        core = tokenizer(written)
        trainer = _train(
            written, core, recipe, evaluate, progress, snapshots if snapshot_every else None, snapshot_every
        )
        kept = {f"{name}/{i}": t for name, own in trainer.kept.items() for i, t in enumerate(own)}
        store.get_or_build(logged, lambda: (kept, {"rows": trainer.counters.log}))
        meta = {
            "vocabulary": trainer.module.config.vocab_size,
            "tokenizer": core.backend_tokenizer.to_str(),
            "pad": core.pad_token,
            "steps": trainer.total,
            "tokens": trainer.counters.tokens,
        }
        return dict(trainer.module.named_parameters()), meta

    found = read_pretrained(store.get_or_build(request, build), recipe.model)
    shutil.rmtree(snapshots, ignore_errors=True)
    return Pretrained(found, read_log(store, logged))


def read_log(store: ArtifactStore, request: ArtifactRequest) -> Log | None:
    """Return the log of *request*, or None: nobody trained that model with that log."""
    found = store.get(request)
    if found is None:
        return None
    rows = tuple(found.meta["rows"])
    names = dict.fromkeys(name.rpartition("/")[0] for name in found.tensors)
    return Log(rows, {name: tuple(found.tensors[f"{name}/{i}"] for i in range(len(rows))) for name in names})


def read_pretrained(artifact: Artifact, shape: ShapeSpec) -> LanguageModel:
    """Return the model that an artifact holds, on the device."""
    from raysweep.runtime import device

    tokenizer = belief_tokenizer.from_json(artifact.meta["tokenizer"], artifact.meta["pad"])
    module = module_of(config_of(shape, int(artifact.meta["vocabulary"]), Special.of(tokenizer)))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(artifact.tensors[name])
    return language_model(module.to(device()), tokenizer, artifact.digest)


def _train(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    spec: PretrainSpec,
    evaluate: Evaluate | None,
    progress: Progress,
    snapshots: Path | None,
    every: int,
) -> Trainer:
    from raysweep.models.layout import layout_of
    from raysweep.models.lm import LanguageModel
    from raysweep.runtime import device

    special = Special.of(tokenizer)
    encoded = batches.encode(corpus.documents(), tokenizer)
    longest = int(encoded.lengths.max()) + 2
    if longest > spec.model.positions:
        raise SpecError(
            f"a document has {longest} tokens with begin and end, but pretrain.model.positions = {spec.model.positions}",
            hint=f"positions ≥ {longest}, or a lower corpus.max_sentences_per_doc",
        )
    module = initial(config_of(spec.model, len(tokenizer), special), spec.seed).to(device())
    saved = read_snapshot(snapshots) if snapshots else None
    trainer = (
        Trainer.resume(module, encoded, spec, special, *saved) if saved else Trainer(module, encoded, spec, special)
    )
    lm = LanguageModel(module=module, tokenizer=tokenizer, layout=layout_of(module.config))
    measure = (lambda: evaluate(lm)) if evaluate is not None else None
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(spec.threads)
        for step in trainer.run(evaluate=measure):
            progress(step, trainer.total)
            if snapshots is not None and step % every == 0 and not trainer.done:
                write_snapshot(snapshots, trainer)
    finally:
        torch.set_num_threads(before)
    return trainer
