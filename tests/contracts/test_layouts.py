"""Every layout of the table sits the layout contract on a tiny random model of its family."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from raysweep.errors import ModelError
from raysweep.models.layout import LAYOUTS, layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import check_layout
from raysweep.testing.layout_contract import check_layout_contract, tiny_model


# GPT-J's head has a bias and is never tied.
@pytest.mark.parametrize(
    ("name", "tied"), [(n, t) for n in LAYOUTS.names() for t in (False, True) if (n, t) != ("gptj", True)]
)
def test_layout_keeps_its_promises(name: str, tied: bool) -> None:
    module = tiny_model(name, tie_word_embeddings=tied)
    layout = layout_of(module.config)
    assert layout is LAYOUTS.get(name)
    assert layout.model_type == name
    check_layout_contract(layout, module)


def test_only_conv1d_is_transposed() -> None:
    for name in LAYOUTS.names():
        module = tiny_model(name)
        lm = LanguageModel(module=module, tokenizer=None, layout=layout_of(module.config))  # type: ignore[arg-type]
        assert lm.transposed(f"{lm.layout.mlp_out.format(0)}.weight") == (name == "gpt2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mlp_out", "model.layers.{}.self_attn.o_proj"),
        ("norm", "model.layers.0.input_layernorm"),
        ("mlp_in", ("model.layers.{}.mlp.down_proj",)),
    ],
)
def test_a_wrong_layout_is_found_out(field: str, value: object) -> None:
    module = tiny_model("llama")
    wrong = dataclasses.replace(LAYOUTS.get("llama"), **{field: value})
    with pytest.raises(AssertionError):
        check_layout_contract(wrong, module)


def test_a_name_that_is_not_there_is_reported() -> None:
    wrong = dataclasses.replace(LAYOUTS.get("llama"), mlp_out="model.layers.{}.mlp.c_proj")
    with pytest.raises(ModelError, match=r"layout 'llama' does not fit LlamaForCausalLM.*c_proj"):
        check_layout(tiny_model("llama"), wrong)


def test_unknown_architecture_names_the_file_to_add() -> None:
    class Config:
        model_type = "lama"

    with pytest.raises(ModelError, match=r"no layout for model_type 'lama'") as caught:
        layout_of(Config())
    assert "llama" in caught.value.hint
    assert "raysweep/models/layouts/lama.py" in caught.value.hint


def test_tiny_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    tiny_model("qwen3")
    assert torch.equal(torch.random.get_rng_state(), before)
