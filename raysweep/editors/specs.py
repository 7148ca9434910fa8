"""Hyper-parameters that several editors share: context templates, second moments, and the optimisation of a target value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysweep.config.schema import Count, NonNegative, Positive, Spec, TextSpec


class ContextSpec(Spec):
    """Which context templates to put before a prompt (docs/methods/rome.md).

    Attributes:
        lengths (tokens, texts): pairs (tokens per text, number of texts) to sample; ROME uses ``[[5, 10], [10,
            10]]``, MEMIT ``[[10, 5]]``.
        seed: of the sampling.
        templates: use these instead of sampling (``{}`` is always first).
    """

    lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    seed: int = 0
    templates: tuple[str, ...] | None = None


class MomentSpec(Spec):
    """How to estimate second moments of keys (docs/methods/rome.md).

    Attributes:
        text: where the tokens come from, and how many.
        width (tokens): longest row in tokens; longer texts are cut.
        skip (tokens): leading tokens of each row to leave out (1 for models whose position 0 is an attention sink; 0 = published).
        damping (mean diagonal of C): added to the diagonal, in units of its mean, before factoring (0 = published).
        ref_fp32: add the products up in fp32, as published (quirk Q10).
    """

    text: TextSpec = TextSpec()
    width: Count = 512
    skip: Annotated[int, Field(ge=0)] = 0
    damping: NonNegative = 0.0
    ref_fp32: bool = False


class ValueSpec(Spec):
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
