"""Hyper-parameters of WISE (docs/methods/wise.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from raysweep.config.schema import Block, Count, NonNegative, Positive, Spec
from raysweep.config.theirs import tables
from raysweep.config.theirs.rules import Table
from raysweep.editors.base import EditorConfig
from raysweep.editors.specs import ContextSpec

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
        algorithm: see docs/methods/wise.md.
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

    theirs: ClassVar[Table] = tables.WISE

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
        # A merger takes whole memories, so it must fall on the end of one.
        if self.merge_every % self.shard:
            raise ValueError(f"merge_every = {self.merge_every} must be a multiple of shard = {self.shard}")
        if self.ref_labels and not self.ref_padding:
            raise ValueError("ref_labels counts from the left of left-padded rows: set ref_padding too")
        return self
