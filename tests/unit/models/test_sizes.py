from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.config.schema import ModelSpec
from raysweep.models.sizes import size_from_config
from raysweep.models.sources.catalogue import CATALOGUE, sizes_of
from raysweep.workspace import Workspace

GOLDEN = Path(__file__).resolve().parents[2] / "golden/recorded/models"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2-xl", 1.5576e9), ("llama-2-7b", 6.7384e9), ("mistral-7b", 7.2417e9), ("smollm2-135m", 134.5e6)],
)
def test_the_catalogue_s_shapes_give_the_published_sizes(name: str, parameters: float) -> None:
    shape = CATALOGUE[name].model_size
    assert shape is not None
    assert shape.parameters == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("folder", sorted(p.name for p in GOLDEN.iterdir()))
def test_a_config_gives_the_size_of_its_weights(folder: str) -> None:
    from safetensors.torch import load_file

    shape = size_from_config(json.loads((GOLDEN / folder / "config.json").read_text()))
    assert shape is not None
    weights = load_file(GOLDEN / folder / "model.safetensors")
    matrices = sum(t.numel() for n, t in weights.items() if t.dim() == 2)
    assert shape.parameters == matrices


def test_the_embedded_model_is_found_and_the_unknown_is_not(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    found = sizes_of(ModelSpec(), workspace)
    assert found is not None
    assert (found.hidden, found.mlp_width, found.layers) == (128, 512, 4)
    assert sizes_of(ModelSpec(name="llama-2-7b"), workspace) == CATALOGUE["llama-2-7b"].model_size
    assert sizes_of(ModelSpec(name="someone/something"), workspace) is None
    assert size_from_config({"model_type": "unheard-of"}) is None
    assert size_from_config({"model_type": "llama", "hidden_size": "wide"}) is None


SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99}
LLAMA = {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}
GPT = {
    "n_embd": 64,
    "n_inner": 96,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 99,
    "n_positions": 32,
    "tie_word_embeddings": True,
}
_FALCON = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
CONFIGS = {
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    **dict.fromkeys(("llama", "mistral", "olmo", "phi", "phi3", "qwen2", "qwen3"), LLAMA),
    "gpt_neox": SMALL,
    "falcon": {**_FALCON, "ffn_hidden_size": 96},
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_a_config_does_not_say_is_what_transformers_takes(model_type: str) -> None:
    from transformers import AutoConfig

    whole = CONFIGS[model_type]
    for missing in (None, *whole, "all of it"):
        left = {k: v for k, v in whole.items() if k != missing and missing != "all of it"}
        full = AutoConfig.for_model(model_type, **left).to_dict()
        assert size_from_config({"model_type": model_type, **left}) == size_from_config(full), missing
