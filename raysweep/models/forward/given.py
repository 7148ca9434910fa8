"""What blocks are to be run on: the one set of arguments of every way to run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

PastKeysValues = tuple[Tensor, Tensor]
"""Keys and values of reused tokens, ``[B, k, P, e]`` each: ``B`` packs, ``k`` key heads, ``P`` tokens, ``e`` entries of a head."""


@dataclass(frozen=True, slots=True)
class Given:
    """Some blocks, and the tokens that they compute again and again.

    Shape legend: ``B`` packs, ``S`` slots of a pack, ``P`` reused tokens, ``M = P + S``.

    Attributes:
        first: the first block.
        positions: ``[B, S]`` of the computed tokens.
        mask: ``[B, 1, S, M]``, added to the attention scores; the ``P`` reused tokens come first.
        past: keys and values of the reused tokens, one entry per block.
        real: ``[B, S]`` False at padding, which is then left out, but for what makes products go faster; None: nothing is.
        end: the block to stop before; None: run to the last one and the final norm.
    """

    first: int
    positions: Tensor
    mask: Tensor
    past: Sequence[PastKeysValues | None]
    real: Tensor | None = None
    end: int | None = None

    def until(self, n_blocks: int) -> int:
        """Return the block to stop before, of so many."""
        return n_blocks if self.end is None else self.end
