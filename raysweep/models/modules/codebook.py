"""A linear map with a codebook: near a key, the output at some tokens is a stored value (GRACE; editors.md §10.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from raysweep.models.modules.replacement import ReplacementModule

Replace = Literal["last", "prompt", "all"]


class Codebook(ReplacementModule):
    """Replaces the output of ``inner`` by the value of the nearest key, if the query lies within that key's radius.

    The query is the input at the prompt's last token; each row decides for itself. Rows out of reach pass through bit for
    bit. *rounding*: how much farther than its radius a key reaches, relative to the query and its distance, so that a query at
    the radius's very end is not lost to the rounding of another batch.

    Shape: keys ``[n, d_in]``, values ``[n, d_out]``, radii ``[n]``.
    """

    def __init__(
        self,
        inner: nn.Module,
        keys: Tensor,
        values: Tensor,
        radii: Tensor,
        *,
        replace: Replace = "last",
        rounding: float = 0.0,
    ) -> None:
        super().__init__(inner)
        self.rounding = rounding
        self.keys, self.values, self.radii = keys, values, radii
        self.replace: Replace = replace

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, T, d_out]``."""
        out: Tensor = self.inner(states)
        if not len(self.keys):
            return out
        last = self.last_tokens(states)
        query = states[torch.arange(states.shape[0], device=states.device), last].float()
        distance, chosen = distances(query, self.keys).min(1)
        hit = distance <= self.radii[chosen] + self.rounding * (query.norm(dim=1) + distance)
        spot = torch.arange(states.shape[1], device=states.device)[None, :]
        where = {"last": spot == last[:, None], "prompt": spot < last[:, None], "all": spot >= 0}[self.replace]
        return torch.where((where & hit[:, None])[..., None], self.values[chosen][:, None, :].to(out.dtype), out)


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Return Euclidean distances ``[B, n]`` of ``queries [B, d]`` to ``keys [n, d]``, without cancellation."""
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")
