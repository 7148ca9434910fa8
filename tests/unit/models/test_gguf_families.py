"""Every architecture of transformers' GGUF reader that has a layout: what was written is read, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.config.schema import ModelSpec
from raysweep.errors import MissingExtraError, ModelError
from raysweep.models import gguf, ggufcheck
from raysweep.models.facts import facts
from raysweep.models.layout import LAYOUTS
from raysweep.models.load import load
from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace
from tests.tokenizers.battery import TEXTS
from tests.tokenizers.models import loaded

from .test_gguf import _MERGES, _TOKENS, permute, write_gguf
from .test_gguf_defaults import STYLES, write

pytest.importorskip("gguf", reason="the gguf package is not installed")

PRE = {"gpt2": "gpt-2", "llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2"}
WIDE = {"head_dim": 16}  # not width / heads


def small(kind: str, **options: Any) -> Any:
    """Return a model whose sizes are none of its configuration's defaults, every weight drawn: biases are not zero."""
    sizes = {"vocab_size": len(_TOKENS), "tie_word_embeddings": False, **options}
    module = tiny_model(kind, **sizes)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape))
    return module


def write_family(path: Path, module: Any, *, leave_out: tuple[str, ...] = (), **packed: Any) -> Path:
    """Write *module* as llama.cpp's converter does: names by the ``gguf`` package, only Llama's rows permuted."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

    config = module.config
    kind = config.model_type
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    inner = config.n_inner or 4 * config.hidden_size if kind == "gpt2" else config.intermediate_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        if "head_count_kv" not in leave_out:
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE[kind])
    writer.add_token_list(_TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(_TOKENS) - 2)])
    writer.add_token_merges(_MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    for name, value in module.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        data = value.numpy()
        if kind == "llama" and name.endswith("q_proj.weight"):
            data = permute(data, config.num_attention_heads)
        elif kind == "llama" and name.endswith("k_proj.weight"):
            data = permute(data, config.num_key_value_heads)
        elif kind == "gpt2" and ".h." in name and data.ndim == 2:
            data = data.T
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place is not None, name
        raw = GGMLQuantizationType[packed[place]] if place in packed else None
        writer.add_tensor(place, np.zeros(data.shape, np.int32) if raw else np.ascontiguousarray(data), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CASES = {
    **{
        f"{kind}, {tied}": (kind, {"tie_word_embeddings": tied == "tied"}) for kind in PRE for tied in ("tied", "apart")
    },
    "llama, wide heads": ("llama", WIDE),
    "qwen3, wide heads": ("qwen3", WIDE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_family_is_read_as_it_was_written(case: str, tmp_path: Path) -> None:
    """Weights to the last bit, logits, sizes; a plan knows blocks and positions; an edit finds its layers."""
    kind, options = CASES[case]
    source = small(kind, **options)
    path = write_family(tmp_path / "m.gguf", source)
    spec = ModelSpec(name="m", path=str(path))
    lm = load(spec, Workspace(tmp_path))
    state = lm.module.state_dict()
    assert set(state) == set(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(state[name], value), name
    ids = torch.tensor([[1, 4, 5, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(lm.module(ids).logits, source(ids).logits)
    assert type(lm.module) is type(source)
    config = lm.module.config
    assert config.max_position_embeddings == source.config.max_position_embeddings
    known = facts(spec, Workspace(tmp_path))
    assert (known.blocks, known.positions) == (config.num_hidden_layers, config.max_position_embeddings)


def test_every_family_is_one_that_can_be_edited() -> None:
    assert set(ggufcheck.ARCHITECTURES) == set(PRE) <= set(LAYOUTS.names())


@pytest.mark.parametrize("kind", PRE)
def test_a_family_survives_conversion_and_casting(kind: str, tmp_path: Path) -> None:
    """What is loaded carries no mark of a quantised model: it is saved, loaded again and cast as any other."""
    path = write_family(tmp_path / "m.gguf", small(kind))
    folder = gguf.convert(path, tmp_path / "models" / "m")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    straight = load(ModelSpec(name="m", path=str(path)), Workspace(tmp_path)).module.state_dict()
    again = load(ModelSpec(name="m", path=str(folder)), Workspace(tmp_path)).module.state_dict()
    assert all(torch.equal(again[name], value) for name, value in straight.items())
    assert load(ModelSpec(name="m", path=str(path), dtype="bfloat16"), Workspace(tmp_path)).dtype == torch.bfloat16


def test_as_many_key_heads_as_heads_where_the_file_states_none(tmp_path: Path) -> None:
    """transformers' reader leaves the rows permuted then: other numbers without a word."""
    source = small("llama", num_key_value_heads=4)
    assert source.config.num_attention_heads == 4
    found, _ = gguf.read(write_family(tmp_path / "m.gguf", source, leave_out=("head_count_kv",)))
    for name, value in source.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_models_name_is_not_its_architecture(tmp_path: Path) -> None:
    """transformers takes a Llama that is called "mistral" for a Mistral, whose attention looks back 4,096 tokens only."""
    found, _ = gguf.read(write_gguf(tmp_path / "m.gguf", change=lambda w: w.add_name("mistral")))
    assert found.config.model_type == "llama"


def test_nothing_beside_the_file_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The fingerprint covers the file alone; transformers would look for an adapter beside it. And no bar is drawn."""
    path = write_gguf(tmp_path / "m.gguf")
    for name in ("adapter_config.json", "config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"base_model_name_or_path": "nowhere", "model_type": "phi3"}')
    found, _ = gguf.read(path)
    assert found.config.model_type == "llama"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_transformers_tokenizer_is_not_taken_since_it_gives_other_ids(pre: str, tmp_path: Path) -> None:
    """Where this fails transformers has mended it, and ``gguftokenizer.py`` can go as far as that."""
    from transformers import PreTrainedTokenizerFast

    folder = loaded(STYLES[pre], tmp_path / "folder")
    path = write(tmp_path / "m.gguf", folder, pre=pre)
    theirs = PreTrainedTokenizerFast(gguf_file=path.name, name_or_path=str(tmp_path))
    ours = gguf.read_tokenizer(path)
    wanted = [folder.tokenizer(text).input_ids for text in TEXTS]
    assert [ours(text).input_ids for text in TEXTS] == wanted
    assert [theirs(text).input_ids for text in TEXTS] != wanted


def test_a_type_that_cannot_be_unpacked_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = write_family(tmp_path / "m.gguf", small("llama"), **{"blk.1.ffn_down.weight": "I32"})
    with pytest.raises(ModelError, match=r"cannot dequantise I32 \('blk\.1\.ffn_down\.weight'\)"):
        gguf.read(path)


@pytest.mark.parametrize("count", [1, 10**9])
def test_blocks_that_are_not_there_are_refused_at_once(count: int, tmp_path: Path) -> None:
    source = small("qwen3")
    source.config.num_hidden_layers, blocks = count, source.config.num_hidden_layers
    with pytest.MonkeyPatch.context() as patch:
        import gguf as package

        names = package.get_tensor_name_map
        patch.setattr(package, "get_tensor_name_map", lambda architecture, _: names(architecture, blocks))
        path = write_family(tmp_path / "m.gguf", source)
    with pytest.raises(ModelError, match=rf"block_count is {count}, but there are tensors of {blocks} blocks"):
        gguf.read(path)


def test_accelerate_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'accelerate' package"):
        gguf.read(write_gguf(tmp_path / "m.gguf"))
