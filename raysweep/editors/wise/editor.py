"""WISE: side memories of one linear map, trained on random masks, merged, and chosen by activation (docs/methods/wise.md).

Beside the frozen map ``W_0`` there is a trained copy ``W′`` (the *side memory*). After ``shard`` edits it is put away and another
one begins; after ``merge_every`` edits the last ones are merged into one (Wang et al. 2024, eq. 8). A question is
answered by the memory ``M`` whose activations it moves most, if that is enough (eq. 6)::

    d(M) = mean over the row's tokens of ‖φ(W_M x) − φ(W_0 x)‖₂            use M if d(M) ≥ act_ratio · (least d of M's own edits)

Training one record is ``training.py``, merging ``merging.py``, routing ``raysweep/models/modules/side_memory.py``.

Shape legend: all weights ``[d_out, d_in]``, fp32, logical orientation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from raysweep.artifacts import ArtifactRequest
from raysweep.editors.base import BaseEditor, EditInputs, EditStep, RecordCheck
from raysweep.editors.wise.config import WiseConfig
from raysweep.errors import RecordError
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.patches import ModulePatch
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.locate import contexts
    from raysweep.editors.wise import merging, training
    from raysweep.models.lm import LanguageModel
    from raysweep.models.modules import replacement, side_memory
    from raysweep.models.sizes import ModelSize
else:
    torch, contexts = lazy("torch"), lazy("raysweep.editors.locate.contexts")
    merging, training = lazy("raysweep.editors.wise.merging"), lazy("raysweep.editors.wise.training")
    side_memory, replacement = lazy("raysweep.models.modules.side_memory"), lazy("raysweep.models.modules.replacement")


class WiseState(TypedDict):
    """State of :class:`Wise`.

    Attributes:
        side: the copy being written.
        mask: its entries that are trained, bool.
        memories: finished copies.
        merged: what was merged into the layer so far (merge mode); None = nothing.
        act: the least activation distance among the edits of ``side``; ``acts``, of each of ``memories``.
        edits, mergers: how many so far.
        seed: of the last random merger.
        group: ``[prompt, target]`` of the edits since the last merger, ``groups`` those before, by merger; kept for replay only.
        cursors: which edit of each of ``groups`` is replayed next.
    """

    side: Tensor
    mask: Tensor
    memories: list[Tensor]
    merged: Tensor | None
    act: float
    acts: list[float]
    edits: int
    mergers: int
    seed: int
    group: list[list[str]]
    groups: list[list[list[str]]]
    cursors: list[int]


class Wise(BaseEditor[WiseConfig, WiseState]):
    """Trains a copy of one weight on each record and routes each question to the frozen weight or to a copy."""

    name = "wise"
    version = 2
    config_type = WiseConfig
    patch_kind = "modules"
    paper = "Wang et al. 2024, arXiv 2405.14768"
    artifact_kinds = ("contexts",)

    @classmethod
    def record_check(cls, config: WiseConfig) -> RecordCheck:
        """Refuse records without a text that must stay as it is."""

        def check(record: EditRecord) -> RecordError | None:
            if (record.unrelated or config.unrelated).strip():
                return None
            return RecordError(
                f"{record.id}: no unrelated text to keep out of the side memory",
                hint="give records a locality question, or set the editor's 'unrelated' to a sentence",
            )

        return check

    @classmethod
    def working_bytes(cls, config: WiseConfig, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what training takes: copies of the map, and the blocks above for the padded rows of all contexts."""
        rows, tokens = config.contexts.count, activations.ROW + config.contexts.longest
        blocks = max(shape.layers - 1 - config.layer, 0)
        if config.matrix == "out":
            kept = activations.kept_for_gradients(shape, size, blocks=blocks, packs=rows, tokens=tokens)
        else:
            # Its own block is run again, and with a module in another's place by the model's own modules.
            kept = activations.kept_of_rows(shape, size, blocks=blocks + 1, tokens=rows * tokens)
        head = activations.of_the_head(shape, size, predictions=rows * activations.TARGET)
        # In fp32: the memory before and after, the gradient, that of trained entries, the decay, and their sum.
        return {"trained copies": 6 * 4 * shape.hidden * shape.mlp_width, "activations": kept + head}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for context templates unless they are given."""
        if self.config.contexts.templates is not None:
            return {}
        return {"contexts": contexts.request_continuations(lm, self.config.contexts)}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> WiseState:
        """Return one untouched side memory."""
        frozen = self._frozen(lm)
        return {
            "side": frozen.clone(),
            "mask": torch.ones_like(frozen, dtype=torch.bool),
            "memories": [],
            "merged": None,
            "act": training.NO_DISTANCE,
            "acts": [],
            "edits": 0,
            "mergers": 0,
            "seed": 0,
            "group": [],
            "groups": [],
            "cursors": [],
        }

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: WiseState, **given: Unpack[EditInputs]
    ) -> EditStep[WiseState]:
        """Write the records one after the other (the method knows no batches).

        Raises:
            RecordError: a record brings no unrelated text and the configuration has none either.
        """
        templates = contexts.templates(self.config.contexts, given["artifacts"].get("contexts"))
        stats: dict[str, float] = {}
        for record in batch:
            error = self.record_check(self.config)(record)
            if error is not None:
                raise error
            unrelated = record.unrelated or self.config.unrelated
            state, stats = self._write(lm, record, unrelated, templates, state, given["rng"])
        return EditStep(self.module_patch(lm, state), state, stats)

    def module_patch(self, lm: LanguageModel, state: WiseState) -> ModulePatch:
        """Return the patch that *state* stands for."""
        bare, act, ratio = (
            replacement.unwrap(lm.part(self._name(lm))),
            side_memory.mlp_activation(lm),
            self.config.act_ratio,
        )
        if self.config.retrieve:
            # The memory being written is asked first, then the stored ones in order.
            thresholds = [ratio * a for a in (state["act"], *state["acts"])]
            chosen = (state["side"], *state["memories"])
            module = side_memory.SideMemory(bare, act, lambda: chosen, thresholds)
        else:
            # Merge mode has two weights, the merged one and the one being written, and one threshold.
            thresholds = [ratio * state["act"]] * 2
            module = side_memory.SideMemory(
                bare, act, lambda: (self.merge_mode_weight(lm, state), state["side"]), thresholds, retrieve=False
            )
        return ModulePatch({self._name(lm): module})

    def draw_mask(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw which entries of the next side memory are trained (logical orientation)."""
        return torch.rand(shape, generator=rng) < self.config.mask_ratio

    def _name(self, lm: LanguageModel) -> str:
        return lm.layout.mlp_matrix(self.config.layer, self.config.matrix)

    def _frozen(self, lm: LanguageModel) -> Tensor:
        return replacement.weight_and_bias(replacement.unwrap(lm.part(self._name(lm))))[0].float().contiguous()

    def _write(
        self,
        lm: LanguageModel,
        record: EditRecord,
        unrelated: str,
        templates: Sequence[str],
        state: WiseState,
        rng: torch.Generator,
    ) -> tuple[WiseState, dict[str, float]]:
        """Train the side memory on *record*, then store and merge memories if it is time."""
        config, frozen = self.config, self._frozen(lm)
        new: WiseState = {
            **state,
            "memories": [*state["memories"]],
            "acts": [*state["acts"]],
            "edits": state["edits"] + 1,
        }
        # A new memory begins: it trains other entries than the last one.
        if state["edits"] % config.shard == 0:
            new["mask"] = self.draw_mask(tuple(frozen.shape), rng).to(frozen.device)
        if merging.is_random(config.merge.algorithm):
            # Merging may happen later, when asked; its randomness is fixed now, by this edit's generator.
            new["seed"] = int(torch.randint(2**31, (1,), generator=rng))
        replay: training.Replay | None = None
        if config.replay:
            new["group"] = [*state["group"], [record.prompt, record.target]]
            new["cursors"] = [*state["cursors"]]
            if config.retrieve and state["mergers"]:
                # The new lists, since taking turns moves the cursors.
                replay = training.Replay(new["groups"], new["cursors"], new["group"], rng)
        side_training = training.SideMemoryTraining(lm, self._name(lm), config, tuple(templates), frozen, new["mask"])
        new["side"], trained = side_training.train(record, unrelated, new["side"], replay)
        new["act"] = min(state["act"], trained["act"])
        if new["edits"] % config.shard == 0:
            self._store(new, frozen)
        if new["edits"] % config.merge_every == 0:
            self._merge(lm, new)
        return new, {**trained, "memories": float(len(new["memories"]))}

    def _store(self, state: WiseState, frozen: Tensor) -> None:
        """Put the side memory away and begin another; merge mode goes on with the same activation statistic."""
        state["memories"].append(state["side"])
        state["side"] = frozen.clone()
        if self.config.retrieve:
            state["acts"].append(state["act"])
            state["act"] = training.NO_DISTANCE

    def _merge(self, lm: LanguageModel, state: WiseState) -> None:
        """Merge the last memories into one (retrieve), or all of them into the layer (merge mode)."""
        if self.config.retrieve:
            n = self.config.merge_every // self.config.shard
            merged = self._merged(lm, state["memories"][-n:], [self.config.merge.weight / n] * n, state["seed"])
            state["memories"] = [*state["memories"][:-n], merged]
            # The merged memory must serve every edit of its parts: the least of their distances.
            state["acts"] = [*state["acts"][:-n], min(state["acts"][-n:])]
        else:
            state["merged"], state["memories"] = self._into_layer(lm, state, state["memories"]), []
        state["mergers"] += 1
        if self.config.replay:
            state["groups"], state["group"] = [*state["groups"], state["group"]], []
            state["cursors"] = [*state["cursors"], 0]

    def merge_mode_weight(self, lm: LanguageModel, state: WiseState) -> Tensor:
        """Return the weight that answers in merge mode: what is not merged yet is merged for this call only."""
        frozen = self._frozen(lm)
        pending = [*state["memories"]]
        # An untouched copy is no memory yet.
        if not torch.equal(state["side"], frozen):
            pending.append(state["side"])
        if pending and state["edits"] >= self.config.shard:
            return self._into_layer(lm, state, pending)
        return frozen if state["merged"] is None else state["merged"]

    def _into_layer(self, lm: LanguageModel, state: WiseState, memories: Sequence[Tensor]) -> Tensor:
        """Merge *memories* with what was merged before, which keeps 0.6 of the say."""
        n = len(memories)
        if state["merged"] is None:
            return self._merged(lm, memories, [self.config.merge.weight / n] * n, state["seed"])
        # The published shares: 0.6 for what is there, 0.4 for all new ones together.
        return self._merged(lm, [*memories, state["merged"]], [0.4 / n] * n + [0.6], state["seed"])

    def _merged(self, lm: LanguageModel, memories: Sequence[Tensor], shares: Sequence[float], seed: int) -> Tensor:
        spec = self.config.merge
        return merging.merge(
            self._frozen(lm),
            memories,
            shares,
            algorithm=spec.algorithm,
            density=spec.density,
            rng=torch.Generator().manual_seed(seed),
            first_only=spec.published,
        )
