"""A model gets to its device weight by weight, and is the one that the files hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raysweep import runtime
from raysweep.config.schema import ModelSpec
from raysweep.models.forward.device_parts import Maps
from raysweep.models.layouts.llama import FORM
from raysweep.models.sources import load as loading
from raysweep.models.sources.catalogue import embedded_folder
from raysweep.testing import sham_device
from raysweep.workspace import Workspace


def test_weights_are_read_straight_to_the_device() -> None:
    """What transformers hands over is there already, so a model as large as a card was never whole in the host's memory."""
    there = sham_device.device()
    assert loading._placement(torch.device("cpu")) == {}
    with sham_device.ShamDevice():
        placed = loading._placement(there)
        module, _ = loading._from_pretrained(embedded_folder(), ModelSpec(), there)
    assert placed == {"device_map": {"": there}}
    assert {tensor.device for tensor in (*module.parameters(), *module.buffers())} == {there}


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_are_those_of_the_cpu(
    accelerate: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, workspace = ModelSpec(dtype=dtype), Workspace(tmp_path)  # type: ignore[arg-type]
    here = loading.load(spec, workspace)
    monkeypatch.setattr(runtime, "device", sham_device.device)
    if not accelerate:
        monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with sham_device.ShamDevice():
        there = loading.load(spec, workspace)
        found = {name: value.cpu() for name, value in there.module.state_dict().items()}
        buffers = {name: value.cpu() for name, value in there.module.named_buffers()}
    assert there.device == sham_device.device()
    assert there.identity == here.identity
    # on a device, maps that read the same are one product
    names = [name.format(1) for name in FORM.qkv]
    assert (len(Maps.of(there, names).weights), len(Maps.of(here, names).weights)) == (1, 3)
    for name, value in {**here.module.state_dict(), **dict(here.module.named_buffers())}.items():
        assert torch.equal({**found, **buffers}[name], value), name
