"""Writing weights: a large low-rank change is formed in blocks, and is the same change."""

from __future__ import annotations

import pytest
import torch

from raysweep.editors.base import Dense, LowRank
from raysweep.models import patching


@pytest.mark.parametrize("transposed", [False, True])
def test_a_low_rank_change_in_blocks_is_the_dense_one(monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    monkeypatch.setattr(patching, "BLOCK", 100)
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(31, 17, generator=rng)
    delta = LowRank(
        torch.randn(31, 3, generator=rng, dtype=torch.float64), torch.randn(3, 17, generator=rng, dtype=torch.float64)
    )
    found, wanted = (weight.T.clone().T if transposed else weight.clone() for _ in range(2))
    patching.accumulate(found, delta)
    patching.accumulate(wanted, Dense(delta.dense()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not torch.equal(found, weight)
