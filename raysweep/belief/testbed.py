"""A setting (``hparams/belief/<name>.yaml``) brought to life: graph, points and pretrained model, each an artifact made once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.artifacts import ArtifactStore
from raysweep.belief.basis import Basis, build_basis
from raysweep.belief.graph.artifact import belief_identity, measured_identity, open_graph
from raysweep.belief.graph.graph import KnowledgeGraph
from raysweep.belief.lm import pretrain
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm import training_log as traininglog
from raysweep.belief.lm.pretrain import Content, Measured, model_request
from raysweep.belief.lm.training_data import VERSION as CONTENT
from raysweep.belief.lm.training_data import documents_digest
from raysweep.belief.lm.training_log import REPLIES
from raysweep.belief.points import jsonl
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.setting import read_setting, resolve
from raysweep.belief.spec import BeliefSpec
from raysweep.hashing import digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from raysweep.artifacts import ArtifactRequest
    from raysweep.models.lm import LanguageModel
    from raysweep.workspace import Workspace

log = logging.getLogger(__name__)
_TOLD = 100  # steps of pretraining between two lines of the log
POINTS_VERSION = 2  # of how points come from equal specs; part of their key (2: what no editor takes is replaced)
_SPARES = 10  # at least; else one in 20


@dataclass(frozen=True, slots=True)
class Drawn:
    """The evaluation points of a setting.

    Attributes:
        points: as many as were asked for, if there are that many facts.
        spares: further ones, in order, for editors and tokenizers that refuse one of *points*.
        passed_over: how many facts could not be edited, by reason.
        relations: relations of the graph.
    """

    points: tuple[EvalPoint, ...]
    spares: tuple[EvalPoint, ...]
    passed_over: Mapping[str, int]
    relations: int


@dataclass(frozen=True, eq=False)
class Testbed:
    """Everything about one setting, made when first asked for.

    Attributes:
        spec: resolved.
        workspace: where its artifacts lie and its files are found.
    """

    spec: BeliefSpec
    workspace: Workspace

    @staticmethod
    def open(path: Path, workspace: Workspace) -> Testbed:
        """Return the testbed of the setting in *path*."""
        return Testbed(resolve(read_setting(path), workspace), workspace)

    @property
    def digest(self) -> str:
        """16 hex digits over everything that what is measured depends on, but for the model; nothing is made for it."""
        return digest({**measured_identity(self.spec), "points_version": POINTS_VERSION})

    @property
    def points_request(self) -> ArtifactRequest:
        """The request of the evaluation points."""
        from raysweep.artifacts import ArtifactRequest

        return ArtifactRequest(
            kind="belief_points",
            inputs=belief_identity(self.spec),
            builder="raysweep.belief.testbed:Testbed.drawn",
            model=None,
            version=POINTS_VERSION,
        )

    @cached_property
    def basis(self) -> Basis:
        """Graph, generative model, corpus and agent."""
        return build_basis(self.spec, open_graph(self.spec.graph, self.workspace, log.info))

    @property
    def points(self) -> tuple[EvalPoint, ...]:
        """The evaluation points."""
        return self.drawn.points

    @cached_property
    def drawn(self) -> Drawn:
        """The evaluation points with what is known about how they were drawn."""

        def build() -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
            size, counted = self.spec.points.size, Counter[str]()
            spares = max(_SPARES, size // 20) if self.spec.points.editing else 0
            points = list(self.basis.points(spares=spares, passed_over=counted))
            count = min(size, sum(p.known for p in points)) + self.spec.points.novel
            parts = {"points": points[:count], "spares": points[count:]}
            tensors = {n: _bytes("\n".join(map(jsonl.to_line, own))) for n, own in parts.items()}
            return tensors, {"passed_over": dict(counted), "relations": len(self.basis.graph.relations)}

        found = self._store.get_or_build(self.points_request, build)
        points, spares = (
            tuple(map(jsonl.from_line, filter(None, found.tensors[n].numpy().tobytes().decode().split("\n"))))
            for n in ("points", "spares")
        )
        if len(points) < self.spec.points.size + self.spec.points.novel:
            log.warning("points.size = %d, but there are %d to ask about", self.spec.points.size, len(points))
        for reason, count in found.meta["passed_over"].items():
            log.info("%d facts were passed over, as they cannot be edited: %s", count, reason)
        return Drawn(points, spares, found.meta["passed_over"], int(found.meta["relations"]))

    @property
    def model_digest(self) -> str:
        """The digest of the model that the setting trains, trained or not."""
        return self._store.folder(self.model_request).name

    @property
    def model_request(self) -> ArtifactRequest:
        """The request of that model: what it is trained on, by content, and how.

        Raises:
            SpecError: the setting trains none.
        """
        return model_request(self.spec, Content("", "") if self.spec.pretrain is None else self.content)

    @cached_property
    def content(self) -> Content:
        """Digests of the documents and of the tokenizer; the corpus is planned for it once and never written."""
        from raysweep.artifacts import ArtifactRequest

        def build() -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
            corpus = self.basis.corpus
            words = belief_tokenizer.words_of(corpus.model.graph)
            return {}, {"documents": documents_digest(corpus), "words": digest(words)}

        made_of = {k: v for k, v in belief_identity(self.spec).items() if k not in ("agent", "points")}
        request = ArtifactRequest(
            kind="belief_content",
            inputs=made_of,
            builder="raysweep.belief.testbed:Testbed.content",
            model=None,
            version=CONTENT,
        )
        found = self._store.get_or_build(request, build).meta
        recipe = self.spec.pretrain
        file = recipe.tokenizer_digest if recipe is not None and recipe.tokenizer != "words" else ""
        return Content(str(found["documents"]), file or str(found["words"]))

    def model(self, told: Callable[[int, int], None] | None = None) -> LanguageModel:
        """Return the model that the setting trains, training it if nobody has; *told* hears of every step."""

        def progress(done: int, total: int) -> None:
            if told is not None:
                told(done, total)
            if done % _TOLD == 0 or done == total:
                log.info("pretraining: step %d of %d", done, total)

        return pretrain.pretrained(
            lambda: self.basis.corpus,
            self.spec,
            self.content,
            self._store,
            tokenizer=lambda corpus: self.tokenizer(corpus.model.graph),
            evaluate=self.measure,
            progress=progress,
        ).lm

    def training_log(self) -> tuple[Mapping[str, float], ...]:
        """Return the log of the model's training, measured against this setting's agent.

        Nothing if the setting trains no model, or nobody has trained it with a log like this one (``evals``, ``eval_points`` and
        what the questions depend on): the model is not trained again for a log.
        """
        recipe = self.spec.pretrain
        if recipe is None:
            return ()
        found = pretrain.read_log(self._store, pretrain.log_request(self.spec, self.content))
        if found is None:
            log.warning(
                "the model was trained with another log (pretrain.evals, pretrain.eval_points); there is none of this"
            )
            return ()
        return tuple(traininglog.log_rows(found.rows, found.kept.get(REPLIES, ()), self._log_points, self.spec.parity))

    def measure(self, lm: LanguageModel) -> Measured:
        """Return what *lm*, in training, makes of the log's questions."""
        recipe = self.spec.pretrain
        assert recipe is not None
        return traininglog.measure(lm, self._log_points, recipe, self.spec.graph.max_object_tokens)

    @cached_property
    def _log_points(self) -> list[EvalPoint]:
        assert self.spec.pretrain is not None
        return traininglog.log_points(self.basis, self.spec.pretrain)

    def tokenizer(self, graph: KnowledgeGraph) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the model that the setting trains on what is written about *graph*."""
        recipe = self.spec.pretrain
        if recipe is None or recipe.tokenizer == "words":
            return belief_tokenizer.word_tokenizer(graph)
        return belief_tokenizer.file_tokenizer(self.workspace.resolve(recipe.tokenizer))

    @property
    def _store(self) -> ArtifactStore:
        return ArtifactStore(self.workspace.artifacts)


def _bytes(text: str) -> torch.Tensor:
    """Return *text* as uint8 [bytes]."""
    import torch

    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


def model_digest(path: Path, workspace: Workspace) -> str:
    """Return the digest of the model that the setting in *path* trains; for :mod:`raysweep.models.sources.catalogue`."""
    return Testbed.open(path, workspace).model_digest


def open_tokenizer(path: Path, workspace: Workspace) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the model that the setting in *path* trains; for :mod:`raysweep.models.sources.load`."""
    testbed = Testbed.open(path, workspace)
    return testbed.tokenizer(open_graph(testbed.spec.graph, workspace, log.info))


def open_model(
    path: Path, workspace: Workspace, dtype: torch.dtype, told: Callable[[int, int], None] | None = None
) -> LanguageModel:
    """Return the model that the setting in *path* trains, trained if need be; for :mod:`raysweep.models.sources.load`."""
    lm = Testbed.open(path, workspace).model(told)
    lm.module.to(dtype)
    return lm
