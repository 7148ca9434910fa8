"""A tiny Llama is written as GGUF and read back; what the reader does not know is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.config.schema import ModelSpec
from raysweep.errors import MissingExtraError, ModelError
from raysweep.models import gguf
from raysweep.models.load import load
from raysweep.models.tokens import encode
from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace, package_share

pytest.importorskip("gguf", reason="the gguf package is not installed")

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_TOKENS = ["<end>", "<bos>", *sorted("abcdeĠ0123456789"), "ab", "Ġab"]
_MERGES = ["a b", "Ġ ab"]


def model(tied: bool = False) -> Any:
    return tiny_model(
        "llama", vocab_size=len(_TOKENS), hidden_size=32, intermediate_size=64, head_dim=8, tie_word_embeddings=tied
    )


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter does."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    *,
    tied: bool = False,
    quantised: bool = False,
    arch: str = "llama",
    change: Callable[[Any], None] = lambda _: None,
    pre: str = "smollm",
    family: str = "gpt2",
    drop: str = "",
) -> Path:
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    source = model(tied)
    config = source.config
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model(family)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(_TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(_TOKENS) - 2)])
    writer.add_token_merges(_MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    change(writer)
    for name, value in source.state_dict().items():
        if name == drop or (tied and name == "lm_head.weight"):
            continue
        data = value.numpy()
        if name.endswith("q_proj.weight"):
            data = permute(data, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            data = permute(data, config.num_key_value_heads)
        stem = name.removesuffix(".weight")
        block = stem.removeprefix("model.layers.").partition(".") if stem.startswith("model.layers.") else None
        target = f"blk.{block[0]}.{_NAMES[block[2]]}" if block else _NAMES[stem]
        if quantised and data.ndim == 2:
            packed = quantize(data, GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{target}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{target}.weight", np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_weights_survive_the_round_trip(tied: bool, tmp_path: Path) -> None:
    found, _ = gguf.read(write_gguf(tmp_path / "m.gguf", tied=tied))
    source = model(tied)
    assert found.config.tie_word_embeddings is tied
    for name, value in source.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    ids = torch.tensor([[1, 4, 5, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, source(ids).logits)


def test_quantised_blocks_are_dequantised(tmp_path: Path) -> None:
    found, _ = gguf.read(write_gguf(tmp_path / "m.gguf", quantised=True))
    name = "model.layers.0.self_attn.q_proj.weight"
    error = (found.state_dict()[name] - model().state_dict()[name]).abs().max()
    assert 0 < error < 0.005


def test_the_tokenizer_is_byte_bpe_without_bos(tmp_path: Path) -> None:
    _, tokenizer = gguf.read(write_gguf(tmp_path / "m.gguf"))
    ids = tokenizer("ab ab12<end>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["ab", "Ġab", "1", "2", "<end>"]
    assert tokenizer.decode(ids) == "ab ab12<end>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<end>", None)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab ab12"


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_other_pre_tokenizers_and_bos(pre: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", pre=pre, change=lambda w: w.add_add_bos_token(True))
    _, tokenizer = gguf.read(path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab ab")["input_ids"]) == ["<bos>", "ab", "Ġab"]


def test_a_converted_folder_loads_as_the_same_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tied=True)
    workspace = Workspace(tmp_path)
    folder = gguf.convert(path, tmp_path / "models" / "m", source={"from": "here"})
    assert gguf.convert(path, folder) == folder
    assert sorted(p.name for p in folder.parent.iterdir()) == ["m"]
    straight = load(ModelSpec(name="m", path=str(path), bos="<end>"), workspace)
    again = load(ModelSpec(name="m", bos="<end>"), workspace)
    for name, value in straight.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name
    assert encode(straight, "ab 1") == encode(again, "ab 1")
    assert encode(again, "ab")[0] == again.bos[0] == 0
    assert again.tokenizer.pad_token == "<end>"
    half = load(ModelSpec(name="m", path=str(path), dtype="bfloat16"), workspace)
    assert half.dtype == torch.bfloat16


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"arch": "phi3"}, "GGUF architecture 'phi3' is not supported"),
    "tokenizer": ({"family": "llama"}, "GGUF tokenizer 'llama' is not supported"),
    "pre-tokenizer": ({"pre": "tekken"}, "unknown pre-tokenizer 'tekken'"),
    "a lost tensor": ({"drop": "model.layers.1.mlp.up_proj.weight"}, "do not fit the metadata"),
    "an unknown tensor": (
        {"change": lambda w: w.add_tensor("blk.0.ffn_norm_exps.weight", np.zeros(32, np.float32))},
        "unexpected tensor 'blk.0.ffn_norm_exps.weight'",
    ),
    "scaled rope": (
        {"change": lambda w: w.add_tensor("rope_freqs.weight", np.zeros(4, np.float32))},
        "scaled rotary embeddings",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_reader_does_not_know_is_refused(case: str, tmp_path: Path) -> None:
    options, said = REFUSED[case]
    with pytest.raises(ModelError, match=said):
        gguf.read(write_gguf(tmp_path / "m.gguf", **options))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    for cut in (3, 40, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError, match="not a readable GGUF file"):
            gguf.read(path)


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match="'gguf' package") as caught:
        gguf.read(tmp_path / "m.gguf")
    assert "raysweep[gguf]" in caught.value.hint


_SMOLLM2 = package_share() / "models" / "smollm2-135m"


@pytest.mark.slow
@pytest.mark.skipif(not _SMOLLM2.is_dir(), reason="SmolLM2 is not fetched")
def test_smollm2_knows_the_capital_of_france() -> None:
    lm = load(ModelSpec(name="smollm2-135m"), Workspace(package_share()))
    assert lm.tokenizer.convert_ids_to_tokens(list(lm.bos)) == ["<|endoftext|>"]
    ids = torch.tensor([encode(lm, "The capital of France is")], device=lm.device)
    with torch.no_grad():
        assert lm.tokenizer.decode(lm.module(ids).logits[0, -1].argmax().item()) == " Paris"
    assert encode(lm, "12 é 日本")[1:] == lm.tokenizer("12 é 日本")["input_ids"]
    assert lm.tokenizer.decode(encode(lm, "12 é 日本")[1:]) == "12 é 日本"
