"""ROME: a rank-one edit that maps the subject's key to a value that says the target (Meng et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep, RecordCheck
from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, LowRank, WeightDelta, add_deltas
from raysweep.records import EditRecord, subject_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import contexts, target_value
    from raysweep.editors.locate import second_moments as moments
    from raysweep.models import ledger, tokens
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    contexts = lazy("raysweep.editors.locate.contexts")
    cholesky = lazy("raysweep.editors.linalg.cholesky")
    moments = lazy("raysweep.editors.locate.second_moments")
    target_value = lazy("raysweep.editors.locate.target_value")
    ledger, tokens = lazy("raysweep.models.ledger"), lazy("raysweep.models.tokens")


class RomeConfig(EditorConfig):
    """Hyper-parameters of ROME.

    Attributes:
        layers: blocks to edit, in order; the papers use one.
        value: how the value is optimised.
        adjust: precondition the key by the inverse second moments (``mom2_adjustment``).
        inverse: by a Cholesky factor in fp64, or as published by an explicit fp32 inverse (quirk Q10).
        moments: how they are estimated.
        contexts: context templates, in one flat group.
    """

    layers: Blocks
    value: ValueSpec = ValueSpec()
    adjust: bool = True
    inverse: Literal["cholesky64", "ref_fp32_inverse"] = "cholesky64"
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec()


class Rome(BaseEditor[RomeConfig, None]):
    """``ΔW = r uᵀ`` with ``u ∝ C⁻¹ k̄`` and ``r = (v* − W k) / kᵀu`` (ROME eq. 2; editors.md §6)."""

    name = "rome"
    version = 2
    config_type = RomeConfig
    is_stateless = True
    paper = "Meng et al. 2022, arXiv 2202.05262"
    artifact_kinds = ("contexts", "moments")

    @classmethod
    def record_check(cls, config: RomeConfig) -> RecordCheck:
        """Refuse records without a subject in the prompt: the method reads the model at the subject's last token."""
        return subject_error

    def __init__(self, config: RomeConfig) -> None:
        super().__init__(config)
        self._factors: dict[str, cholesky.Factor] = {}  # memo by artifact digest: a pure function's values

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrices of the chosen layers."""
        return tuple(f"{lm.layout.mlp_out.format(layer)}.weight" for layer in self.config.layers)

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for second moments per layer and, unless given, context templates."""
        wanted: dict[str, ArtifactRequest] = {}
        if self.config.adjust:
            for layer in self.config.layers:
                wanted[f"moments/{layer}"] = moments.request(lm, lm.layout.mlp_out, layer, self.config.moments)
        if self.config.contexts.templates is None:
            wanted["contexts"] = contexts.request(lm, self.config.contexts)
        return wanted

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: None,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[None]:
        """Write the records one after another, each on the model with the earlier ones in place."""
        deltas: dict[str, Delta] = {}
        stats: dict[str, float] = {}
        for record in batch:
            for layer in self.config.layers:
                name = f"{lm.layout.mlp_out.format(layer)}.weight"
                with ledger.applied(lm, deltas):
                    delta, found = self._one(lm, record, layer, artifacts)
                deltas[name] = add_deltas(deltas.get(name), delta)
                stats |= {f"{key}/{layer}": value for key, value in found.items()}
        return EditStep(WeightDelta(deltas), state, stats)

    @property
    def group_size(self) -> int:
        """``value.batch`` where there is one layer: further ones start from the model with the first one's change in place."""
        return self.config.value.batch if len(self.config.layers) == 1 else 1

    def edit_many(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[EditStep[None]]:
        """Find the values of all *batches*, of one record each, together."""
        if self.group_size == 1 or any(len(batch) != 1 for batch in batches):
            return [self.edit(lm, b, None, artifacts=artifacts, rng=r) for b, r in zip(batches, rngs, strict=True)]
        (layer,) = self.config.layers
        name, steps = f"{lm.layout.mlp_out.format(layer)}.weight", []
        tasks = [self._task(lm, record, artifacts) for (record,) in batches]
        for value in target_value.optimise(lm, tasks, layer=layer, site="mlp", spec=self.config.value):
            delta, found = self._change(value, layer, artifacts)
            stats = {f"{key}/{layer}": v for key, v in found.items()}
            steps.append(EditStep(WeightDelta({name: delta}), None, stats))
        return steps

    def _one(
        self, lm: LanguageModel, record: EditRecord, layer: int, artifacts: Mapping[str, Artifact]
    ) -> tuple[LowRank, dict[str, float]]:
        task = self._task(lm, record, artifacts)
        (value,) = target_value.optimise(lm, [task], layer=layer, site="mlp", spec=self.config.value)
        return self._change(value, layer, artifacts)

    def _task(self, lm: LanguageModel, record: EditRecord, artifacts: Mapping[str, Artifact]) -> target_value.ValueTask:
        texts = contexts.templates(self.config.contexts, artifacts.get("contexts"))
        spec, text = self.config.value, tokens.always_spaced(record.target)
        target = tokens.target(lm, record.prompt, text, strip_dummy_piece=spec.strip_dummy_piece)
        return target_value.value_task(
            lm, record.template, record.subject, target, texts, decoded=spec.ref_decoded_rows
        )

    def _change(
        self, value: target_value.Value, layer: int, artifacts: Mapping[str, Artifact]
    ) -> tuple[LowRank, dict[str, float]]:
        mean_key = value.keys.double().mean(0)
        if self.config.adjust:
            mean_key = self._solved(artifacts[f"moments/{layer}"], mean_key)
        u = mean_key / mean_key.norm()
        gain = value.keys[0].double() @ u
        r = ((value.origin + value.shift).double() - value.output.double()) / gain
        stats = {
            "loss": value.loss,
            "first_loss": value.first_loss,
            "value_steps": float(value.steps),
            "key_gain": float(gain),
            "delta_norm": float(r.norm()),
        }
        return LowRank(r[:, None], u[None, :]), stats

    def _solved(self, artifact: Artifact, key: Tensor) -> Tensor:
        """Return ``C⁻¹ k̄`` in fp64."""
        if self.config.inverse == "ref_fp32_inverse":
            matrix: Tensor = artifact.tensors["moments"].to(key.device, torch.float32)
            damped = matrix + self.config.moments.damping * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
            solved: Tensor = torch.linalg.inv(damped) @ key.float()
            return solved.double()
        return self._factor(artifact, key.device).solve(key[:, None])[:, 0]

    def _factor(self, artifact: Artifact, device: torch.device) -> cholesky.Factor:
        if artifact.digest not in self._factors:
            matrix = artifact.tensors["moments"].to(device)
            self._factors[artifact.digest] = cholesky.factor(matrix, damping=self.config.moments.damping)
        return self._factors[artifact.digest]
