"""Hyper-parameters that several editors share: context templates, second moments, and the optimisation of a target value."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from raysweep.config.schema import Count, GrownSpec, NonNegative, Positive
from raysweep.config.shared_specs import ContextSpec as ContextSpec
from raysweep.config.shared_specs import FileSpec as FileSpec
from raysweep.config.shared_specs import MomentSpec as MomentSpec


class ValueSpec(GrownSpec):
    """How the target value is optimised (docs/methods/rome.md).

    Attributes:
        steps (passes): loop length; at most ``steps - 1`` updates are made (the last pass only measures).
        lr: of Adam.
        weight_decay: factor of ``‖δ‖ / ‖v₀‖²``.
        clamp (norm of v₀): ``‖δ‖ ≤ clamp · ‖v₀‖`` after each update.
        kl: factor of ``KL(P_δ ‖ P_0)`` at the subject in ``"{subject} is a"``.
        batch (records): records optimised at once: those of a batch (MEMIT, AlphaEdit), or of that many steps where
            edits do not see each other (SimIE in ``init`` mode with ``closed64``). The same numbers but for rounding.
        stop_on_argmax: also stop as soon as the target is the arg-max in every context (ENCORE's MPES; off = published).
        strip_dummy_piece: do not demand the stand-alone space piece that SentencePiece puts before a target encoded by itself
            (quirk Q6; off = published).
        ref_decoded_rows: the row behind a prompt is the decoded text of all target ids but the last, as published, which breaks
            characters of several tokens (quirk Q50). Off: rows are cut from the ids of prompt and target.
        captured: on a GPU, record a step once for all records of about the same length and replay it, which spares the host
            the asking for each operation. The same numbers but for rounding; one record at a time; not yet measured on a card.
    """

    steps: Count = 20
    lr: Positive = 0.5
    weight_decay: NonNegative = 0.5
    clamp: Positive = 4.0
    kl: NonNegative = 0.0625
    batch: Count = 1
    stop_on_argmax: bool = False
    strip_dummy_piece: bool = False
    ref_decoded_rows: bool = False
    captured: bool = False

    added: ClassVar[frozenset[str]] = frozenset({"captured"})

    @model_validator(mode="after")
    def _captured_alone(self) -> Self:
        if self.captured and self.batch > 1:
            raise ValueError("captured steps are those of one record: leave batch at 1, or captured out")
        return self
