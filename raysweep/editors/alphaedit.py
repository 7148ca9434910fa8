"""AlphaEdit: write only into the null space of the keys to be preserved (Fang et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks, Positive
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep, RecordCheck
from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, WeightDelta
from raysweep.records import EditRecord, subject_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import contexts, null_space
    from raysweep.editors.locate import layers as locate_layers
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    contexts = lazy("raysweep.editors.locate.contexts")
    cholesky = lazy("raysweep.editors.linalg.cholesky")
    null_space = lazy("raysweep.editors.locate.null_space")
    locate_layers = lazy("raysweep.editors.locate.layers")
    ledger = lazy("raysweep.models.ledger")


class AlphaEditConfig(EditorConfig):
    """Hyper-parameters of AlphaEdit.

    Attributes:
        layers: blocks to edit, rising; the target hidden state is found at the last one.
        value: how it is optimised.
        threshold: eigenvalues of the second moments below this span the null space (absolute: it depends on the scale
            of the model's keys; the kept rank is in the artifact and in the stats).
        ridge: weight of ``‖Δ‖²`` (``L2``).
        pre: 1 also preserves the keys of earlier edits (lifelong AlphaEdit); 0 does not (AlphaEdit⁻, the published files).
        backend: ``rls64``, the exact shortcuts in fp64; ``ref_fp32_lu``, the published general solve in fp32 (quirk Q16).
        projection: ``eigh64``; ``ref_fp32_svd``, the published decomposition (quirk Q10).
        moments: how second moments are estimated; damping has no place here and must be 0.
        contexts: context templates; the bare prompt weighs one half, the others share the other half.
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"mom2_update_weight"})

    layers: Blocks
    value: ValueSpec = ValueSpec(clamp=0.75)
    threshold: Positive = 2e-2
    ridge: Positive = 10.0
    pre: Literal[0, 1] = 0
    backend: Literal["rls64", "ref_fp32_lu"] = "rls64"
    projection: Literal["eigh64", "ref_fp32_svd"] = "eigh64"
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec(lengths=((10, 5),))

    @field_validator("moments")
    @classmethod
    def _undamped(cls, moments: MomentSpec) -> MomentSpec:
        if moments.damping:
            raise ValueError("damping must be 0: the moments are not factored, only compared with the threshold")
        return moments


