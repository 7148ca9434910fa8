"""The embedded model: a small Llama trained on the embedded world, shipped ready and rebuilt by :func:`build`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raysweep.hashing import canonical, file_digest
from raysweep.models.optim import Muon
from raysweep.models.sources.embedded_scores import scores
from raysweep.seeds import derive
from raysweep.world import Sentence, World, WorldSpec, build_world, training_sentences

Progress = Callable[[int, int, float], None]

_BOS, _EOS = "<s>", "</s>"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSpec:
    """The recipe of the embedded model.

    Attributes:
        world: what it is trained on.
        vocab: size of the byte-level BPE.
        hidden: width of the residual stream.
        layers: number of blocks.
        heads: attention heads.
        ff: width of the MLP (the associative memory that editors write to).
        steps: optimiser steps.
        rows: rows per step.
        row_tokens: length of a row (``<s>`` and whole sentences).
        lr: peak learning rate of Muon (matrices) and AdamW (embeddings, norms).
        warmup: steps of linear warm-up; the rate then falls linearly to ``final_lr`` of the peak.
        final_lr: see *warmup*.
        weight_decay: of the matrices.
        object_weight: loss weight of object tokens.
        text_weight: loss weight of all other tokens.
        dropout: of MLP outputs during training.
        clip: norm to which the gradient is clipped.
    """

    world: WorldSpec = field(default_factory=WorldSpec)
    vocab: int = 1600
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    ff: int = 512
    steps: int = 1000
    rows: int = 16
    row_tokens: int = 64
    lr: float = 3e-3
    warmup: int = 40
    final_lr: float = 0.02
    weight_decay: float = 0.1
    object_weight: float = 1.0
    text_weight: float = 0.1
    dropout: float = 0.1
    clip: float = 1.0


EMBEDDED_SPEC = EmbeddedSpec()


def path() -> Path:
    """Return the folder of the shipped model."""
    return Path(__file__).resolve().parent / "_embedded"


def build(
    out_dir: Path,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
    spec: EmbeddedSpec | None = None,
) -> dict[str, float]:
    """Train tokenizer and model from the world and write them to *out_dir* as a Hugging Face folder.

    Args:
        out_dir: folder to write (created if needed; files of the same names are replaced).
        seed: of initialisation, packing and dropout; the world has its own seed.
        threads: torch threads while training.
        progress: called with (step, steps, loss) now and then.
        spec: the recipe (default: :data:`EMBEDDED_SPEC`).

    Returns:
        The scores of the model as written (:func:`raysweep.models.sources.embedded_scores.scores`), and ``train_seconds``.
    """
    spec = spec or EMBEDDED_SPEC
    before = torch.get_num_threads()
    started = time.perf_counter()
    try:
        torch.set_num_threads(threads)
        world = build_world(spec.world)
        tokenizer = train_tokenizer(world, spec.vocab)
        model = _train(world, tokenizer, spec, seed, progress)
        seconds = time.perf_counter() - started
        # measured as written: the scores are those of the rounded weights
        model.to(torch.bfloat16)
        _save(model, tokenizer, out_dir)
        measured = scores(model.to(torch.float32), tokenizer, world)
    finally:
        torch.set_num_threads(before)
    files = sorted(p for p in out_dir.iterdir() if p.suffix in {".json", ".safetensors"} and p.name != "manifest.json")
    manifest = {
        "model": "raysweep embedded",
        "spec": canonical(spec),
        "seed": seed,
        "threads": threads,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(seconds, 1),
        "scores": {name: round(value, 4) for name, value in measured.items()},
        "files": {p.name: {"bytes": p.stat().st_size, "blake2b": file_digest(p, length=32)} for p in files},
    }
    (out_dir / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {**measured, "train_seconds": seconds}


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out_dir: Path) -> None:
    """Write the folder file by file (``save_pretrained`` of the model would print a progress bar)."""
    out_dir.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(out_dir)
    model.generation_config.save_pretrained(out_dir)
    # the head is tied to the embedding and not stored
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}
    (out_dir / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save_pretrained(out_dir)


# -------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(world: World, vocab: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on two epochs of the world's text; it prepends ``<s>`` like Llama-2's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [s.text for epoch in range(2) for s in training_sentences(world, epoch)]
    names = [f"{e} {e} {e}" for kind in sorted(world.entities) for e in world.entities[kind]]
    core.train_from_iterator(texts + names, trainer)
    # BOS before every text by template, as Llama-2's tokenizer does
    bos = core.token_to_id(_BOS)
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{_BOS} $A", pair=f"{_BOS} $A {_BOS}:1 $B:1", special_tokens=[(_BOS, bos)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_EOS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


# --------------------------------------------------------------------------------------------------- training


def _config(spec: EmbeddedSpec, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        intermediate_size=spec.ff,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )


def _encode(tokenizer: PreTrainedTokenizerFast, sentences: Sequence[Sentence]) -> list[tuple[list[int], list[bool]]]:
    """Return per sentence its ids (no ``<s>``) and which of them belong to an object."""
    batch = tokenizer.backend_tokenizer.encode_batch([s.text for s in sentences], add_special_tokens=False)
    out = []
    for sentence, encoding in zip(sentences, batch, strict=True):
        flags = [any(a < stop and start < b for start, stop in sentence.spans) for a, b in encoding.offsets]
        out.append((encoding.ids, flags))
    return out


def _rows(
    world: World, tokenizer: PreTrainedTokenizerFast, spec: EmbeddedSpec, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches (ids, loss weights); a row is ``<s>`` and whole sentences, then padding."""
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    epoch = 0
    rows: list[tuple[list[int], list[float]]] = []
    while True:
        # a row begins with BOS, which no loss is taken of
        ids: list[int] = [bos]
        weights: list[float] = [0.0]
        for tokens, flags in _encode(tokenizer, training_sentences(world, epoch)):
            if len(ids) + len(tokens) > spec.row_tokens and len(ids) > 1:
                rows.append((ids, weights))
                ids, weights = [bos], [0.0]
            ids = (ids + tokens)[: spec.row_tokens]
            weights = (weights + [spec.object_weight if f else spec.text_weight for f in flags])[: spec.row_tokens]
        Random(derive(seed, "rows", epoch)).shuffle(rows)
        # whole batches only; what is left over goes into the next epoch's
        while len(rows) >= spec.rows:
            batch, rows = rows[: spec.rows], rows[spec.rows :]
            width = max(len(i) for i, _ in batch)
            yield (
                torch.tensor([i + [pad] * (width - len(i)) for i, _ in batch]),
                torch.tensor([w + [0.0] * (width - len(w)) for _, w in batch]),
            )
        epoch += 1


