"""A testbed: everything about one setting (``hparams/belief/<name>.yaml``), from its graph to its pretrained model.

Graph, dependency arrows, generative model, corpus and agent are pure functions of the spec (:func:`build_parts`). What is expensive
or must be named before it exists — points, digests of the content, the model, its log — are artifacts, each made once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raysweep.artifacts import ArtifactStore
from raysweep.belief.agent.agent import Agent, fit_agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.generative import GenerativeModel, build_generative
from raysweep.belief.corpus.writer import build_corpus
from raysweep.belief.graph.artifact import belief_identity, measured_identity, open_graph
from raysweep.belief.graph.dependencies import DependencyArrows, graph_dependencies
from raysweep.belief.graph.graph import KnowledgeGraph
from raysweep.belief.lm import artifact as model_artifact
from raysweep.belief.lm import tokenizer as belief_tokenizer
from raysweep.belief.lm import training_log
from raysweep.belief.lm.artifact import ContentDigests
from raysweep.belief.lm.training_data import VERSION as CONTENT_VERSION
from raysweep.belief.lm.training_data import documents_digest
from raysweep.belief.points import jsonl
from raysweep.belief.points.build import build_points
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.setting import read_setting, resolve_setting
from raysweep.belief.spec import BeliefSpec
from raysweep.hashing import digest
from raysweep.models.sources.base import ModelRecipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from raysweep.artifacts import ArtifactRequest, Built
    from raysweep.belief.lm.pretrain import Measurements
    from raysweep.models.lm import LanguageModel
    from raysweep.workspace import Workspace

log = logging.getLogger(__name__)
_LOG_EVERY = 100  # steps of pretraining between two lines of the log
POINTS_VERSION = 2  # of how points come from equal specs; part of their key (2: what no editor takes is replaced)
_MIN_SPARES = 10  # else one in 20


@dataclass(frozen=True, eq=False)
class TestbedParts:
    """Graph, arrows, generative model, corpus and agent of one spec; all pure functions of it."""

    __test__ = False  # no class of tests, whatever its name begins with

    spec: BeliefSpec
    graph: KnowledgeGraph
    arrows: DependencyArrows
    model: GenerativeModel
    corpus: Corpus
    agent: Agent

    def points(self, *, spares: int = 0, passed_over: Counter[str] | None = None) -> Iterator[EvalPoint]:
        """Yield the evaluation points, then *spares*; *passed_over* counts the facts that cannot be edited, by reason."""
        return build_points(
            self.corpus, self.agent, self.spec.points, self.spec.seed, spares=spares, passed_over=passed_over
        )


def build_parts(spec: BeliefSpec, graph: KnowledgeGraph) -> TestbedParts:
    """Return the parts of *spec* on *graph*.

    Raises:
        BeliefError: see the parts.
    """
    arrows = graph_dependencies(graph)
    model = build_generative(graph, arrows, spec.generative, spec.seed, spec.parity)
    corpus = build_corpus(model, spec.corpus, spec.seed)
    agent = fit_agent(corpus.evidence, arrows, len(graph.objects), spec.agent, spec.parity)
    return TestbedParts(spec, graph, arrows, model, corpus, agent)


@dataclass(frozen=True, slots=True)
class PointSet:
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

    __test__ = False

    spec: BeliefSpec
    workspace: Workspace

    @staticmethod
    def open(path: Path, workspace: Workspace) -> Testbed:
        """Return the testbed of the setting in *path*."""
        return Testbed(resolve_setting(read_setting(path), workspace), workspace)

    @property
    def digest(self) -> str:
        """16 hex digits over everything that what is measured depends on, but for the model; nothing is made for it."""
        return digest({**measured_identity(self.spec), "points_version": POINTS_VERSION})

    @cached_property
    def parts(self) -> TestbedParts:
        """Graph, generative model, corpus and agent."""
        return build_parts(self.spec, open_graph(self.spec.graph, self.workspace, log.info))

    # -- the evaluation points

    @property
    def points_request(self) -> ArtifactRequest:
        """The request of the evaluation points."""
        from raysweep.artifacts import ArtifactRequest

        return ArtifactRequest(
            kind="belief_points",
            inputs=belief_identity(self.spec),
            builder="raysweep.belief.testbed:Testbed.point_set",
            model=None,
            version=POINTS_VERSION,
        )

    @property
    def points(self) -> tuple[EvalPoint, ...]:
        """The evaluation points."""
        return self.point_set.points

    @cached_property
    def point_set(self) -> PointSet:
        """The evaluation points, the spare ones, and which facts could not be edited."""
        artifact = self._store.get_or_build(self.points_request, self._build_points)
        # An artifact holds tensors, so lines of JSON are kept as bytes.
        points, spares = (
            tuple(map(jsonl.from_line, filter(None, artifact.tensors[n].numpy().tobytes().decode().split("\n"))))
            for n in ("points", "spares")
        )
        if len(points) < self.spec.points.size + self.spec.points.novel:
            log.warning("points.size = %d, but there are %d to ask about", self.spec.points.size, len(points))
        for reason, count in artifact.meta["passed_over"].items():
            log.info("%d facts were passed over, as they cannot be edited: %s", count, reason)
        return PointSet(points, spares, artifact.meta["passed_over"], int(artifact.meta["relations"]))

    def _build_points(self) -> Built:
        size, passed_over = self.spec.points.size, Counter[str]()
        spares = max(_MIN_SPARES, size // 20) if self.spec.points.editing else 0
        points = list(self.parts.points(spares=spares, passed_over=passed_over))
        # Behind the known points come the novel ones, then the spares, which are known too.
        count = min(size, sum(p.known for p in points)) + self.spec.points.novel
        files = {"points": points[:count], "spares": points[count:]}
        tensors = {name: _bytes("\n".join(map(jsonl.to_line, lines))) for name, lines in files.items()}
        return tensors, {"passed_over": dict(passed_over), "relations": len(self.parts.graph.relations)}

    # -- the model

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
        content = ContentDigests("", "") if self.spec.pretrain is None else self.content
        return model_artifact.model_request(self.spec, content)

    @cached_property
    def content(self) -> ContentDigests:
        """Digests of the documents and of the tokenizer; the corpus is planned for it once and never written."""
        from raysweep.artifacts import ArtifactRequest

        def build() -> Built:
            corpus = self.parts.corpus
            words = belief_tokenizer.vocabulary_words(corpus.model.graph)
            return {}, {"documents": documents_digest(corpus), "words": digest(words)}

        request = ArtifactRequest(
            kind="belief_content",
            # Neither agent nor points change what is written.
            inputs={k: v for k, v in belief_identity(self.spec).items() if k not in ("agent", "points")},
            builder="raysweep.belief.testbed:Testbed.content",
            model=None,
            version=CONTENT_VERSION,
        )
        digests = self._store.get_or_build(request, build).meta
        recipe = self.spec.pretrain
        # A tokenizer from a file is named by its bytes, one made of words by the words.
        file = recipe.tokenizer_digest if recipe is not None and recipe.tokenizer != "words" else ""
        return ContentDigests(str(digests["documents"]), file or str(digests["words"]))

    def model(self, on_step: Callable[[int, int], None] | None = None) -> LanguageModel:
        """Return the model that the setting trains, training it if nobody has.

        *on_step* is called with the steps done and their total, after each.
        """

        def progress(done: int, total: int) -> None:
            if on_step is not None:
                on_step(done, total)
            if done % _LOG_EVERY == 0 or done == total:
                log.info("pretraining: step %d of %d", done, total)

        return model_artifact.get_or_pretrain(
            lambda: self.parts.corpus,
            self.spec,
            self.content,
            self._store,
            tokenizer=lambda corpus: self.tokenizer(corpus.model.graph),
            evaluate=self.measure,
            progress=progress,
        ).lm

    def tokenizer(self, graph: KnowledgeGraph) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the model that the setting trains on what is written about *graph*."""
        recipe = self.spec.pretrain
        if recipe is None or recipe.tokenizer == "words":
            return belief_tokenizer.word_tokenizer(graph)
        return belief_tokenizer.file_tokenizer(self.workspace.resolve(recipe.tokenizer))

    # -- the log of its training

    def training_log(self) -> tuple[Mapping[str, float], ...]:
        """Return the log of the model's training, measured against this setting's agent.

        Nothing if the setting trains no model, or nobody has trained it with a log like this one (``evals``, ``eval_points`` and
        what the questions depend on): the model is not trained again for a log.
        """
        if self.spec.pretrain is None:
            return ()
        saved = model_artifact.read_log(self._store, model_artifact.log_request(self.spec, self.content))
        if saved is None:
            log.warning(
                "the model was trained with another log (pretrain.evals, pretrain.eval_points); there is none of this"
            )
            return ()
        replies = saved.tensors.get(training_log.REPLIES, ())
        return tuple(training_log.log_rows(saved.rows, replies, self._log_points, self.spec.parity))

    def measure(self, lm: LanguageModel) -> Measurements:
        """Return what *lm*, in training, makes of the log's questions."""
        recipe = self.spec.pretrain
        assert recipe is not None
        return training_log.measure_log_points(lm, self._log_points, recipe, self.spec.graph.max_object_tokens)

    @cached_property
    def _log_points(self) -> list[EvalPoint]:
        assert self.spec.pretrain is not None
        return training_log.log_points(self.parts.corpus, self.parts.agent, self.spec.pretrain)

    @property
    def _store(self) -> ArtifactStore:
        return ArtifactStore(self.workspace.artifacts)


def _bytes(text: str) -> torch.Tensor:
    """Return *text* as uint8 [bytes]."""
    import torch

    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


class TestbedRecipe(ModelRecipe):
    """The model that a setting trains, for ``model.path: hparams/belief/<name>.yaml``."""

    __test__ = False  # no class of tests, whatever its name begins with

    def digest(self) -> str:
        """Return the digest of the model, trained or not."""
        return Testbed.open(self.path, self.workspace).model_digest

    def blocks_and_positions(self) -> tuple[int, int]:
        """Return how many blocks and positions the model will have; zeros = the setting trains none."""
        recipe = read_setting(self.path).pretrain
        return (recipe.model.layers, recipe.model.positions) if recipe else (0, 0)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the words in the setting's graph."""
        testbed = Testbed.open(self.path, self.workspace)
        return testbed.tokenizer(open_graph(testbed.spec.graph, self.workspace, log.info))

    def model(self, dtype: torch.dtype, on_step: Callable[[int, int], None] | None = None) -> LanguageModel:
        """Return the model in *dtype*, trained now if it never was."""
        lm = Testbed.open(self.path, self.workspace).model(on_step)
        lm.module.to(dtype)
        return lm
