"""MEMIT: spread a change of the residual stream over several layers (Meng et al., ICLR 2023; docs/methods/memit.md).

For target hidden states ``z`` at the last chosen layer, layer by layer with the lower updates in place (eq. 14 and 20)::

    ΔW_l = ρ_l [ (w C_l + K Kᵀ)⁻¹ K ]ᵀ        ρ_l = (z − h) / layers left, C_l the second moments, w = moment_weight

by ``(w C + K Kᵀ)⁻¹ K = C⁻¹ K (w I + Kᵀ C⁻¹ K)⁻¹``: one Cholesky factor of ``C_l`` per run, then small solves.

Shape legend: ``n`` records of the batch; ``K [d_in, n]`` their keys, ``ρ [d_out, n]``, ``C [d_in, d_in]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks, Positive
from raysweep.editors.base import EditStep
from raysweep.editors.locate.base import LocateConfig, LocateEditor
from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import layers as locate_layers
    from raysweep.editors.locate import second_moments as moments
    from raysweep.models.lm import LanguageModel
else:
    cholesky = lazy("raysweep.editors.linalg.cholesky")
    moments = lazy("raysweep.editors.locate.second_moments")
    locate_layers = lazy("raysweep.editors.locate.layers")


class MemitConfig(LocateConfig):
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


class Memit(LocateEditor[MemitConfig, None]):
    """One target hidden state per record, one regularised solve per layer and batch; no memory (Meng et al. 2023, Algorithm 1)."""

    name = "memit"
    version = 2
    config_type = MemitConfig
    is_stateless = True
    paper = "Meng et al. 2023, arXiv 2210.07229"
    artifact_kinds = ("contexts", "moments")

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for second moments per layer and, unless given, context templates."""
        requests = {
            f"moments/{layer}": moments.request(lm, lm.layout.mlp_out, layer, self.config.moments)
            for layer in self.config.layers
        }
        return {**requests, **self.context_requests(lm)}

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
        # A batch of n records is one solve with n columns; several batches only share the search for values.
        updates = locate_layers.spread_over_layers(
            lm,
            batches,
            layers=self.config.layers,
            value=self.config.value,
            texts=self.context_templates(artifacts),
            solve=lambda layer, columns: cholesky.low_rank_update(
                self.moment_factor(artifacts[f"moments/{layer}"], columns.device, self.config.moments.damping),
                self.config.moment_weight,
                columns,
            ),
        )
        return [EditStep(WeightDelta(u.deltas), None, u.stats) for u in updates]