def _train(
    world: World, tokenizer: PreTrainedTokenizerFast, spec: EmbeddedSpec, seed: int, progress: Progress | None
) -> LlamaForCausalLM:
    # transformers initialises from the global generator; leave it as it was for everybody else
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        model = LlamaForCausalLM(_config(spec, tokenizer))
    noise = torch.Generator().manual_seed(derive(seed, "dropout"))
    # Muon is for hidden matrices; embeddings and norms are AdamW's
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, spec.lr, spec.weight_decay)
    adam = torch.optim.AdamW(others, lr=spec.lr, betas=(0.9, 0.95), weight_decay=0.0)
    hooks = [layer.mlp.register_forward_hook(_dropper(spec.dropout, noise)) for layer in model.model.layers]
    model.train()
    batches = _rows(world, tokenizer, spec, seed)
    for step in range(spec.steps):
        ids, weights = next(batches)
        logits = model(input_ids=ids).logits[:, :-1]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        # the loss of a token is weighted where it is predicted, one to the left
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        scale = _schedule(step, spec)
        for group in adam.param_groups:
            group["lr"] = spec.lr * scale
        adam.step()
        muon.step(scale)
        if progress is not None and (step % 50 == 0 or step == spec.steps - 1):
            progress(step + 1, spec.steps, float(loss.detach()))
    for hook in hooks:
        hook.remove()
    return model.eval()


def _schedule(step: int, spec: EmbeddedSpec) -> float:
    if step < spec.warmup:
        return (step + 1) / spec.warmup
    done = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return 1 - (1 - spec.final_lr) * done


def _dropper(rate: float, generator: torch.Generator) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
    def drop(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        if not rate or not module.training:
            return None
        mask = torch.rand(output.shape, generator=generator) >= rate
        # inverted dropout: nothing to rescale when the model is used
        return output * mask / (1 - rate)

    return drop
