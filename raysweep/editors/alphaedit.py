"""AlphaEdit: write only into the null space of the keys to be preserved (Fang et al., ICLR 2025; docs/methods/alphaedit.md).

Target values, keys ``K``, residuals ``ρ`` and their spreading over layers are MEMIT's (``locate/layers.py``); a layer's change is
projected (eq. 12, solved in eq. 14)::

    ΔW = ρ [ (P (K Kᵀ + C_p) + L2 · I)⁻¹ P K ]ᵀ

``P`` projects onto the null space of the pristine model's keys (eq. 8 and 9; ``locate/null_space.py``), ``C_p = Σ k kᵀ`` is over
the keys of earlier edits (the paper's ``K_p K_pᵀ``), and ``L2`` = ``ridge``, which the paper has as 1.

With ``R = (P C_p + L2 · I)⁻¹ P`` this is ``ρ [R K (I + Kᵀ R K)⁻¹]ᵀ``, exactly, for any symmetric ``P``: without memory
``R = P / L2`` for ever, with it ``R ← R − R K′ (I + K′ᵀ R K′)⁻¹ K′ᵀ R`` after each edit, ``K′`` the keys under all its updates.

Shape legend: ``n`` records of the batch, ``d_in`` width of a key, ``d_out`` width of a value; ``K [d_in, n]``, ``ρ [d_out, n]``,
``P``, ``R``, ``C_p [d_in, d_in]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, Unpack

from pydantic import field_validator

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks, Positive
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import EditInputs, EditStep, JointInputs
from raysweep.editors.locate.base import LocateConfig, LocateEditor
from raysweep.editors.specs import ContextSpec, FileSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import layers as locate_layers
    from raysweep.editors.locate import null_space
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
else:
    torch, cholesky = lazy("torch"), lazy("raysweep.editors.linalg.cholesky")
    locate_layers, null_space = lazy("raysweep.editors.locate.layers"), lazy("raysweep.editors.locate.null_space")
    ledger = lazy("raysweep.models.ledger")


AlphaEditState: TypeAlias = "dict[str, Tensor] | None"
"""By layer number ``R`` (fp64), or ``C_p`` (fp32) with ``ref_fp32_lu``; None without memory (``pre: 0``)."""


class AlphaEditConfig(LocateConfig):
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
        null_space: projectors that the published code stored (``null_space_project.pt``), one for each of ``layers``; then neither
            ``moments`` nor ``threshold`` counts.
        contexts: context templates; the bare prompt weighs one half, the others share the other half.
    """

    dropped: ClassVar[frozenset[str]] = frozenset({"mom2_update_weight"})
    added: ClassVar[frozenset[str]] = frozenset({"null_space"})
    theirs: ClassVar[Table] = tables.ALPHAEDIT

    layers: Blocks
    value: ValueSpec = ValueSpec(clamp=0.75)
    threshold: Positive = 2e-2
    ridge: Positive = 10.0
    pre: Literal[0, 1] = 0
    backend: Literal["rls64", "ref_fp32_lu"] = "rls64"
    projection: Literal["eigh64", "ref_fp32_svd"] = "eigh64"
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec(lengths=((10, 5),))
    null_space: FileSpec = FileSpec()

    def idle_fields(self) -> frozenset[str]:
        """Return the moments where a file of projectors takes their place."""
        return frozenset({"moments"}) if self.null_space.path else frozenset()

    @field_validator("moments")
    @classmethod
    def _undamped(cls, moments: MomentSpec) -> MomentSpec:
        if moments.damping:
            raise ValueError("damping must be 0: the moments are not factored, only compared with the threshold")
        return moments


