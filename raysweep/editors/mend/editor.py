"""MEND: a hypernetwork turns the gradient of one edit into a low-rank update (Mitchell et al., ICLR 2022; docs/methods/mend.md).

For each edited matrix the loss on the record gives, per token ``t``, an input ``x_t`` and an output gradient ``δ_t``; the network
maps them to ``x̃_t, δ̃_t``, and the update is ``W + η Σ_t δ̃_t x̃_tᵀ`` with a learnt step size ``η`` per matrix. The
network is an artifact: trained when it is first needed, or read from a file.

Shape legend: ``n`` tokens that count, ``x̃ [n, d_in]``, ``η δ̃ [n, d_out]``; the change ``[d_out, d_in]`` is their product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Unpack

from pydantic import Field, model_validator

from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks, Count, DataSpec, FileSpec, NonNegative, Positive, Spec
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import BaseEditor, EditInputs, EditorConfig, EditStep, JointInputs
from raysweep.errors import DataError, SpecError
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.patches import Delta, LowRank, WeightDelta
from raysweep.records import EditRecord, Probe, ProbeKind

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.editors.mend import archive as mend_archive
    from raysweep.editors.mend import factors, network
    from raysweep.models import attention
    from raysweep.models.lm import LanguageModel
    from raysweep.models.sizes import ModelSize
else:
    torch, mend_archive = lazy("torch"), lazy("raysweep.editors.mend.archive")
    network, factors = lazy("raysweep.editors.mend.network"), lazy("raysweep.editors.mend.factors")
    attention = lazy("raysweep.models.attention")

ARTIFACT = "hypernetwork"


class MendTraining(Spec):
    """How the hypernetwork is trained.

    Attributes:
        data: the training fold; must not overlap the records that are edited.
        validation (records): how many records at the fold's end are kept for choosing the best network.
        steps (updates): optimiser steps.
        batch (records): records per step (the published ``accumulate_bs``).
        lr: of Adam over the networks.
        lr_lr: of Adam over the step sizes η.
        clip: norm to which the whole gradient is clipped.
        cedit: weight of the edit loss.
        cloc: weight of the locality loss.
        paraphrase: share of records whose edit loss is asked of a paraphrase instead of the edited text itself (0 = published).
        swap: share of records written with another record's target, so that targets do not give records away (0 = published).
        every (updates): validate after this many steps and keep the best network.
        select: what is best: ``edit`` accuracy on held-out records, or the mean of edit accuracy and locality (``both``); ties go
            to the smaller loss; ``last`` keeps the newest, as published (quirk Q36).
        seed: of initialisation and of every draw.
        ref_kl: measure locality over the last m positions instead of those that predict the answer (quirk Q34).
        ref_lr: η learns at ``lr``; ``lr_lr`` does nothing (quirk Q35).
    """

    data: DataSpec = DataSpec()
    validation: Count = 30
    steps: Annotated[int, Field(ge=0)] = 10_000
    batch: Count = 10
    lr: Positive = 1e-6
    lr_lr: NonNegative = 1e-4
    clip: Positive = 100.0
    cedit: NonNegative = 0.1
    cloc: NonNegative = 1.0
    paraphrase: Annotated[float, Field(ge=0, le=1)] = 0.0
    swap: Annotated[float, Field(ge=0, le=1)] = 0.0
    every: Count = 100
    select: Literal["edit", "both", "last"] = "edit"
    seed: int = 0
    ref_kl: bool = False
    ref_lr: bool = False


class MendConfig(EditorConfig):
    """Hyper-parameters of MEND.

    Attributes:
        layers: blocks whose MLP is edited.
        modules: which of its matrices, in this order within each block (the order is the published archives' ``inner_params``).
        weights: an archive of ``raysweep train-mend``, or a published one; without ``path`` the network is trained.
        train: the recipe; dropped where ``weights.path`` is given, since the numbers then do not depend on it.
        rank: of the networks' layers, at most their width.
        edit_lr: start of every η. A negative one goes down the gradient from the first step on (the published is positive: the
            update is added, so the network has to learn the sign).
        shared: one network per shape (published) or per matrix.
        ref_labels: demand BOS (and SentencePiece's stand-alone space) too, as published archives were trained (quirk Q33).
        batch (records): records whose gradients are taken in one pass where the edits do not see each other (SimIE in ``init``
            mode with ``closed64``).
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"lr_scale", "act", "hidden_dim", "cbase"})
    added: ClassVar[frozenset[str]] = frozenset({"batch"})
    theirs: ClassVar[Table] = tables.MEND

    layers: Blocks
    modules: tuple[Literal["mlp_in", "mlp_out"], ...] = Field(("mlp_in", "mlp_out"), min_length=1)
    weights: FileSpec = FileSpec()
    train: MendTraining | None = None
    rank: Count = 1920
    edit_lr: float = 1e-4
    shared: bool = True
    ref_labels: bool = False
    batch: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _recipe_or_archive(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        weights = data.get("weights")
        path = weights.get("path") if isinstance(weights, Mapping) else getattr(weights, "path", "")
        if path and data.get("train") is not None:
            MendTraining.model_validate(data["train"])
            return {key: value for key, value in data.items() if key != "train"}
        return data


# records with something that must stay: one to learn from, one to validate on
MIN_TRAINING_RECORDS = 2


class Mend(BaseEditor[MendConfig, None]):
    """One gradient, one pass through the hypernetwork, one low-rank update per matrix. No memory."""

    name = "mend"
    version = 2
    config_type = MendConfig
    is_stateless = True
    paper = "Mitchell et al., ICLR 2022, arXiv 2110.11309"
    artifact_kinds = ("hypernetwork",)

    @staticmethod
    def train_split_error(records: Sequence[EditRecord]) -> DataError | None:
        """Return why the network cannot be trained on *records*; None if it can."""
        usable = sum(bool(locality_probes(record)) for record in records)
        if usable >= MIN_TRAINING_RECORDS:
            return None
        return DataError(
            f"{len(records)} records, {usable} of them with a locality probe, are too few to train on",
            hint="use a larger training fold (train.data, or --skip and --size)",
        )

    def __init__(self, config: MendConfig) -> None:
        super().__init__(config)
        self._loaded: tuple[str, torch.device, network.Hypernetwork] | None = None  # derived from the artifact alone

    @classmethod
    def working_bytes(cls, config: MendConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what an edit takes: the hypernetwork, the blocks from the lowest edited one on, the factors of all matrices."""
        tokens, width = config.batch * activations.ROW, shape.hidden + shape.mlp_width
        kinds = {"mlp_in": 1 + shape.gated, "mlp_out": 1}
        matrices = len(config.layers) * sum(kinds[kind] for kind in config.modules)
        networks = len(set(config.modules)) if config.shared else matrices
        # Two layers of two factors each; their vectors, a few per matrix, are nothing beside them.
        hypernetwork = networks * 2 * 2 * min(config.rank, width) * width
        kept = activations.kept_of_rows(shape, size, blocks=shape.layers - min(config.layers), tokens=tokens)
        # In fp32: inputs and gradients, of which about half are there a second time when they are masked.
        factors = round(1.5 * 4 * matrices * tokens * width)
        head = activations.of_the_head(shape, size, predictions=config.batch * activations.TARGET)
        return {"hypernetwork": 4 * hypernetwork, "activations": kept + factors + head}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the edited matrices in the order of their step sizes."""
        return edited_parameters(lm, self.config)

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for the hypernetwork: read from the given archive, or trained on the training fold.

        Raises:
            SpecError: neither an archive nor a recipe is configured.
        """
        config = self.config
        if config.weights.path:
            archive = config.weights.digest or mend_archive.digest_of(Path(config.weights.path))
            inputs: dict[str, object] = {"archive": archive, "matrices": self.edited_parameters(lm)}
            builder = "raysweep.editors.mend.archive:build"
            where = {"path": config.weights.path}
            return {ARTIFACT: self._request(lm, inputs, builder, where=where)}
        if config.train is None:
            raise SpecError(
                "MEND has no hypernetwork for this model",
                hint="train one (raysweep train-mend … --out FILE) and give weights.path: FILE, or give a 'train:' recipe",
            )
        # Where the data lies is not part of the artifact's identity; what is in it is.
        # How many records are edited in one pass is no part of the network's training either.
        recipe = config.model_dump(mode="json", exclude={"weights", "batch"})
        del recipe["train"]["data"]["path"]
        inputs = {"config": recipe}
        if len(set(attention.windows(lm.module.config))) > 1:
            # Networks of such models were once trained with other blocks' windows.
            inputs["blocks"] = "each with its own window"
        builder = "raysweep.editors.mend.training:build"
        return {ARTIFACT: self._request(lm, inputs, builder, data=config.train.data)}

    def _request(
        self,
        lm: LanguageModel,
        inputs: Mapping[str, object],
        builder: str,
        *,
        where: Mapping[str, str] | None = None,
        data: DataSpec | None = None,
    ) -> ArtifactRequest:
        return ArtifactRequest(
            ARTIFACT, inputs, builder, where=where or {}, data=data, model=lm.identity, version=VERSIONS[ARTIFACT]
        )

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **given: Unpack[EditInputs]
    ) -> EditStep[None]:
        """Transform the gradient factors of each record's own loss on the model as it stands, and sum over records."""
        net = self._network(lm, given["artifacts"][ARTIFACT])
        return self._step(lm, net, self._gradients(lm, batch), slice(None))

    @property
    def group_size(self) -> int:
        """``batch``."""
        return self.config.batch

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[None]]:
        """Take the gradients of all records in one pass; each batch's update is made of its own rows."""
        net = self._network(lm, given["artifacts"][ARTIFACT])
        gradients = self._gradients(lm, [record for batch in batches for record in batch])
        ends = list(accumulate(map(len, batches)))
        return [
            self._step(lm, net, gradients, slice(end - len(batch), end))
            for batch, end in zip(batches, ends, strict=True)
        ]

    def _gradients(self, lm: LanguageModel, records: Sequence[EditRecord]) -> factors.GradientFactors:
        """Return the factors of each record's own loss, a row each."""
        modules = [n.rpartition(".")[0] for n in self.edited_parameters(lm)]
        texts = [factors.label_text(lm, r.prompt, r.target, special=self.config.ref_labels) for r in records]
        return factors.gradient_factors(lm, factors.batch_texts(lm, texts, min(self.config.layers)), modules)

    def _step(
        self, lm: LanguageModel, net: network.Hypernetwork, gradients: factors.GradientFactors, rows: slice
    ) -> EditStep[None]:
        """Return the update that the network makes of the *rows* of *gradients*."""
        deltas: dict[str, Delta] = {}
        stats = {"loss": float(gradients.loss[rows].mean())}
        with torch.no_grad():
            for name in self.edited_parameters(lm):
                x, delta = (factor[rows] for factor in gradients.pairs[name.rpartition(".")[0]])
                # [B, T]; the tokens of all records become n rows
                counted = network.nonzero_tokens(x, delta)
                right, left = net(name, x[counted], delta[counted])
                deltas[name] = LowRank(left.T, right)
                # ‖Σ_t left_t right_tᵀ‖_F² = Σ_{s,t} (left_s · left_t) (right_s · right_t)
                stats[f"norm/{name}"] = float(((left @ left.T) * (right @ right.T)).sum().clamp(min=0).sqrt())
        return EditStep(WeightDelta(deltas), None, stats)

    def _network(self, lm: LanguageModel, artifact: Artifact) -> network.Hypernetwork:
        """Return the artifact's network on the model's device; kept while the same artifact is asked for."""
        if self._loaded is None or self._loaded[:2] != (artifact.digest, lm.device):
            net = network.Hypernetwork.load(matrices(lm, self.config), artifact.tensors).to(lm.device)
            self._loaded = (artifact.digest, lm.device, net)
        return self._loaded[2]


def edited_parameters(lm: LanguageModel, config: MendConfig) -> tuple[str, ...]:
    """Return the names of the edited matrices: block by block, in the order of ``modules``."""
    parts = {"mlp_in": lm.layout.mlp_in, "mlp_out": (lm.layout.mlp_out,)}
    return tuple(
        f"{part.format(layer)}.weight" for layer in config.layers for kind in config.modules for part in parts[kind]
    )


def matrices(lm: LanguageModel, config: MendConfig) -> list[network.Matrix]:
    """Return the edited matrices with their logical shapes."""
    shapes = ((name, lm.logical(name).shape) for name in edited_parameters(lm, config))
    return [network.Matrix(name, shape[1], shape[0]) for name, shape in shapes]


def locality_probes(record: EditRecord) -> list[Probe]:
    """Return what must stay when *record* is written: its locality probes, else its unrelated text."""
    probes = [p for p in record.probes if p.kind is ProbeKind.LOCALITY]
    # A record without locality probes is asked for the last word of its unrelated text.
    head, _, tail = record.unrelated.rpartition(" ")
    if not probes and head and tail:
        return [Probe(kind=ProbeKind.LOCALITY, prompt=head, target=tail)]
    return probes
