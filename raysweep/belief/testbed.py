"""A setting (``hparams/belief/<name>.yaml``) brought to life: graph, points and pretrained model, each an artifact made once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from raysweep.artifacts import ArtifactStore
from raysweep.belief import pointfile, pretrain, wordlevel
from raysweep.belief.asking import ask_points, sequence_loss, summary
from raysweep.belief.basis import Basis, build_basis
from raysweep.belief.graph import KnowledgeGraph
from raysweep.belief.points import EvalPoint
from raysweep.belief.pretrain import Pretrained, model_request
from raysweep.belief.spec import BeliefSpec, PretrainSpec
from raysweep.belief.store import belief_identity, open_graph, resolve_graph
from raysweep.config.hparams import REMARKS
from raysweep.config.load import read
from raysweep.config.problems import from_validation
from raysweep.errors import DataError, ProblemsError
from raysweep.hashing import file_digest
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from raysweep.editors.base import ArtifactRequest
    from raysweep.models.lm import LanguageModel
    from raysweep.workspace import Workspace

log = logging.getLogger(__name__)
POINTS_VERSION = 1  # of the evaluation points that equal settings give; part of their key
_TOLD = 100  # steps of pretraining between two lines of the log


def read_setting(path: Path) -> BeliefSpec:
    """Return the belief spec written in *path*; its remarks (``source``, ``notes``) are left out.

    Raises:
        YamlError: the file is not well-formed.
        DataError: it holds no mapping.
        ProblemsError: every key that is wrong, with its place.
    """
    source = read(path)
    if not isinstance(source.tree, dict):
        raise DataError(f"{path} holds no belief spec", hint="keys: " + ", ".join(BeliefSpec.model_fields))
    tree = {key: value for key, value in source.tree.items() if key not in REMARKS}
    try:
        return BeliefSpec.model_validate(tree)
    except ValidationError as error:
        where = lambda at, key: source.key(at) if key else source.value(at)  # noqa: E731
        raise ProblemsError(from_validation(error, BeliefSpec, "belief", where)) from error


def resolve(spec: BeliefSpec, workspace: Workspace) -> BeliefSpec:
    """Return *spec* with the digests of the files it names.

    Raises:
        DataError: a file is missing; the message says where it belongs.
    """
    found = spec.model_copy(update={"graph": resolve_graph(spec.graph, workspace)})
    recipe = found.pretrain
    if recipe is None or recipe.tokenizer == "words":
        return found
    file = wordlevel.tokenizer_file(workspace.resolve(recipe.tokenizer))
    return found.model_copy(update={"pretrain": recipe.model_copy(update={"tokenizer_digest": file_digest(file)})})


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
        """16 hex digits over everything the points depend on; nothing is made for it."""
        return self._store.folder(self.points_request).name

    @property
    def points_request(self) -> ArtifactRequest:
        """The request of the evaluation points."""
        from raysweep.editors.base import ArtifactRequest

        return ArtifactRequest(
            kind="belief_points",
            inputs=belief_identity(self.spec),
            builder="raysweep.belief.testbed:Testbed.points",
            model=None,
            version=POINTS_VERSION,
        )

    @cached_property
    def basis(self) -> Basis:
        """Graph, generative model, corpus and agent."""
        return build_basis(self.spec, open_graph(self.spec.graph, self.workspace, log.info))

    @cached_property
    def points(self) -> tuple[EvalPoint, ...]:
        """The evaluation points."""
        import torch

        def build() -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
            points = [p for p in self.basis.points() if _editable(p)]
            text = "\n".join(pointfile.to_line(replace(p, id=i)) for i, p in enumerate(points))
            return {"lines": torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())}, {}

        lines = self._store.get_or_build(self.points_request, build).tensors["lines"].numpy().tobytes().decode()
        return tuple(map(pointfile.from_line, lines.split("\n")))

    @property
    def model_digest(self) -> str:
        """The digest of the model that the setting trains, trained or not."""
        return self._store.folder(self.model_request).name

    @property
    def model_request(self) -> ArtifactRequest:
        """The request of that model."""
        return model_request(self.spec)

    def model(self, told: Callable[[int, int], None] | None = None) -> Pretrained:
        """Return the model that the setting trains, training it if nobody has; *told* hears of every step."""
        recipe = self.spec.pretrain
        assert recipe is None or isinstance(recipe, PretrainSpec)

        def progress(done: int, total: int) -> None:
            if told is not None:
                told(done, total)
            if done % _TOLD == 0 or done == total:
                log.info("pretraining: step %d of %d", done, total)

        return pretrain.pretrained(
            lambda: self.basis.corpus,
            self.spec,
            self._store,
            tokenizer=lambda corpus: self.tokenizer(corpus.model.graph),
            evaluate=self.measure,
            progress=progress,
            measured_on=self.digest,
        )

    def training_log(self) -> tuple[Mapping[str, float], ...]:
        """Return what was logged while the model was trained.

        That is nothing if it is not trained, if the setting trains none, or if a setting with other points trained it: the model is
        the same then, what was measured on the way is not.
        """
        if self.spec.pretrain is None:
            return ()
        found = self._store.get(self.model_request)
        if found is None or found.meta.get("measured_on") not in (None, self.digest):
            return ()
        return tuple(found.meta["log"])

    def measure(self, lm: LanguageModel) -> dict[str, float]:
        """Return the numbers of a log row (§7.6) for *lm*, on ``eval_points`` points chosen by the recipe's seed (ruling F5)."""
        recipe = self.spec.pretrain or PretrainSpec.model_construct()
        rng = np.random.default_rng(derive(recipe.seed, "pretrain", "eval"))
        chosen = [self.points[i] for i in rng.permutation(len(self.points))[: recipe.eval_points]]
        names = frozenset(
            n
            for p in chosen
            for n, q in p.questions.items()
            if (q.scored and n != "paraphrase_case") or n == "A_sentence"
        )
        replies = ask_points(lm, chosen, new_tokens=self.spec.graph.max_object_tokens, names=names)
        sentences = [p.sentences[rng.integers(len(p.sentences))] for p in chosen if p.sentences]
        found = summary(chosen, replies, parity=self.spec.parity, batch=len(chosen))
        return {"eval_loss": sequence_loss(lm, sentences), **found} if sentences else found

    def tokenizer(self, graph: KnowledgeGraph) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the model that the setting trains on what is written about *graph*."""
        recipe = self.spec.pretrain
        if recipe is None or recipe.tokenizer == "words":
            return wordlevel.word_tokenizer(graph)
        return wordlevel.file_tokenizer(self.workspace.resolve(recipe.tokenizer))

    @property
    def _store(self) -> ArtifactStore:
        return ArtifactStore(self.workspace.artifacts)


def _editable(point: EvalPoint) -> bool:
    """Say whether editors can tell the subject in the prompt (a Wikidata name may hold a brace, or occur in the relation's)."""
    subject, relation, _ = point.names
    prompt = f"{subject} {relation}"
    return prompt.count(subject) == 1 and not set(prompt) & set("{}")


def model_digest(path: Path, workspace: Workspace) -> str:
    """Return the digest of the model that the setting in *path* trains; for :mod:`raysweep.models.catalogue`."""
    return Testbed.open(path, workspace).model_digest


def open_tokenizer(path: Path, workspace: Workspace) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the model that the setting in *path* trains; for :mod:`raysweep.models.load`."""
    testbed = Testbed.open(path, workspace)
    return testbed.tokenizer(open_graph(testbed.spec.graph, workspace, log.info))


def open_model(
    path: Path, workspace: Workspace, dtype: torch.dtype, told: Callable[[int, int], None] | None = None
) -> LanguageModel:
    """Return the model that the setting in *path* trains, trained if need be; for :mod:`raysweep.models.load`."""
    lm = Testbed.open(path, workspace).model(told).lm
    lm.module.to(dtype)
    return lm
