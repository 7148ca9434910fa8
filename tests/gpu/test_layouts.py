"""Every layout on a device: it sits the layout contract there, and a pass has the CPU's logits."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from raysweep.models.forward import blocks
from raysweep.models.layout import LAYOUTS, layout_of
from raysweep.models.lm import LanguageModel
from raysweep.testing.layout_contract import check_layout_contract, tiny_model
from raysweep.testing.sham_device import ShamDevice, move
from tests.contracts.test_layouts import SCALED
from tests.gpu.agree import agree


# GPT-J's head has a bias and is never tied.
@pytest.mark.parametrize(
    ("name", "tied"), [(n, t) for n in LAYOUTS.names() for t in (False, True) if (n, t) != ("gptj", True)]
)
def test_layout_keeps_its_promises_on_a_device(name: str, tied: bool) -> None:
    torch.set_num_threads(1)  # as the other tiny models do: these are too small for two
    ours, theirs = (tiny_model(name, tie_word_embeddings=tied) for _ in range(2))
    ids = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    logits = []
    with ShamDevice():
        check_layout_contract(layout_of(theirs.config), move(theirs))
        for module in (ours, theirs):
            lm = LanguageModel(module, cast("PreTrainedTokenizerBase", None), layout_of(module.config))
            on = {"ids": ids.to(lm.device), "mask": mask.to(lm.device)}
            logits.append(blocks.logits(lm, blocks.run(lm, **on))[:, :3].detach())
    agree(*logits, 1e-6)


@pytest.mark.parametrize("name", SCALED)
def test_scaled_positions_are_the_model_s_own_on_a_device(name: str) -> None:
    torch.set_num_threads(1)
    module = tiny_model(name, rope_parameters=SCALED[name])
    with ShamDevice():
        check_layout_contract(layout_of(module.config), move(module))
