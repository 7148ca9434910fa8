"""A list of tokens without padding, and the grid of packs in which attention wants them: differentiable moves between the two.

Each token has one slot, so the gradient of a move is the move back, an index like the move itself (where autograd would add up into
zeros). :mod:`.query_positions` does the same for states that lie column by column.

Shape legend: ``B`` packs, ``A`` slots of a pack, ``n ≤ B·A`` tokens, ``w`` width of what is moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """How a list of tokens fills a grid of ``B`` packs with ``A`` slots each.

    Attributes:
        shape: ``(B, A)``.
        slot_of_token: ``[n]`` index into the flat grid; None: one token in every slot, in order.
        token_in_slot: ``[B·A]``; in an empty slot, any.
        occupied: ``[B·A, 1]``, 1 where a token lies, else 0, in the states' dtype.
    """

    shape: tuple[int, int]
    slot_of_token: Tensor | None = None
    token_in_slot: Tensor | None = None
    occupied: Tensor | None = None

    @classmethod
    def from_flags(cls, flags: Sequence[Sequence[bool]], like: Tensor) -> Grid:
        """Number the tokens at *flags* ``[B][A]``, in order; tables lie where *like* lies, in its dtype."""
        flat = [flag for row in flags for flag in row]
        shape = len(flags), len(flags[0])
        if all(flat):
            return cls(shape)
        slots = [i for i, flag in enumerate(flat) if flag]
        token_of = {slot: token for token, slot in enumerate(slots)}
        tokens = [token_of.get(i, 0) for i in range(len(flat))]
        # one table for all three, which goes to the device at once
        table = torch.tensor([*slots, *tokens, *flat], device=like.device)
        slot_of_token, token_in_slot, occupied = table.split_with_sizes([len(slots), len(flat), len(flat)])
        return cls(shape, slot_of_token, token_in_slot, occupied.to(like.dtype)[:, None])

    def lay_out(self, tokens: Tensor) -> Tensor:
        """Put ``tokens [n, w]`` into their slots, ``[B, A, w]``; an empty slot holds some token, which no mask lets anyone see."""
        if self.slot_of_token is not None:
            # nothing of an empty slot's gradient counts
            tokens = _Move.apply(tokens, self.token_in_slot, self.slot_of_token, None)  # type: ignore[no-untyped-call]
        return tokens.view(*self.shape, -1)

    def lay_out_or_zero(self, tokens: Tensor) -> Tensor:
        """Put ``tokens [n, w]`` into their slots, ``[B·A, w]``; an empty slot holds zero."""
        laid = self.lay_out(tokens).flatten(0, 1)
        # no product: what is there for no one may be infinite
        return laid if self.occupied is None else laid.masked_fill(self.occupied == 0, 0)

    def take(self, grid: Tensor) -> Tensor:
        """Take the list of tokens ``[n, w]`` back out of ``grid [B, A, w]``."""
        flat = grid.reshape(-1, grid.shape[-1])
        if self.slot_of_token is None:
            return flat
        # the gradient of an empty slot is zero
        tokens: Tensor = _Move.apply(flat, self.slot_of_token, self.token_in_slot, self.occupied)  # type: ignore[no-untyped-call]
        return tokens


class Pick(NamedTuple):
    """Rows that are read from a list, in some order; what is named twice is read twice.

    Attributes:
        there: ``[k]`` which row each is; None: all, in order.
        back: ``[n]`` which of the read ones each row is; None: some row is read twice or not at all.
    """

    there: Tensor | None = None
    back: Tensor | None = None

    @classmethod
    def of(cls, numbers: Sequence[int], n: int, device: torch.device) -> Pick:
        """Read rows *numbers* of ``n``."""
        if list(numbers) == list(range(n)):
            return cls()
        if sorted(numbers) != list(range(n)):
            return cls(torch.tensor(numbers, device=device))
        back = sorted(range(n), key=numbers.__getitem__)
        there_and_back = torch.tensor([numbers, back], device=device)
        return cls(there_and_back[0], there_and_back[1])

    def take(self, rows: Tensor) -> Tensor:
        """Return ``[k, w]`` of ``rows [n, w]``."""
        if self.there is None or self.back is None:
            return rows if self.there is None else rows[self.there]
        taken: Tensor = _Move.apply(rows, self.there, self.back, None)  # type: ignore[no-untyped-call]
        return taken


class _Move(torch.autograd.Function):
    """Rows to other places, each at most once; the gradient goes back the same way, and where no row lay there is none."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor, occupied: Tensor | None) -> Tensor:
        ctx.back, ctx.occupied = back, occupied
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # grids come as grids, lists as lists
        rows = grads[0].reshape(-1, grads[0].shape[-1]).index_select(0, ctx.back)
        return rows if ctx.occupied is None else rows.mul_(ctx.occupied), None, None, None
