"""MEMIT: spread a change of the residual stream over several layers (Meng et al., ICLR 2023; docs/methods/memit.md).

For target hidden states ``z`` at the last chosen layer (eq. 16), layer by layer with the lower updates in place (eq. 14 and 20)::

    ΔW_l = ρ_l [ (w C_l + K Kᵀ)⁻¹ K ]ᵀ        ρ_l = (z − h) / layers left

``h`` is the hidden state that the model has by now where ``z`` is wanted, ``K`` are the records' keys at layer ``l`` (eq. 19),
``C_l`` the second moments of keys there and ``w`` = ``moment_weight`` (eq. 15, where it is λ). What walks through the layers is
``locate/layers.py``; here is the solve of one layer. By ``(w C + K Kᵀ)⁻¹ K = C⁻¹ K (w I + Kᵀ C⁻¹ K)⁻¹`` it takes one Cholesky
factor of ``C_l`` per run, then small systems.

Shape legend: ``n`` records of the batch, ``d_in`` width of a key, ``d_out`` width of a value (and of the residual stream);
``K [d_in, n]``, ``ρ [d_out, n]``, ``C [d_in, d_in]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Unpack

from raysweep.config.schema import Blocks, Positive
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import EditInputs, EditStep, JointInputs
from raysweep.editors.locate.base import LocateConfig, LocateEditor
from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from torch import Tensor

    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import layers as locate_layers
    from raysweep.models.lm import LanguageModel
else:
    cholesky = lazy("raysweep.editors.linalg.cholesky")
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
    theirs: ClassVar[Table] = tables.MEMIT

    layers: Blocks
    value: ValueSpec = ValueSpec()
    # as published for models of 6 to 7 billion weights; a small model needs far less (hparams/memit)
    moment_weight: Positive = 15_000.0
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec(lengths=((10, 5),))


class Memit(LocateEditor[MemitConfig, None]):
    """One target hidden state per record, one regularised solve per layer and batch; no memory (Meng et al. 2023, §4.3)."""

    name = "memit"
    version = 2
    config_type = MemitConfig
    is_stateless = True
    needs = ("dense_mlp", "plain_mlp_output")
    paper = "Meng et al. 2023, arXiv 2210.07229"

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **given: Unpack[EditInputs]
    ) -> EditStep[None]:
        """Write the whole batch with one solve per layer."""
        # One path for both, so that a batch edited alone goes through the same code as among others.
        return self.edit_many(lm, [batch], artifacts=given["artifacts"], rngs=[given["rng"]])[0]

    @property
    def group_size(self) -> int:
        """``value.batch``."""
        return self.config.value.batch

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[None]]:
        """Look for the values of all *batches* together, then write each on its own."""
        artifacts, config = given["artifacts"], self.config

        def solve(layer: int, columns: Tensor) -> Tensor:
            """Return ``(w C + K Kᵀ)⁻¹ K`` for the keys ``K [d_in, n]`` of a layer."""
            # C is of the pristine model (quirk Q11), so one factor serves every batch and edit of a run.
            factor = self.moment_factor(artifacts, layer, columns.device)
            return cholesky.low_rank_update(factor, config.moment_weight, columns)

        # A batch of n records is one solve with n columns; several batches only share the search for values.
        updates = locate_layers.spread_over_layers(
            lm,
            batches,
            layers=config.layers,
            value=config.value,
            templates=self.context_templates(artifacts),
            solve=solve,
            graphs=self.graphs(),
        )
        return [EditStep(WeightDelta(u.deltas), None, u.stats) for u in updates]