class AlphaEdit(BaseEditor[AlphaEditConfig, dict[str, Any] | None]):
    """``ΔW_l = ρ [(P (K Kᵀ + C_p) + L2 I)⁻¹ P K]ᵀ`` (AlphaEdit eq. 11–13; editors.md §8.3), ``C_p`` the keys of earlier edits.

    With ``R = (P C_p + L2 I)⁻¹ P`` this is ``ρ [R K (I + Kᵀ R K)⁻¹]ᵀ``: without memory ``R = P / L2`` for ever; with it
    ``R ← R − R K′ (I + K′ᵀ R K′)⁻¹ K′ᵀ R`` after each edit, ``K′`` the keys under all its updates (§8.5). Exact for any
    symmetric ``P``; the memory is ``R`` (fp64) per layer, ``C_p`` (fp32) for ``ref_fp32_lu``. It starts empty:
    the published code's also holds the keys of a throwaway edit when a wrapper is around it (quirk Q17).
    """

    name = "alphaedit"
    version = 2
    config_type = AlphaEditConfig
    paper = "Fang et al. 2025, arXiv 2410.02355"
    artifact_kinds = ("contexts", "moments", "projector")

    @classmethod
    def record_check(cls, config: AlphaEditConfig) -> RecordCheck:
        """Refuse records without a subject in the prompt: the method reads the model at the subject's last token."""
        return subject_error

    def __init__(self, config: AlphaEditConfig) -> None:
        super().__init__(config)
        self._projectors: dict[str, Tensor] = {}  # memo by artifact digest: a pure function's values

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrices of the chosen layers."""
        return tuple(f"{lm.layout.mlp_out.format(layer)}.weight" for layer in self.config.layers)

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for a null-space projector per layer and, unless given, context templates."""
        c = self.config
        wanted = {
            f"projector/{layer}": null_space.request(
                lm, lm.layout.mlp_out, layer, c.moments, threshold=c.threshold, method=c.projection
            )
            for layer in c.layers
        }
        if c.contexts.templates is None:
            wanted["contexts"] = contexts.request(lm, c.contexts)
        return wanted

    @property
    def is_stateless(self) -> bool:
        """Tell whether each edit forgets those before (``pre: 0``)."""
        return not self.config.pre

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, Any] | None:
        """Return ``R = P / L2`` per layer (``C_p = 0`` for ``ref_fp32_lu``); nothing without memory."""
        if not self.config.pre:
            return None
        stored = {str(n): artifacts[f"projector/{n}"].tensors["projector"].to(lm.device) for n in self.config.layers}
        if self.config.backend == "ref_fp32_lu":
            return {n: torch.zeros_like(p) for n, p in stored.items()}
        return {n: p.double() / self.config.ridge for n, p in stored.items()}

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: dict[str, Any] | None,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[dict[str, Any] | None]:
        """Write the whole batch with one small solve per layer, then remember its keys."""
        ((deltas, stats),) = self._written(lm, [batch], state, artifacts)
        after = state
        if state is not None:
            layers, texts = self.config.layers, contexts.templates(self.config.contexts, artifacts.get("contexts"))
            with ledger.applied(lm, deltas):
                written = locate_layers.subject_keys(lm, batch, layers, texts)
            after = {str(layer): self._remember(state[str(layer)], written[layer]) for layer in layers}
        return EditStep(WeightDelta(deltas), after, stats)

    @property
    def group_size(self) -> int:
        """``value.batch``, unless edits remember those before."""
        return self.config.value.batch if self.is_stateless else 1

    def edit_many(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[EditStep[dict[str, Any] | None]]:
        """Look for the values of all *batches* together, then write each on its own, without memory."""
        return [EditStep(WeightDelta(d), None, stats) for d, stats in self._written(lm, batches, None, artifacts)]

    def _written(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        state: dict[str, Any] | None,
        artifacts: Mapping[str, Artifact],
    ) -> list[tuple[dict[str, Delta], dict[str, float]]]:
        layers = self.config.layers
        texts = contexts.templates(self.config.contexts, artifacts.get("contexts"))

        def solve(layer: int, columns: Tensor) -> Tensor:
            memory = None if state is None else state[str(layer)]
            return self._solve(artifacts[f"projector/{layer}"], memory, columns)

        found = locate_layers.spread_over_layers(
            lm, batches, layers=layers, value=self.config.value, texts=texts, solve=solve
        )
        kept = {f"kept_rank/{layer}": float(artifacts[f"projector/{layer}"].meta["kept_rank"]) for layer in layers}
        return [(f.deltas, f.stats | kept) for f in found]

    def _solve(self, artifact: Artifact, memory: Tensor | None, columns: Tensor) -> Tensor:
        """Return ``(P (K Kᵀ + C_p) + L2 I)⁻¹ P K`` ``[d_in, n]``."""
        if self.config.backend == "ref_fp32_lu":
            p, k = self._projector(artifact, columns.device).float(), columns.float()
            gram = k @ k.T if memory is None else k @ k.T + memory
            eye = torch.eye(k.shape[0], dtype=k.dtype, device=k.device)
            solved: Tensor = torch.linalg.solve(p @ gram + self.config.ridge * eye, p @ k)
            return solved.double()
        if memory is None:
            projected = self._projector(artifact, columns.device) @ columns
            return cholesky.push_through(projected, columns, self.config.ridge)
        return cholesky.push_through(memory @ columns, columns, 1.0)

    def _remember(self, memory: Tensor, columns: Tensor) -> Tensor:
        if self.config.backend == "ref_fp32_lu":
            return memory + columns.float() @ columns.float().T
        return cholesky.downdate(memory, columns)

    def _projector(self, artifact: Artifact, device: torch.device) -> Tensor:
        """Return ``P`` in fp64 on *device*."""
        if artifact.digest not in self._projectors:
            self._projectors[artifact.digest] = artifact.tensors["projector"].to(device, torch.float64)
        return self._projectors[artifact.digest]
