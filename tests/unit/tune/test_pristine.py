"""The pristine weights of a model on an accelerator wait in pinned memory, if there is room for them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raysweep.config.schema import ModelSpec
from raysweep.models.sizes import COPY_LIMIT
from raysweep.testing.sham_device import ShamDevice, move
from raysweep.tune import pristine
from raysweep.tune.deps import ModelPool


class Copies(TorchFunctionMode):
    """Notes of each copy whether it was told to go on meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_:
            self.seen.append(bool((kwargs or {}).get("non_blocking", False)))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was allocated as pinned memory, by a fake that pins nothing."""
    made: list[Tensor] = []

    def fake(tensor: Tensor) -> Tensor:
        made.append(torch.empty(tensor.shape, dtype=tensor.dtype))
        return made[-1]

    monkeypatch.setattr(pristine, "pinned_like", fake)
    return made


def toy() -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(module=nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).eval().requires_grad_(False))


@pytest.mark.parametrize("fails", [False, True], ids=["pinned", "no pinned memory to be had"])
def test_an_accelerator_s_weights_are_restored_from_pinned_memory(
    fails: bool, pinned: list[Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(tensor: Tensor) -> Tensor:
        raise RuntimeError("no more\nat …")

    if fails:
        monkeypatch.setattr(pristine, "pinned_like", refuse)
    with ShamDevice(), caplog.at_level(logging.WARNING):
        lm = toy()
        move(lm.module)
        pool = ModelPool(lambda spec, told: lm)
        pool.get(ModelSpec())
        before = {name: tensor.cpu().clone() for name, tensor in lm.module.state_dict().items()}
        lm.module[0].weight.add_(1)
        with Copies() as copied:
            assert pool.get(ModelSpec()) is lm, "loaded anew, it would be the same object with other weights"
        assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in lm.module.state_dict().items())
    assert copied.seen == [True]
    assert len(pinned) == (0 if fails else len(before))
    assert ("not pinned: no more" in caplog.text) == fails


def test_the_cpu_s_weights_are_not_pinned_and_have_the_room_they_had(
    pinned: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pristine, "free_memory", lambda: 1 << 50)
    weight = torch.ones(3)
    assert torch.equal(pristine.copies({"w": weight})["w"], weight)
    assert pinned == []
    monkeypatch.setattr(pristine, "COPY_LIMIT", weight.nbytes - 1)
    assert pristine.copies({"w": weight}) == {}


@pytest.mark.parametrize(("free", "kept"), [(4 * COPY_LIMIT, False), (8 * COPY_LIMIT, True)])
def test_an_accelerator_s_weights_may_take_a_quarter_of_what_is_free(
    free: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal:       999 kB\nMemAvailable:   {free >> 10} kB\n")
    monkeypatch.setattr(pristine, "_MEMORY", file)
    # As large as that, and nobody's memory: the meta device holds nothing.
    monkeypatch.setattr(pristine, "pinned_like", lambda tensor: tensor)
    large = torch.empty(COPY_LIMIT // 4 + 1, device="meta")
    assert bool(pristine.copies({"w": large})) == kept
    file.unlink()
    assert pristine.free_memory() == 0
