"""A linear map with a codebook: near a key, the output at some tokens is a stored value (GRACE, Hartvigsen et al. 2023).

With a query ``q`` (the input at the prompt's last token), keys ``k_i``, values ``v_i`` and radii ``ε_i`` (arXiv 2211.11031):

    i* = argmin_i ‖q − k_i‖,     h(q) = v_i*  if ‖q − k_i*‖ ≤ ε_i*,  else  W q + b

Shape legend: ``B`` rows, ``T`` tokens of a row, ``n`` keys, ``d_in`` and ``d_out`` of the linear map.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from raysweep.models.modules.replacement import ReplacementModule

Replace = Literal["last", "prompt", "all"]


class Codebook(ReplacementModule):
    """Replaces the output of ``inner`` by the value of the nearest key, if the query lies within that key's radius.

    The query is the input at the prompt's last token; each row decides for itself. Rows out of reach pass through bit for
    bit.

    Args:
        inner: the linear map.
        keys: ``[n, d_in]``.
        values: ``[n, d_out]``.
        radii: ``[n]``, Euclidean.
        replace: at which tokens the value is put out: the prompt's ``last``, those of the ``prompt`` before it, or ``all``.
        rounding: how much farther than its radius a key reaches, relative to the query and its distance, so that a query at
            the radius's very end is not lost to the rounding of another batch.
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
        """Return the outputs ``[B, T, d_out]`` for ``states [B, T, d_in]``."""
        out: Tensor = self.inner(states)
        if not len(self.keys):
            return out
        last = self.last_tokens(states)
        # [B, d_in]: one query per row
        query = states[torch.arange(states.shape[0], device=states.device), last].float()
        distance, chosen = distances(query, self.keys).min(1)
        # ‖q − k‖ ≤ ε, up to rounding relative to the numbers that were subtracted
        hit = distance <= self.radii[chosen] + self.rounding * (query.norm(dim=1) + distance)
        token = torch.arange(states.shape[1], device=states.device)[None, :]
        where = {"last": token == last[:, None], "prompt": token < last[:, None], "all": token >= 0}[self.replace]
        # where, not a product: rows out of reach pass through bit for bit
        return torch.where((where & hit[:, None])[..., None], self.values[chosen][:, None, :].to(out.dtype), out)


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Return Euclidean distances ``[B, n]`` of ``queries [B, d]`` to ``keys [n, d]``, without cancellation."""
    # ‖q‖² − 2 qᵀk + ‖k‖² would lose the digits that decide whether a query lies within a small radius
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")
