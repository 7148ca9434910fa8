"""Passes between the layers of MEMIT: on a device they begin behind the attention of the layer changed last, and read the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raysweep.models.forward import key_passes, prefix_tree
from raysweep.models.joined import join
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import LowRank
from raysweep.testing.sham_device import ShamDevice, device
from tests.gpu.agree import agree, models

ROWS = [list(range(3, 3 + n)) for n in (9, 5)] + [[40, *range(50, 50 + n)] for n in (150, 6)]


def climbed(lm: LanguageModel, layers: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Read each layer with the one before changed, by the same change on every device."""
    rng, below, found = torch.Generator().manual_seed(0), {}, []
    with torch.no_grad():
        passes = key_passes.prepare(lm, prefix_tree.pack_rows(lm, ROWS), layers)
        assert isinstance(passes, key_passes.ModulePasses if lm.device.type == "cpu" else key_passes.DevicePasses)
        for layer in layers:
            found.append(passes.read(layer, below))
            name = f"{lm.layout.mlp_out.format(layer)}.weight"
            left, right = (
                0.3 * torch.randn(*size, generator=rng) for size in zip(lm.logical(name).shape, (1, 1), strict=True)
            )
            below = {name: LowRank(left.to(lm.device), right.T.to(lm.device))}
    return found


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_device_reads_what_the_modules_hold(family: str, layers: tuple[int, ...]) -> None:
    ours, theirs = models(family)
    expected = climbed(ours, layers)
    with ShamDevice():
        join(theirs.module, theirs.layout)
        found = climbed(theirs, layers)
        assert found[0][0].device == device()
        agree(expected, found, 2e-6)
