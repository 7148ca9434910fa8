"""MEMIT: spread a change of the residual stream over several layers (Meng et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raysweep.config.schema import Positive
from raysweep.editors.base import (
    ArtifactRequest,
    ContextSpec,
    Delta,
    EditorConfig,
    EditStep,
    LowRank,
    MomentSpec,
    ValueSpec,
    WeightDelta,
)
from raysweep.lazy import lazy
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors import contexts, keys, leastsq, moments, values
    from raysweep.models import hooks, partial, patching, tokens
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    contexts, keys, leastsq, moments, values = (
        lazy(f"raysweep.editors.{n}") for n in ("contexts", "keys", "leastsq", "moments", "values")
    )
    hooks, partial, patching, tokens = (
        lazy(f"raysweep.models.{n}") for n in ("hooks", "partial", "patching", "tokens")
    )


class MemitConfig(EditorConfig):
    """Hyper-parameters of MEMIT.

    Attributes:
        layers: blocks to edit, rising; the target hidden state is found at the last one.
        value: how it is optimised.
        moment_weight: factor of the second moments (``mom2_update_weight``).
        moments: how they are estimated.
        contexts: context templates; the bare prompt weighs one half, the others share the other half.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    value: ValueSpec = ValueSpec()
    moment_weight: Positive = 15_000.0
    moments: MomentSpec = MomentSpec()
    contexts: ContextSpec = ContextSpec(lengths=((10, 5),))


class Memit:
    """``ΔW_l = ρ [(w C_l + K Kᵀ)⁻¹ K]ᵀ``, ``ρ = (z − h) / layers left`` (MEMIT eq. 14–20; editors.md §7)."""

    name: ClassVar[str] = "memit"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]] = MemitConfig
    patch_kind: ClassVar[Literal["weights", "modules"]] = "weights"
    paper: ClassVar[str] = "Meng et al. 2023, arXiv 2210.07229"

    def __init__(self, config: MemitConfig) -> None:
        self.config = config
        self._factors: dict[str, leastsq.Factor] = {}  # memo by artifact digest: a pure function's values

    def edited(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrices of the chosen layers."""
        return tuple(f"{lm.layout.mlp_out.format(layer)}.weight" for layer in self.config.layers)

    def needs(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for second moments per layer and, unless given, context templates."""
        wanted = {
            f"moments/{layer}": moments.request(lm, lm.layout.mlp_out, layer, self.config.moments)
            for layer in self.config.layers
        }
        if self.config.contexts.templates is None:
            wanted["contexts"] = contexts.request(lm, self.config.contexts)
        return wanted

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> None:
        """Remember nothing: MEMIT has no memory."""

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
        texts = contexts.templates(self.config.contexts, artifacts.get("contexts"))
        tasks = [values.task(lm, r.template, r.subject, self.target_ids(lm, r), texts) for r in batch]
        found = values.optimise(lm, tasks, layer=self.config.layers[-1], site="block", spec=self.config.value)
        goals = torch.stack([v.origin + v.shift for v in found]).double()
        deltas, residuals = self._spread(lm, batch, texts, goals, artifacts)
        stats = {
            "loss": sum(v.loss for v in found) / len(found),
            "first_loss": sum(v.first_loss for v in found) / len(found),
            "value_steps": sum(v.steps for v in found) / len(found),
        }
        stats |= {f"residual/{layer}": r for layer, r in zip(self.config.layers, residuals, strict=True)}
        return EditStep(WeightDelta(deltas), state, stats)

    def target_ids(self, lm: LanguageModel, record: EditRecord) -> list[int]:
        """Return the demanded ids: a space before the target unless it has one; a leading BOS or unk dropped (quirk Q48)."""
        ids = tokens.bare(lm, tokens.spaced(record.target))
        return ids[1:] if ids[0] in (lm.tokenizer.bos_token_id, lm.tokenizer.unk_token_id) and len(ids) > 1 else ids

    def _spread(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        texts: Sequence[str],
        goals: Tensor,
        artifacts: Mapping[str, Artifact],
    ) -> tuple[dict[str, Delta], list[float]]:
        """Go up the layers; at each, recompute keys and the current hidden state with the lower updates in place.

        A layer's update does not move its own input, so each pass starts at the layer just updated.
        """
        layers, top = self.config.layers, self.config.layers[-1]
        rows, lookups = zip(*(keys.context_rows(lm, record, texts) for record in batch), strict=True)
        flat = [i for some in lookups for i in some]
        ids, mask = tokens.pad([row for some in rows for row in some], lm.device)
        block, value = lm.layout.block, lm.layout.mlp_out
        with torch.no_grad(), hooks.capture(lm, [(block.format(layers[0]), "input")]) as seen:
            partial.run(lm, ids=ids, mask=mask, last=layers[0])
            states = seen[block.format(layers[0]), "input"]
        deltas: dict[str, Delta] = {}
        residuals = []
        start = layers[0]
        for i, layer in enumerate(layers):
            wanted: list[tuple[str, hooks.Side]] = [(value.format(layer), "input"), (block.format(top), "output")]
            wanted.append((block.format(layer), "input"))
            with torch.no_grad(), patching.applied(lm, deltas), hooks.capture(lm, wanted) as seen:
                partial.run(lm, states=states, mask=mask, first=start, last=top)
            n, c = len(batch), len(texts)
            every = keys.at(seen[value.format(layer), "input"], flat).double().view(n, c, -1)
            columns = torch.stack([keys.grouped_mean(k) for k in every], dim=1)
            now = keys.at(seen[block.format(top), "output"], flat).double().view(n, c, -1)[:, 0]
            rho = (goals - now) / (len(layers) - i)
            residuals.append(float((goals - now).norm(dim=1).mean()))
            moment = self._factor(artifacts[f"moments/{layer}"], columns.device)
            solved = leastsq.spread(moment, self.config.moment_weight, columns)
            deltas[f"{value.format(layer)}.weight"] = LowRank(rho.T, solved.T)
            states, start = seen[block.format(layer), "input"], layer
        return deltas, residuals

    def _factor(self, artifact: Artifact, device: torch.device) -> leastsq.Factor:
        if artifact.digest not in self._factors:
            matrix = artifact.tensors["moments"].to(device)
            self._factors[artifact.digest] = leastsq.factor(matrix, damping=self.config.moments.damping)
        return self._factors[artifact.digest]
