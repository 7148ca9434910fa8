"""WISE: side memories of one linear map, trained on random masks, merged, and chosen by activation (editors.md §11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Block, Count, NonNegative, Positive, Spec
from raysweep.editors.base import BaseEditor, EditorConfig, EditStep, RecordCheck
from raysweep.editors.specs import ContextSpec
from raysweep.errors import RecordError
from raysweep.lazy import lazy
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
else:
    torch = lazy("torch")
    contexts = lazy("raysweep.editors.locate.contexts")
    merging = lazy("raysweep.editors.wise.merging")
    training = lazy("raysweep.editors.wise.training")
    side_memory, replacement = lazy("raysweep.models.modules.side_memory"), lazy("raysweep.models.modules.replacement")

Share = Annotated[float, Field(gt=0, le=1)]


class MarginSpec(Spec):
    """Margins of the activation loss.

    Attributes:
        alpha (distance of activations): unrelated text should move the activations by less than this.
        beta (distance of activations): an edit should move them by more than this.
        gamma (distance of activations): an edit should move them by this much more than unrelated text.
    """

    alpha: NonNegative = 5.0
    beta: NonNegative = 20.0
    gamma: NonNegative = 10.0


class MergeSpec(Spec):
    """How side memories become one.

    Attributes:
        algorithm: see editors.md §11.5.
        density: share of each change's entries that survives.
        weight: sum of the memories' factors.
        published: ``linear`` and ``slerp`` use only the first memory (quirk Q32).
    """

    algorithm: Literal["ties", "magnitude_norm", "magnitude", "sign", "dare_ties", "dare_linear", "linear", "slerp"] = (
        "ties"
    )
    density: Share = 0.53
    weight: Positive = 1.0
    published: bool = False


class WiseConfig(EditorConfig):
    """Hyper-parameters of WISE.

    Attributes:
        layer: the block that gets side memories.
        matrix: its first linear map (``in``: c_fc, gate_proj) or its value matrix (``out``).
        steps (updates): SGD updates per edit, at most.
        lr: of SGD, fresh for each edit.
        weight_decay: of SGD.
        mask_weight_decay: decay only the entries that are trained (off = published; quirk Q29).
        norm_constraint: each entry stays within ± this of the original; None = free.
        mask_ratio: share of entries that are trained, drawn anew for each side memory.
        margins: of the activation loss.
        act_ratio: a memory serves what moves the activations by at least this share of its own edits' least movement.
        shard (edits): edits per side memory.
        merge_every (edits): merge after this many edits.
        merge: how.
        retrieve: keep several memories and choose one per row; off = one merged weight.
        replay: after the first merger, keep earlier edits out of the present memory, and the present ones in.
        stop_loss (nats): stop below this loss …
        stop_change (nats): … once it changes by less than this.
        contexts: templates put before each edit; ``lengths`` counts new tokens.
        unrelated: negative text for records that bring none; empty = such a record is an error.
        ref_labels: the answer begins at the longest prompt's end, counted from the left of the padded row, as published
            (quirk Q28). Off: each row's own answer.
        ref_padding: pad on the left, without position ids, and count pads in activation distances, as published (quirk Q31).
    """

    layer: Block
    matrix: Literal["in", "out"] = "out"
    steps: Count = 70
    lr: Positive = 1.0
    weight_decay: NonNegative = 1e-5
    mask_weight_decay: bool = False
    norm_constraint: Positive | None = 1.0
    mask_ratio: Share = 0.2
    margins: MarginSpec = MarginSpec()
    act_ratio: Positive = 0.88
    shard: Count = 500
    merge_every: Count = 1000
    merge: MergeSpec = MergeSpec()
    retrieve: bool = True
    replay: bool = False
    stop_loss: NonNegative = 0.02
    stop_change: NonNegative = 1e-4
    contexts: ContextSpec = ContextSpec(lengths=((5, 5), (10, 5)))
    unrelated: str = ""
    ref_labels: bool = False
    ref_padding: bool = False

    @model_validator(mode="after")
    def _mergers_fall_on_shards(self) -> WiseConfig:
        if self.merge_every % self.shard:
            raise ValueError(f"merge_every = {self.merge_every} must be a multiple of shard = {self.shard}")
        if self.ref_labels and not self.ref_padding:
            raise ValueError("ref_labels counts from the left of left-padded rows: set ref_padding too")
        return self


class Wise(BaseEditor[WiseConfig, dict[str, Any]]):
    """Trains a copy of one weight on each record and routes each question to the frozen weight or to a copy.

    State: ``side`` (the copy being written), ``memories`` (finished copies), ``merged`` (merge mode), all ``[d_out, d_in]`` in
    fp32; ``mask``; ``act`` and ``acts`` (least activation of their edits); counters; past edits if they are replayed.
    """

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

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing: no weight changes."""
        return ()

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for context templates unless they are given."""
        if self.config.contexts.templates is not None:
            return {}
        return {"contexts": contexts.request_continuations(lm, self.config.contexts)}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """Return one untouched side memory."""
        frozen = self._frozen(lm)
        return {
            "side": frozen.clone(),
            "mask": torch.ones_like(frozen, dtype=torch.bool),
            "memories": [],
            "merged": None,
            "act": training.FAR,
            "acts": [],
            "edits": 0,
            "mergers": 0,
            "seed": 0,
            "group": [],
            "groups": [],
            "cursors": [],
        }

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: dict[str, Any],
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[dict[str, Any]]:
        """Write the records one after the other (the method knows no batches).

        Raises:
            RecordError: a record brings no unrelated text and the configuration has none either.
        """
        templates = contexts.templates(self.config.contexts, artifacts.get("contexts"))
        stats: dict[str, float] = {}
        for record in batch:
            error = self.record_check(self.config)(record)
            if error is not None:
                raise error
            unrelated = record.unrelated or self.config.unrelated
            state, stats = self._write(lm, record, unrelated, templates, state, rng)
        return EditStep(self.module_patch(lm, state), state, stats)

    def module_patch(self, lm: LanguageModel, state: Mapping[str, Any]) -> ModulePatch:
        """Return the patch that *state* stands for."""
        bare, act, ratio = (
            replacement.unwrap(lm.part(self._name(lm))),
            side_memory.mlp_activation(lm),
            self.config.act_ratio,
        )
        if self.config.retrieve:
            thresholds = [ratio * a for a in (state["act"], *state["acts"])]
            chosen = (state["side"], *state["memories"])
            module = side_memory.SideMemory(bare, act, lambda: chosen, thresholds)
        else:
            thresholds = [ratio * state["act"]] * 2
            module = side_memory.SideMemory(
                bare, act, lambda: (self._final(lm, state), state["side"]), thresholds, retrieve=False
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
        state: Mapping[str, Any],
        rng: torch.Generator,
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Train the side memory on *record*, then store and merge memories if it is time."""
        config, frozen = self.config, self._frozen(lm)
        new = {**state, "memories": [*state["memories"]], "acts": [*state["acts"]], "edits": state["edits"] + 1}
        if state["edits"] % config.shard == 0:
            new["mask"] = self.draw_mask(tuple(frozen.shape), rng).to(frozen.device)
        if merging.is_random(config.merge.algorithm):
            new["seed"] = int(torch.randint(2**31, (1,), generator=rng))
        replay: Any = None
        if config.replay:
            new["group"] = [*state["group"], [record.prompt, record.target]]
            new["cursors"] = [*state["cursors"]]
            if config.retrieve and state["mergers"]:
                replay = training.Replay(new["groups"], new["cursors"], new["group"], rng)
        job = training.Job(lm, self._name(lm), config, tuple(templates), frozen, new["mask"])
        new["side"], found = job.train(record, unrelated, new["side"], replay)
        new["act"] = min(state["act"], found["act"])
        if new["edits"] % config.shard == 0:
            self._store(new, frozen)
        if new["edits"] % config.merge_every == 0:
            self._merge(lm, new)
        return new, {**found, "memories": float(len(new["memories"]))}

    def _store(self, state: dict[str, Any], frozen: Tensor) -> None:
        """Put the side memory away and begin another; merge mode goes on with the same activation statistic."""
        state["memories"].append(state["side"])
        state["side"] = frozen.clone()
        if self.config.retrieve:
            state["acts"].append(state["act"])
            state["act"] = training.FAR

    def _merge(self, lm: LanguageModel, state: dict[str, Any]) -> None:
        """Merge the last memories into one (retrieve), or all of them into the layer (merge mode)."""
        if self.config.retrieve:
            n = self.config.merge_every // self.config.shard
            merged = self._mixed(lm, state["memories"][-n:], [self.config.merge.weight / n] * n, state["seed"])
            state["memories"] = [*state["memories"][:-n], merged]
            state["acts"] = [*state["acts"][:-n], min(state["acts"][-n:])]
        else:
            state["merged"], state["memories"] = self._into_layer(lm, state, state["memories"]), []
        state["mergers"] += 1
        if self.config.replay:
            state["groups"], state["group"] = [*state["groups"], state["group"]], []
            state["cursors"] = [*state["cursors"], 0]

    def _final(self, lm: LanguageModel, state: Mapping[str, Any]) -> Tensor:
        """Return merge mode's weight as it is asked: what is not merged yet is merged for the occasion; nothing is kept."""
        frozen = self._frozen(lm)
        pending = [*state["memories"]]
        if not torch.equal(state["side"], frozen):
            pending.append(state["side"])
        if pending and state["edits"] >= self.config.shard:
            return self._into_layer(lm, state, pending)
        merged: Tensor | None = state["merged"]
        return frozen if merged is None else merged

    def _into_layer(self, lm: LanguageModel, state: Mapping[str, Any], memories: Sequence[Tensor]) -> Tensor:
        """Merge *memories* with what was merged before, which keeps 0.6 of the say."""
        n = len(memories)
        if state["merged"] is None:
            return self._mixed(lm, memories, [self.config.merge.weight / n] * n, state["seed"])
        return self._mixed(lm, [*memories, state["merged"]], [0.4 / n] * n + [0.6], state["seed"])

    def _mixed(self, lm: LanguageModel, memories: Sequence[Tensor], shares: Sequence[float], seed: int) -> Tensor:
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
