"""What a forward pass leaves in memory, from sizes alone: for estimates, never for numerics.

A block's pass makes tensors as wide as the residual stream (``d``) and as its MLP (``m``), one row per token. How many of each
are alive at once is counted, not derived: memory was watched operation by operation on models of several widths, depths and
vocabularies, and ``tests/unit/models/test_activations.py`` watches again. What an allocator holds back is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.models.sizes import ModelSize

ROW = 20  # tokens of prompt and target that a step computes, about
TARGET = 5  # tokens of a target, about


@dataclass(frozen=True, slots=True)
class _Widths:
    """How many tensors of each width one token of one block holds: ``stream`` of width ``d``, ``mlp`` of width ``m``."""

    stream: float
    mlp: float

    def bytes(self, shape: ModelSize, size: int) -> float:
        """Return the bytes of one token in one block."""
        return size * (self.stream * shape.hidden + self.mlp * shape.mlp_width)


# Kept until the backward pass: by the modules of transformers, without and with a gate; and by the blocks that are written out by
# hand for fp32 (raysweep/models/forward/llama_fused.py), which keep more, and the attention's probabilities.
_KEPT, _KEPT_GATED, _KEPT_BY_HAND = _Widths(13, 4), _Widths(13, 3), _Widths(18, 5.4)
# The same where whole rows, of which nothing is shared or left out, go through the modules of transformers.
_KEPT_OF_ROWS, _KEPT_OF_ROWS_GATED = _Widths(6, 4), _Widths(7, 3)
# Alive at once in one block when nothing is kept.
_PASSING = _Widths(11, 3)


def kept_for_gradients(shape: ModelSize, size: int, *, blocks: int, packs: int, tokens: int) -> int:
    """Return the bytes that a step of an optimisation keeps of the blocks that it runs.

    Args:
        shape: of the model.
        size: bytes of a weight.
        blocks: how many are run with gradients.
        packs: sequences that do not see each other: the edits made together.
        tokens: computed tokens of each.
    """
    by_hand = shape.gated and size == 4
    widths = _KEPT_BY_HAND if by_hand else _KEPT_GATED if shape.gated else _KEPT
    block = packs * tokens * widths.bytes(shape, size)
    if by_hand:
        # Probabilities and their logits: each token looks at its own pack's, of which about as many again are reused.
        block += packs * 2 * size * shape.heads * tokens * 2 * tokens
    return round(blocks * block)


def kept_of_rows(shape: ModelSize, size: int, *, blocks: int, tokens: int) -> int:
    """Return the bytes that a step keeps where whole rows go through the model's own modules.

    Args:
        shape: of the model.
        size: bytes of a weight.
        blocks: how many are run with gradients.
        tokens: of all rows, padding included.
    """
    widths = _KEPT_OF_ROWS_GATED if shape.gated else _KEPT_OF_ROWS
    return round(blocks * tokens * widths.bytes(shape, size))


def of_the_head(shape: ModelSize, size: int, *, predictions: int) -> int:
    """Return the bytes of logits and log-probabilities at *predictions* positions: one table in fp32, five from half precision."""
    return predictions * shape.vocab * 4 * (1 if size == 4 else 5)


def passing(shape: ModelSize, size: int, *, tokens: int) -> int:
    """Return the bytes of a pass over *tokens* tokens of which nothing is kept."""
    return round(tokens * _PASSING.bytes(shape, size))
