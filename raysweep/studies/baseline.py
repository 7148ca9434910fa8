"""What the pristine model answers: asked once, kept as an artifact, shared by all trials that ask the same questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import ArtifactRequest, ArtifactStore, Built
from raysweep.hashing import text_digest
from raysweep.lazy import lazy
from raysweep.records import Probe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.evals.scoring import Scores
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")

Asking = Callable[[Sequence[Probe]], Sequence["Scores"]]


def answers(
    lm: LanguageModel,
    probes: Sequence[Probe],
    ask: Asking,
    store: ArtifactStore,
    *,
    asking: str,
    batch: int,
    threads: int,
) -> list[Scores]:
    """Return what the pristine *lm* answers to *probes*, in order.

    Different questions are asked once each, in an order of their own; so the numbers do not depend on the order of the
    records, and trials that differ in seed or editor share them. Answers are counted tokens and fp64 log-probabilities.

    Args:
        lm: the model; nothing has been written to it.
        probes: the questions.
        ask: asks them of *lm*.
        store: where answers are kept.
        asking: how *ask* asks (``protocol.asking``); with *batch*, part of the artifact's identity.
        batch: rows per forward pass.
        threads: CPU threads of this process.
    """
    if not probes:
        return []
    # Sorted, so that neither the order of the records nor how often a question comes changes what is asked in one batch.
    distinct = {(p.prompt, p.target): p for p in probes}
    chosen = [distinct[k] for k in sorted(distinct)]
    listed = "\x1e".join(f"{p.prompt}\x1f{p.target}" for p in chosen)
    # The batch is a part of the identity: rows of one forward pass move each other's last bits.
    request = ArtifactRequest(
        kind="answers",
        inputs={
            "asking": asking,
            "batch": batch,
            "questions": text_digest(listed),
        },
        builder=f"{__name__}:answers",
        model=lm.identity,
        version=VERSIONS["answers"],
        threads=threads,
    )
    answers_artifact = store.get_or_build(request, lambda: _packed(ask(chosen)))
    scores = _unpacked(answers_artifact.tensors, answers_artifact.meta["texts"])
    kept = dict(zip(sorted(distinct), scores, strict=True))
    return [kept[p.prompt, p.target] for p in probes]


def _packed(scores: Sequence[Scores]) -> Built:
    # Answers differ in length: all ids in one tensor behind each other, and the lengths to cut it by.
    tensors = {
        name: torch.tensor([i for s in scores for i in getattr(s, name)], dtype=torch.int64)
        for name in ("labels", "answers")
    }
    lengths = torch.tensor([[len(s.labels), len(s.answers)] for s in scores], dtype=torch.int64)
    logprob = torch.tensor([s.logprob for s in scores], dtype=torch.float64)
    return {**tensors, "lengths": lengths, "logprob": logprob}, {"texts": [s.text for s in scores]}


def _unpacked(tensors: Mapping[str, Tensor], texts: Sequence[str]) -> list[Scores]:
    labels, answered = (
        [tuple(part.tolist()) for part in torch.split(tensors[name], tensors["lengths"][:, i].tolist())]
        for i, name in enumerate(("labels", "answers"))
    )
    make = lazy("raysweep.evals.scoring").Scores
    return [make(*row) for row in zip(labels, answered, tensors["logprob"].tolist(), texts, strict=True)]
