"""A pretrained model and the log of its training as artifacts, made once for everybody who asks for the same.

A model is named by what it is trained on and how: digests of the documents and of the tokenizer, and the recipe without the keys
that change its log only. So a plan knows the name before the model exists, and settings that write the same documents share it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.artifacts import Artifact, ArtifactStore
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.lm import batches
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm.architecture import (
    SpecialTokens,
    as_language_model,
    empty_model,
    initialised_model,
    model_config,
)
from raysweep.belief.lm.checkpoint import read_snapshot, write_snapshot
from raysweep.belief.lm.pretrain import VERSION, Measurements, Trainer
from raysweep.belief.lm.training_log import log_inputs
from raysweep.belief.spec import BeliefSpec, PretrainSpec, ShapeSpec
from raysweep.errors import SpecError
from raysweep.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from raysweep.artifacts import ArtifactRequest, Built
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")

Evaluate = Callable[["LanguageModel"], Measurements]
OnStep = Callable[[int, int], None]
"""Called with the steps done and their total."""
_LOG_ONLY = {"evals", "eval_points"}  # keys of the recipe that change the log, but no weight


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What was noted while a model was trained.

    Attributes:
        rows: progress and losses, by name.
        tensors: what was measured with each row, by name.
    """

    rows: tuple[Mapping[str, float], ...]
    tensors: Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class PretrainedModel:
    """A pretrained model, and the log of its training if it was logged as often and on as many points as asked (else None)."""

    lm: LanguageModel
    log: TrainingLog | None


@dataclass(frozen=True, slots=True)
class ContentDigests:
    """Digests of what a model is trained on: its documents, and its tokenizer (its words, or its file)."""

    documents: str
    tokenizer: str


def model_request(spec: BeliefSpec, content: ContentDigests) -> ArtifactRequest:
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


def log_request(spec: BeliefSpec, content: ContentDigests) -> ArtifactRequest:
    """Return the request of the log of that model's training.

    Raises:
        SpecError: the spec trains none.
    """
    from raysweep.artifacts import ArtifactRequest

    # A log is of one model, and of what was asked of it.
    inputs = {"model": model_request(spec, content).inputs, **log_inputs(spec)}
    return ArtifactRequest(
        kind="belief_log", inputs=inputs, builder="raysweep.belief.lm.pretrain", model=None, version=VERSION
    )


def get_or_pretrain(
    corpus: Callable[[], Corpus],
    spec: BeliefSpec,
    content: ContentDigests,
    store: ArtifactStore,
    *,
    tokenizer: Callable[[Corpus], PreTrainedTokenizerFast],
    evaluate: Evaluate | None = None,
    progress: OnStep = lambda done, total: None,
    snapshot_every: int = 200,
) -> PretrainedModel:
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
    request, log, recipe = model_request(spec, content), log_request(spec, content), spec.pretrain
    assert recipe is not None
    # Runs that are logged otherwise do not go on from each other's snapshots, which hold the log so far.
    model_folder = store.folder(request)
    snapshots = model_folder.with_name(f".{model_folder.name}-{store.folder(log).name[:6]}.training")

    def build() -> Built:
        # Only now is the corpus written: whoever finds the model in the store never pays for it.
        text = corpus()
        text_tokenizer = tokenizer(text)
        folder = snapshots if snapshot_every else None
        trainer = _train(text, text_tokenizer, recipe, evaluate, progress, folder, snapshot_every)
        measured = {f"{name}/{i}": t for name, rows in trainer.log_tensors.items() for i, t in enumerate(rows)}
        store.get_or_build(log, lambda: (measured, {"rows": trainer.counters.log}))
        meta = {
            "vocabulary": trainer.module.config.vocab_size,
            "tokenizer": text_tokenizer.backend_tokenizer.to_str(),
            "pad": text_tokenizer.pad_token,
            "steps": trainer.total,
            "tokens": trainer.counters.tokens,
        }
        return dict(trainer.module.named_parameters()), meta

    lm = read_pretrained(store.get_or_build(request, build), recipe.model)
    shutil.rmtree(snapshots, ignore_errors=True)
    return PretrainedModel(lm, read_log(store, log))


def read_log(store: ArtifactStore, request: ArtifactRequest) -> TrainingLog | None:
    """Return the log of *request*, or None: nobody trained that model with that log."""
    artifact = store.get(request)
    if artifact is None:
        return None
    rows = tuple(artifact.meta["rows"])
    # Tensors are stored as "name/row".
    names = dict.fromkeys(name.rpartition("/")[0] for name in artifact.tensors)
    tensors = {name: tuple(artifact.tensors[f"{name}/{i}"] for i in range(len(rows))) for name in names}
    return TrainingLog(rows, tensors)


def read_pretrained(artifact: Artifact, shape: ShapeSpec) -> LanguageModel:
    """Return the model that an artifact holds, on the device."""
    from raysweep.runtime import device

    tokenizer = belief_tokenizer.tokenizer_from_json(artifact.meta["tokenizer"], artifact.meta["pad"])
    special = SpecialTokens.from_tokenizer(tokenizer)
    module = empty_model(model_config(shape, int(artifact.meta["vocabulary"]), special))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(artifact.tensors[name])
    # The artifact's digest names the model in keys of what is computed with it.
    return as_language_model(module.to(device()), tokenizer, artifact.digest)


def _train(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    spec: PretrainSpec,
    evaluate: Evaluate | None,
    progress: OnStep,
    snapshots: Path | None,
    every: int,
) -> Trainer:
    """Train to the end of the budget, from the snapshot in *snapshots* if there is one, with one written *every* steps."""
    from raysweep.models.layout import layout_of
    from raysweep.models.lm import LanguageModel
    from raysweep.runtime import device

    special = SpecialTokens.from_tokenizer(tokenizer)
    documents = batches.encode_documents(corpus.documents(), tokenizer)
    # Begin and end.
    longest = int(documents.lengths.max()) + 2
    if longest > spec.model.positions:
        raise SpecError(
            f"a document has {longest} tokens with begin and end, but pretrain.model.positions = {spec.model.positions}",
            hint=f"positions ≥ {longest}, or a lower corpus.max_sentences_per_doc",
        )
    module = initialised_model(model_config(spec.model, len(tokenizer), special), spec.seed).to(device())
    saved = read_snapshot(snapshots) if snapshots else None
    # A run that was cut off goes on from its last snapshot.
    if saved:
        trainer = Trainer.resume(module, documents, spec, special, *saved)
    else:
        trainer = Trainer(module, documents, spec, special)
    lm = LanguageModel(module=module, tokenizer=tokenizer, layout=layout_of(module.config))
    measure = (lambda: evaluate(lm)) if evaluate is not None else None
    # The number of threads moves the last bits, so it is the recipe's; the caller's comes back.
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(spec.threads)
        for step in trainer.run(evaluate=measure):
            progress(step, trainer.total)
            if snapshots is not None and step % every == 0 and not trainer.done:
                write_snapshot(snapshots, trainer)
    finally:
        torch.set_num_threads(threads)
    return trainer
