"""ROME: a rank-one edit that maps the subject's key to a value that says the target (docs/methods/rome.md).

For the value matrix ``W`` of one block, the key ``k`` of the bare prompt, the key ``k̄`` averaged over contexts (eq. 3), the target
value ``v*`` (eq. 4) and the second moments ``C`` of keys (Meng et al., NeurIPS 2022, eq. 2)::

    ΔW = r uᵀ,    u = C⁻¹ k̄ / ‖C⁻¹ k̄‖,    r = (v* − W k) / (uᵀ k)        so that (W + ΔW) k = v*

Where the matrix has a bias, ``W k`` stands for its output. The paper has one key in both places; its code, and this, divides by the
bare prompt's. What "value matrix", "bare" and "context" mean here is told in ``locate/base.py``, how ``v*`` is found in
``locate/target_value.py``.

Shape legend: ``c`` contexts, ``d_in`` width of a key, ``d_out`` width of a value; ``W [d_out, d_in]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import EditInputs, EditStep, JointInputs
from raysweep.editors.locate.base import LocateConfig, LocateEditor
from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, LowRank, WeightDelta, add_deltas
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.locate import target_value
    from raysweep.models import ledger, tokens
    from raysweep.models.lm import LanguageModel
    from raysweep.models.sizes import ModelSize
else:
    torch = lazy("torch")
    target_value = lazy("raysweep.editors.locate.target_value")
    ledger, tokens = lazy("raysweep.models.ledger"), lazy("raysweep.models.tokens")


class RomeConfig(LocateConfig):
    """Hyper-parameters of ROME.

    Attributes:
        layers: blocks to edit, in order; the papers use one.
        value: how the value is optimised.
        adjust: precondition the key by the inverse second moments (``mom2_adjustment``).
        inverse: by a Cholesky factor in fp64, or as published by an explicit fp32 inverse (quirk Q10).
        moments: how they are estimated.
        contexts: context templates, in one flat group.
    """

    theirs: ClassVar[Table] = tables.ROME

    layers: Blocks
    value: ValueSpec = ValueSpec()
    adjust: bool = True
    inverse: Literal["cholesky64", "ref_fp32_inverse"] = "cholesky64"
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec()


class Rome(LocateEditor[RomeConfig, None]):
    """One target value and one rank-one change per record and layer; no memory (Meng et al. 2022, eq. 2)."""

    name = "rome"
    version = 2
    config_type = RomeConfig
    is_stateless = True
    paper = "Meng et al. 2022, arXiv 2202.05262"

    @classmethod
    def working_bytes(cls, config: RomeConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what an optimisation keeps: each chosen block has a value of its own, and the lowest one's keeps the most."""
        return cls.value_bytes(config, shape, size, layer=min(config.layers))

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for second moments per layer, if they are used, and, unless given, context templates."""
        return super().artifact_requests(lm) if self.config.adjust else self.context_requests(lm)

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: None, **given: Unpack[EditInputs]
    ) -> EditStep[None]:
        """Write the records one after another, each on the model with the earlier ones in place."""
        deltas: dict[str, Delta] = {}
        stats: dict[str, float] = {}
        for record in batch:
            for layer in self.config.layers:
                name = f"{lm.layout.mlp_out.format(layer)}.weight"
                # Records of a batch and layers see each other's changes, as if edited one after another. The ledger puts the
                # changes so far onto the model's weights inside the block, and the bits of before back after it.
                with ledger.applied(lm, deltas):
                    delta, numbers = self._edit_one(lm, record, layer, given["artifacts"])
                deltas[name] = add_deltas(deltas.get(name), delta)
                stats |= {f"{key}/{layer}": value for key, value in numbers.items()}
        return EditStep(WeightDelta(deltas), state, stats)

    @property
    def group_size(self) -> int:
        """``value.batch`` where there is one layer: further ones start from the model with the first one's change in place."""
        return self.config.value.batch if len(self.config.layers) == 1 else 1

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[None]]:
        """Find the values of all *batches*, of one record each, together."""
        # A second layer starts from the first one's change, so values cannot be found together.
        if self.group_size == 1 or any(len(batch) != 1 for batch in batches):
            return super().edit_many(lm, batches, **given)
        (layer,) = self.config.layers
        name, steps = f"{lm.layout.mlp_out.format(layer)}.weight", []
        tasks = [self._task(lm, record, given["artifacts"]) for (record,) in batches]
        for value in target_value.optimise(
            lm, tasks, layer=layer, site="mlp", spec=self.config.value, graphs=self.graphs()
        ):
            delta, numbers = self._rank_one_change(lm, value, layer, given["artifacts"])
            stats = {f"{key}/{layer}": v for key, v in numbers.items()}
            steps.append(EditStep(WeightDelta({name: delta}), None, stats))
        return steps

    def _edit_one(
        self, lm: LanguageModel, record: EditRecord, layer: int, artifacts: Mapping[str, Artifact]
    ) -> tuple[LowRank, dict[str, float]]:
        """Return the change of one layer that writes *record*, and what to log."""
        task = self._task(lm, record, artifacts)
        # site="mlp": v* is the MLP's output with the shift found, as in the paper; MEMIT's is the whole block's.
        (value,) = target_value.optimise(
            lm, [task], layer=layer, site="mlp", spec=self.config.value, graphs=self.graphs()
        )
        return self._rank_one_change(lm, value, layer, artifacts)

    def _task(self, lm: LanguageModel, record: EditRecord, artifacts: Mapping[str, Artifact]) -> target_value.ValueTask:
        """Return what to optimise for *record*: its prompt in every context, and the ids that are demanded behind it."""
        texts = self.context_templates(artifacts)
        spec, text = self.config.value, tokens.with_added_space(record.target)
        target = tokens.target(lm, record.prompt, text, strip_dummy_piece=spec.strip_dummy_piece)
        return target_value.value_task(
            lm, record.template, record.subject, target, texts, decoded=spec.ref_decoded_rows
        )

    def _rank_one_change(
        self, lm: LanguageModel, value: target_value.Value, layer: int, artifacts: Mapping[str, Artifact]
    ) -> tuple[LowRank, dict[str, float]]:
        """Return ``r uᵀ`` for a target value, and what to log."""
        # Averaged over contexts [c, d_in] first, preconditioned then; all in fp64.
        direction = self.key_direction(value.keys.double().mean(0), layer, artifacts)
        u = direction / direction.norm()
        key, output = self.key_and_output(lm, value, layer)
        # uᵀ k
        gain = key.double() @ u
        # r = (v* − (W k + b)) / uᵀ k, so that (W + r uᵀ) k + b = v*.
        r = ((value.origin + value.shift).double() - output.double()) / gain
        stats = {
            "loss": value.loss,
            "first_loss": value.first_loss,
            "value_steps": float(value.steps),
            "key_gain": float(gain),
            "delta_norm": float(r.norm()),
        }
        # the factors of r uᵀ, [d_out, 1] and [1, d_in]
        return LowRank(r[:, None], u[None, :]), stats

    def key_and_output(self, lm: LanguageModel, value: target_value.Value, layer: int) -> tuple[Tensor, Tensor]:
        """Return the key ``k [d_in]`` that the change maps to ``v*``, and ``W k + b [d_out]``: the bare prompt's.

        A variant of ROME that maps another key overrides this.

        Args:
            lm: the model as it stands, earlier changes of the batch included.
            value: keys and output at the look-up token (the subject's last).
            layer: the edited block.
        """
        return value.keys[0], value.output

    def key_direction(self, mean_key: Tensor, layer: int, artifacts: Mapping[str, Artifact]) -> Tensor:
        """Return ``C⁻¹ k̄ [d_in]`` in fp64; ``k̄`` itself without ``adjust`` (eq. 2).

        Args:
            mean_key: ``k̄ [d_in]``, averaged over contexts, fp64.
            layer: the block whose moments ``C`` to take.
            artifacts: of the trial.

        Raises:
            ArtifactError: ``C`` is not positive definite.
        """
        if not self.config.adjust:
            return mean_key
        if self.config.inverse == "ref_fp32_inverse":
            # The published way, explicit and in fp32: kept to measure what it costs (quirk Q10).
            matrix: Tensor = artifacts[f"moments/{layer}"].tensors["moments"].to(mean_key.device, torch.float32)
            damped = matrix + self.config.moments.damping * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
            solved: Tensor = torch.linalg.inv(damped) @ mean_key.float()
            return solved.double()
        return self.moment_factor(artifacts, layer, mean_key.device).solve(mean_key[:, None])[:, 0]
