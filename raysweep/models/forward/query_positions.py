"""Which tokens a block computes and where they lie: a grid of packs for attention, a list of tokens for everything else.

Matrix products want the tokens of all packs as one list without padding, ``[width, n]``. Attention wants them by pack: a grid of
``B`` packs and ``A`` slots each, some of which are empty where a pack is shorter than others. :class:`TokenSlots` knows both
orders, :class:`QueryPositions` moves states between them, and says which of the tokens that enter a block *ask* there, that is, are
queries: in the last block only those whose final states somebody reads.

Shape legend: ``B`` packs, ``A`` slots of a pack that ask, ``M`` columns of keys, ``n ≤ B·A`` tokens, ``h`` query heads,
``e`` width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raysweep.models.forward.llama_parts import RotaryTable


class TokenSlots(NamedTuple):
    """Where tokens lie in a grid that has empty slots.

    Attributes:
        slot_of_token: ``[n]`` the slot of each token, an index into the flat grid.
        token_in_slot: ``[B·A]`` which token lies in each slot; in an empty one, any.
        occupied: ``[B·A]`` 1 where a token lies, else 0, in the states' dtype.
    """

    slot_of_token: Tensor
    token_in_slot: Tensor
    occupied: Tensor

    @classmethod
    def from_flags(cls, flags: Tensor, dtype: torch.dtype) -> TokenSlots | None:
        """Number the tokens at ``flags [B·A]``, in order; None if no slot is empty, for then tokens and slots are the same list."""
        if bool(flags.all()):
            return None
        # the running count of tokens is the number of the latest one; before the first it would be -1
        return cls(flags.nonzero()[:, 0], (flags.cumsum(0) - 1).clamp_(min=0), flags.to(dtype))


class PackSlice(NamedTuple):
    """One pack among the lists of tokens, for attention without padding.

    Attributes:
        queries: its tokens in the list of those that ask.
        keys: its tokens in the list of those that are looked at.
        mask: ``[queries, keys]``, added to the attention scores.
    """

    queries: slice
    keys: slice
    mask: Tensor


@dataclass(frozen=True, slots=True)
class QueryPositions:
    """The tokens that ask in a block. After its keys and values only these are computed, without the padding of packs.

    Attributes:
        rotary: the angles of their positions, ``[e/2, n]``.
        scaled_rotary: the same times ``e^-½``: queries that are turned by it give scores that need no division.
        mask: ``[1 or B·h, A, M]``, added to the attention scores.
        grid: ``(B, A)``.
        slots: where the tokens lie in the grid; None: one in every slot, in order.
        selected: ``[n]`` which of the tokens that enter the block they are; None: all, in order.
        packs: for attention pack by pack; empty: all packs at once.
    """

    rotary: RotaryTable
    scaled_rotary: RotaryTable
    mask: Tensor
    grid: tuple[int, int]
    slots: TokenSlots | None = None
    selected: Tensor | None = None
    packs: tuple[PackSlice, ...] = ()

    def occupied(self) -> Tensor:
        """Return ``[B, A]``, True where a token lies."""
        if self.slots is None:
            return torch.ones(self.grid, device=self.mask.device).bool()
        return self.slots.occupied.view(self.grid).bool()

    def pack_slices(self, key_slots: Tensor) -> tuple[PackSlice, ...]:
        """Describe each pack that asks something by its slices of the lists of tokens.

        Args:
            key_slots: ``[B, M]`` True where a token lies that may be looked at.
        """
        # running offsets into the two lists of tokens
        packs, query, key = [], 0, 0
        # 1, or one per head: all heads have the same mask
        rows_per_pack = len(self.mask) // self.grid[0]
        for i, (asks, looked_at) in enumerate(zip(self.occupied(), key_slots, strict=True)):
            n_queries, n_keys = int(asks.sum()), int(looked_at.sum())
            if n_queries:
                mask = self.mask[i * rows_per_pack][asks][:, looked_at]
                packs.append(PackSlice(slice(query, query + n_queries), slice(key, key + n_keys), mask))
            query, key = query + n_queries, key + n_keys
        return tuple(packs)

    def select(self, x: Tensor) -> Tensor:
        """Pick the tokens that ask among those that enter: ``[d, tokens that enter]`` → ``[d, n]``."""
        return x if self.selected is None else x.index_select(1, self.selected)

    def select_backward(self, grad: Tensor, entering: int) -> Tensor:
        """Return the gradient of the *entering* tokens given that of :meth:`select`: zero at those that don't ask."""
        if self.selected is None:
            return grad
        return grad.new_zeros(len(grad), entering).index_copy_(1, self.selected, grad)

    def to_heads(self, x: Tensor, e: int, *, zero_empty: bool = False) -> Tensor:
        """Lay a list of tokens ``[heads·e, n]`` out for attention, ``[B·heads, e, A]``.

        Args:
            x: queries, keys, values, or their gradients.
            e: width of a head.
            zero_empty: put zero into empty slots; otherwise they hold some token, which no mask lets anyone see.
        """
        b, a = self.grid
        if self.slots is not None:
            x = x.index_select(1, self.slots.token_in_slot)
            x = x.mul_(self.slots.occupied) if zero_empty else x
        if b == 1:
            # heads are rows already: nothing moves
            return x.view(-1, e, a)
        # [heads, e, B, A] → [B, heads, e, A]
        return x.view(-1, e, b, a).permute(2, 0, 1, 3).reshape(-1, e, a)

    def from_heads(self, x: Tensor) -> Tensor:
        """Take the list of tokens back out of the grid: ``[B·heads, e, A]`` → ``[heads·e, n]``."""
        b, a = self.grid
        # [B, heads·e, A] → [heads·e, B, A]: the packs side by side again
        x = x.view(-1, a) if b == 1 else x.view(b, -1, a).transpose(0, 1).reshape(-1, b * a)
        return x if self.slots is None else x.index_select(1, self.slots.slot_of_token)