class AlphaEdit(LocateEditor[AlphaEditConfig, AlphaEditState]):
    """MEMIT's scheme with projected changes, and a memory of earlier keys where ``pre`` is 1.

    The memory starts empty: the published code's also holds the keys of a throwaway edit when a wrapper is around it (quirk Q17).
    """

    name = "alphaedit"
    version = 2
    config_type = AlphaEditConfig
    needs = ("dense_mlp", "plain_mlp_output")
    paper = "Fang et al. 2025, arXiv 2410.02355"
    artifact_kinds = (*LocateEditor.artifact_kinds, "projector")

    def __init__(self, config: AlphaEditConfig) -> None:
        super().__init__(config)
        # By the artifact's digest. No memory of edits: a projector in fp64 follows from its artifact alone.
        self._projectors: dict[str, Tensor] = {}

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for a null-space projector per layer and, unless given, context templates."""
        config, module = self.config, lm.layout.mlp_out
        if config.null_space.path:
            projectors = null_space.stored(lm, module, config.layers, config.null_space)
        else:
            projectors = {
                f"projector/{layer}": null_space.request(
                    lm, module, layer, config.moments, threshold=config.threshold, method=config.projection
                )
                for layer in config.layers
            }
        return {**projectors, **self.context_requests(lm)}

    @property
    def is_stateless(self) -> bool:
        """Whether each edit forgets those before (``pre: 0``)."""
        return not self.config.pre

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> AlphaEditState:
        """Return ``R = P / L2`` per layer (``C_p = 0`` for ``ref_fp32_lu``); nothing without memory."""
        if not self.config.pre:
            return None
        projectors = {
            str(n): artifacts[f"projector/{n}"].tensors["projector"].to(lm.device) for n in self.config.layers
        }
        if self.config.backend == "ref_fp32_lu":
            return {n: torch.zeros_like(p) for n, p in projectors.items()}
        return {n: p.double() / self.config.ridge for n, p in projectors.items()}

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: AlphaEditState, **given: Unpack[EditInputs]
    ) -> EditStep[AlphaEditState]:
        """Write the whole batch with one small solve per layer, then remember its keys."""
        ((deltas, stats),) = self._updates(lm, [batch], state, given["artifacts"])
        after = state
        if state is not None:
            layers, templates = self.config.layers, self.context_templates(given["artifacts"])
            # The keys to preserve are those of the edited model, under all changes of this edit.
            with ledger.applied(lm, deltas):
                keys = locate_layers.subject_keys(lm, batch, layers, templates)
            after = {str(layer): self._remember(state[str(layer)], keys[layer]) for layer in layers}
        return EditStep(WeightDelta(deltas), after, stats)

    @property
    def group_size(self) -> int:
        """``value.batch``, unless edits remember those before."""
        return self.config.value.batch if self.is_stateless else 1

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[AlphaEditState]]:
        """Look for the values of all *batches* together, then write each on its own, without memory."""
        return [
            EditStep(WeightDelta(d), None, stats) for d, stats in self._updates(lm, batches, None, given["artifacts"])
        ]

    def _updates(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        state: AlphaEditState,
        artifacts: Mapping[str, Artifact],
    ) -> list[tuple[dict[str, Delta], dict[str, float]]]:
        """Return the changes and the numbers of each of *batches*, all from the same memory."""
        layers, templates = self.config.layers, self.context_templates(artifacts)

        def solve(layer: int, columns: Tensor) -> Tensor:
            # all batches start from the same memory: none sees another's keys
            memory = None if state is None else state[str(layer)]
            return self._solve(artifacts[f"projector/{layer}"], memory, columns)

        updates = locate_layers.spread_over_layers(
            lm,
            batches,
            layers=layers,
            value=self.config.value,
            templates=templates,
            solve=solve,
            graphs=self.graphs(),
        )
        ranks = {f"kept_rank/{layer}": float(artifacts[f"projector/{layer}"].meta["kept_rank"]) for layer in layers}
        return [(u.deltas, u.stats | ranks) for u in updates]

    def _solve(self, artifact: Artifact, memory: Tensor | None, columns: Tensor) -> Tensor:
        """Return ``(P (K Kᵀ + C_p) + L2 I)⁻¹ P K`` ``[d_in, n]``."""
        if self.config.backend == "ref_fp32_lu":
            # The system is not symmetric, so the published code solves it by LU.
            p, k = self._projector(artifact, columns.device).float(), columns.float()
            gram = k @ k.T if memory is None else k @ k.T + memory
            eye = torch.eye(k.shape[0], dtype=k.dtype, device=k.device)
            solved: Tensor = torch.linalg.solve(p @ gram + self.config.ridge * eye, p @ k)
            return solved.double()
        if memory is None:
            # R = P / L2, so X = P K (L2 I + Kᵀ P K)⁻¹
            projected = self._projector(artifact, columns.device) @ columns
            return cholesky.push_through(projected, columns, self.config.ridge)
        # X = R K (I + Kᵀ R K)⁻¹ with the memory R, in which L2 is already.
        return cholesky.push_through(memory @ columns, columns, 1.0)

    def _remember(self, memory: Tensor, columns: Tensor) -> Tensor:
        """Return the memory of one layer with the keys ``[d_in, n]`` of a finished edit in it."""
        if self.config.backend == "ref_fp32_lu":
            return memory + columns.float() @ columns.float().T
        # (R⁻¹ + K Kᵀ)⁻¹ where R has an inverse; exact for the singular R = P / L2 as well.
        return cholesky.downdate(memory, columns)

    def _projector(self, artifact: Artifact, device: torch.device) -> Tensor:
        """Return ``P`` in fp64 on *device*."""
        if artifact.digest not in self._projectors:
            self._projectors[artifact.digest] = artifact.tensors["projector"].to(device, torch.float64)
        return self._projectors[artifact.digest]
