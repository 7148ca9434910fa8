"""MEMIT: spread a change of the residual stream over several layers (Meng et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks, Positive
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep, RecordCheck
from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import WeightDelta
from raysweep.records import EditRecord, subject_error

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import contexts
    from raysweep.editors.locate import layers as locate_layers
    from raysweep.editors.locate import second_moments as moments
    from raysweep.models.lm import LanguageModel
else:
    contexts = lazy("raysweep.editors.locate.contexts")
    cholesky = lazy("raysweep.editors.linalg.cholesky")
    moments = lazy("raysweep.editors.locate.second_moments")
    locate_layers = lazy("raysweep.editors.locate.layers")


class MemitConfig(EditorConfig):
    """Hyper-parameters of MEMIT.

    Attributes:
        layers: blocks to edit, rising; the target hidden state is found at the last one.
        value: how it is optimised.
        moment_weight: factor of the second moments (``mom2_update_weight``).
        moments: how they are estimated.
        contexts: context templates; the bare prompt weighs one half, the others share the other half.
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"layer_selection", "mom2_adjustment"})

    layers: Blocks
    value: ValueSpec = ValueSpec()
    moment_weight: Positive = 15_000.0
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec(lengths=((10, 5),))


class Memit(BaseEditor[MemitConfig, None]):
    """``ΔW_l = ρ [(w C_l + K Kᵀ)⁻¹ K]ᵀ``, ``ρ = (z − h) / layers left`` (MEMIT eq. 14–20; editors.md §7)."""

    name = "memit"
    version = 2
    config_type = MemitConfig
    is_stateless = True
    paper = "Meng et al. 2023, arXiv 2210.07229"
    artifact_kinds = ("contexts", "moments")

    @classmethod
    def record_check(cls, config: MemitConfig) -> RecordCheck:
        """Refuse records without a subject in the prompt: the method reads the model at the subject's last token."""
        return subject_error

    def __init__(self, config: MemitConfig) -> None:
        super().__init__(config)
        self._factors: dict[str, cholesky.Factor] = {}  # memo by artifact digest: a pure function's values

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrices of the chosen layers."""
        return tuple(f"{lm.layout.mlp_out.format(layer)}.weight" for layer in self.config.layers)

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for second moments per layer and, unless given, context templates."""
        wanted = {
            f"moments/{layer}": moments.request(lm, lm.layout.mlp_out, layer, self.config.moments)
            for layer in self.config.layers
        }
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
        """Write the whole batch with one solve per layer."""
        return self.edit_many(lm, [batch], artifacts=artifacts, rngs=[rng])[0]

    @property
    def group_size(self) -> int:
        """``value.batch``."""
        return self.config.value.batch

    def edit_many(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[EditStep[None]]:
        """Look for the values of all *batches* together, then write each on its own."""
        found = locate_layers.spread_over_layers(
            lm,
            batches,
            layers=self.config.layers,
            value=self.config.value,
            texts=contexts.templates(self.config.contexts, artifacts.get("contexts")),
            solve=lambda layer, columns: cholesky.low_rank_update(
                self._factor(artifacts[f"moments/{layer}"], columns.device), self.config.moment_weight, columns
            ),
        )
        return [EditStep(WeightDelta(f.deltas), None, f.stats) for f in found]

    def _factor(self, artifact: Artifact, device: torch.device) -> cholesky.Factor:
        if artifact.digest not in self._factors:
            matrix = artifact.tensors["moments"].to(device)
            self._factors[artifact.digest] = cholesky.factor(matrix, damping=self.config.moments.damping)
        return self._factors[artifact.digest]
