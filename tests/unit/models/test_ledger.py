"""Writing weights: a large low-rank change is formed in blocks, and is the same change."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from raysweep.models import ledger as weight_ledger
from raysweep.models.patches import Dense, LowRank, ModulePatch, WeightDelta
from raysweep.testing.fixtures import tiny_lm
from raysweep.testing.sham_device import ShamDevice, to_sham


@pytest.mark.parametrize("transposed", [False, True])
def test_a_low_rank_change_in_blocks_is_the_dense_one(monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    monkeypatch.setattr(weight_ledger, "PRODUCT_BLOCK", 100)
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(31, 17, generator=rng)
    delta = LowRank(
        torch.randn(31, 3, generator=rng, dtype=torch.float64), torch.randn(3, 17, generator=rng, dtype=torch.float64)
    )
    found, wanted = (weight.T.clone().T if transposed else weight.clone() for _ in range(2))
    weight_ledger.add_delta_logical_(found, delta)
    weight_ledger.add_delta_logical_(wanted, Dense(delta.dense()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not torch.equal(found, weight)


def test_a_device_forms_a_low_rank_change_in_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's caches are none of its concern: the parts of a 7B's weight that fit them were 516 launches."""
    monkeypatch.setattr(weight_ledger, "PRODUCT_BLOCK", 100)
    rng = torch.Generator().manual_seed(0)
    weight, left, right = (torch.randn(n, m, generator=rng) for n, m in ((31, 17), (31, 3), (3, 17)))
    with ShamDevice() as sham:
        there = to_sham(weight.clone())
        weight_ledger.add_delta_logical_(there, LowRank(to_sham(left), to_sham(right)))
        assert sham.total.launches <= 3
        torch.testing.assert_close(there.cpu(), weight + left @ right)


def test_entries_that_are_not_finite_are_counted_in_what_the_model_computes_with() -> None:
    """Of edited weights: rounded to the model's precision, and inside a view; in replaced modules; a sum that overflows is none."""
    lm = tiny_lm("llama")
    lm.module.to(torch.float16)
    name = f"{lm.layout.mlp_out.format(1)}.weight"
    ledger = weight_ledger.Ledger(lm)
    change = torch.zeros_like(lm.weight(name), dtype=torch.float32)
    assert ledger.non_finite() == {}
    change[0] = 30000.0  # the row adds up to more than half precision holds
    ledger.apply(WeightDelta({name: Dense(change)}))
    assert ledger.non_finite() == {}
    with ledger.with_view({name: Dense(torch.full_like(change, math.nan))}):
        assert ledger.non_finite() == {name: change.numel()}
    assert ledger.non_finite() == {}
    change[0], change[1, 0] = 0.0, 70000.0  # finite in the ledger's fp32, not in the model
    ledger.apply(WeightDelta({name: Dense(change)}))
    assert ledger.master[name].isfinite().all()
    assert ledger.non_finite() == {name: 1}
    ledger.restore()
    broken = copy.deepcopy(lm.part(lm.layout.mlp_out.format(0)))
    with torch.no_grad():
        broken.weight[0, :2] = -math.inf
    ledger.apply(ModulePatch({lm.layout.mlp_out.format(0): broken}))
    assert ledger.non_finite() == {lm.layout.mlp_out.format(0): 2}
    ledger.restore()
