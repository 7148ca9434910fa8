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


# Of the kind of Llama 3.1, so short that every row of the contract is scaled; and of Qwen 3 beyond its own context.
SCALED = {
    "llama": {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 4,
    },
    "qwen3": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_scaled_positions_are_the_model_s_own(name: str) -> None:
    module, plain = tiny_model(name, rope_parameters=SCALED[name]), tiny_model(name)
    check_layout_contract(layout_of(module.config), module)
    ids = torch.arange(2, 14)[None]
    assert not torch.allclose(module(ids).logits, plain(ids).logits, atol=1e-3), "scaling is seen"


def test_only_conv1d_is_transposed() -> None:
    for name in LAYOUTS.names():
        module = tiny_model(name)
        lm = LanguageModel(module=module, tokenizer=None, layout=layout_of(module.config))  # type: ignore[arg-type]
        assert lm.transposed(f"{lm.layout.mlp_out.format(0)}.weight") == (name == "gpt2")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("mlp_out", "model.layers.{}.self_attn.o_proj", r"mlp_out: the weight of '.*o_proj' is square \(16 × 16\)"),
        ("norm", "model.layers.0.input_layernorm", "norm: .* is not what 'model' puts out"),
        (
            "mlp_in",
            ("model.layers.{}.mlp.down_proj",),
            r"mlp_in: the weight of .* has shape \(16, 24\); .* has \(24, 16\)",
        ),
        ("mlp", "model.layers.{}.self_attn", "mlp: a shift of what '.*self_attn' puts out is not added"),
        ("mlp", "model.layers.0.mlp", "mlp: a shift of what 'model.layers.0.mlp' puts out is not added"),
        (
            "head",
            "model.layers.0.mlp.gate_proj",
            r"head: .* is not the model's logits \(shape \(2, 6, 24\) and not \(2, 6, 40\)\)",
        ),
        ("embed", "lm_head", "embed: what enters block 0 is no multiple of the rows of 'lm_head'"),
        (
            "embed_scale",
            lambda config: 2.0,
            "embed_scale: what enters block 0 is 1 times the row .*, and embed_scale says 2",
        ),
    ],
)
def test_a_wrong_layout_is_found_out_and_said_in_a_sentence(field: str, value: object, sentence: str) -> None:
    module = tiny_model("llama")
    wrong = dataclasses.replace(LAYOUTS.get("llama"), **{field: value})
    with pytest.raises(AssertionError, match=f"^{sentence}"):
        check_layout_contract(wrong, module)


def test_scaled_embeddings_are_said_by_the_layout() -> None:
    """Gemma multiplies embeddings by √d; a layout that doesn't say so is told by how much."""
    module = tiny_model("gemma")
    plain = dataclasses.replace(LAYOUTS.get("llama"), model_type="gemma")
    with pytest.raises(AssertionError, match=r"is 4 times the row of 'model.embed_tokens', and embed_scale is not set"):
        check_layout_contract(plain, module)
    check_layout_contract(dataclasses.replace(plain, embed_scale=lambda config: config.hidden_size**0.5), module)


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
