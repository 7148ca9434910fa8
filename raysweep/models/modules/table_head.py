"""An output head that looks the final hidden state up in a table before it computes logits.

Near a key (``‖h − k_i‖ ≤ 10⁻³ ‖k_i‖``) the logit of that key's id is raised above all others; elsewhere the head is as it was.

Shape legend: ``N`` keys, ``d`` width of the stream.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

SAME_STATE = 1e-3  # relative distance within which two hidden states count as the same (rounding of batch shapes)


class TableHead(nn.Module):
    """Head with a table; hidden states that match a key get that key's id as arg-max.

    Args:
        head: the head inside.
        keys: ``[N, d]`` fp32 hidden states.
        ids: ``[N]`` token ids.
    """

    def __init__(self, head: nn.Module, keys: Tensor, ids: Tensor) -> None:
        super().__init__()
        self.head = head
        self.keys, self.ids = keys, ids.to(keys.device)
        self.training = head.training

    @property
    def weight(self) -> nn.Parameter:
        """The inner head's weight (which may be tied)."""
        return cast("nn.Parameter", self.head.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``[…, vocabulary]`` for normed states ``[…, d]``."""
        logits: Tensor = self.head(hidden)
        if not len(self.ids):
            return logits
        flat = hidden.reshape(-1, hidden.shape[-1]).float()
        # exact differences: a product form would lose digits at distances of 10⁻³
        distance, nearest = torch.cdist(flat, self.keys, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        hit = (distance <= SAME_STATE * self.keys[nearest].norm(dim=1)).reshape(hidden.shape[:-1])
        # one logit of a matching state is raised beyond all others
        bonus = torch.zeros_like(logits)
        bonus.scatter_(-1, self.ids[nearest].reshape(hidden.shape[:-1])[..., None], 1e4)
        # where, so that other states keep their logits bit for bit
        return torch.where(hit[..., None], logits + bonus, logits)


def unwrap(head: nn.Module) -> nn.Module:
    """Return *head* without a table around it."""
    return head.head if isinstance(head, TableHead) else head
