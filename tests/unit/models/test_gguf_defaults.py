"""Metadata that a GGUF file does not have take the format's documented default, never ours; so its ids are its folder's.

Defaults as of llama.cpp's ``src/llama-vocab.cpp`` and ``src/llama-model.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import load
from raysweep.workspace import Workspace
from tests.tokenizers.battery import TEXTS, Variant
from tests.tokenizers.models import loaded

from .test_gguf import _NAMES, permute

pytest.importorskip("gguf", reason="the gguf package is not installed")

LLAMA_3 = Variant("llama-3", "llama")
STYLES = {  # folder, tokenizer.ggml.pre
    "llama-bpe": LLAMA_3,
    "qwen2": Variant("qwen2", "llama", (), {"add_bos_token": False}),
    "gpt-2": Variant("gpt2", "llama"),
}
Change = Callable[[Any], None]


def write(
    path: Path, lm: LanguageModel, *, change: Change = lambda _: None, without: tuple[str, ...] = (), **has: Any
) -> Path:
    """Write *lm* as GGUF with no more metadata than llama.cpp requires, plus *has* and what *change* adds."""
    from gguf import GGUFWriter

    config, table = lm.module.config, lm.tokenizer.get_vocab()
    merges = [m.split(" ") if isinstance(m, str) else m for m in _model(lm)["merges"]]
    facts: dict[str, tuple[str, Any]] = {
        "block_count": ("uint32", config.num_hidden_layers),
        "context_length": ("uint32", config.max_position_embeddings),
        "embedding_length": ("uint32", config.hidden_size),
        "feed_forward_length": ("uint32", config.intermediate_size),
        "attention.head_count": ("uint32", config.num_attention_heads),
        "attention.head_count_kv": ("uint32", config.num_key_value_heads),
        "attention.layer_norm_rms_epsilon": ("float32", config.rms_norm_eps),
    }
    writer = GGUFWriter(path, "llama")
    for key, (kind, value) in facts.items():
        if key not in without:
            getattr(writer, f"add_{kind}")(f"llama.{key}", value)
    names = sorted(table, key=lambda token: table[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*names, *(f"[unused{i}]" for i in range(config.vocab_size - len(names)))])
    special = set(lm.tokenizer.added_tokens_encoder)
    if "token_type" not in without:
        writer.add_token_types([3 if name in special else 1 for name in names] + [1] * (config.vocab_size - len(names)))
    writer.add_token_merges([" ".join(m) for m in merges])
    for role in ("bos", "eos"):
        number = getattr(lm.tokenizer, f"{role}_token_id")
        if number is not None and f"{role}_token_id" not in without:
            getattr(writer, f"add_{role}_token_id")(number)
    if "pre" in has:
        writer.add_tokenizer_pre(has["pre"])
    change(writer)
    for name, value in lm.module.state_dict().items():
        data, stem = value.numpy(), name.removesuffix(".weight")
        if stem.endswith("q_proj"):
            data = permute(data, config.num_attention_heads)
        elif stem.endswith("k_proj"):
            data = permute(data, config.num_key_value_heads)
        block = stem.removeprefix("model.layers.").partition(".") if stem.startswith("model.layers.") else None
        writer.add_tensor(
            f"{f'blk.{block[0]}.{_NAMES[block[2]]}' if block else _NAMES[stem]}.weight", np.ascontiguousarray(data)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _model(lm: LanguageModel) -> Mapping[str, Any]:
    import json

    return json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]  # type: ignore[no-any-return]


def opened(path: Path) -> LanguageModel:
    return load(ModelSpec(name="m", path=str(path), bos="tokenizer"), Workspace(path.parent))


@pytest.mark.parametrize("stated", [None, True, False])
@pytest.mark.parametrize("pre", STYLES)
def test_the_ids_of_a_file_are_those_of_its_folder(pre: str, stated: bool | None, tmp_path: Path) -> None:
    """With ``add_bos_token`` absent, true and false; the folder says the same in its template."""
    folder = loaded(STYLES[pre], tmp_path / "folder")
    state = None if folder.tokenizer.bos_token is None else folder.tokenizer.bos_token_id
    if stated and state is None:
        pytest.skip("no BOS to add")
    path = write(tmp_path / "m.gguf", folder, pre=pre, change=lambda w: stated is None or w.add_add_bos_token(stated))
    lm = opened(path)
    adds = stated if stated is not None else pre == "llama-bpe"
    for text in TEXTS:
        wanted = [*([state] if adds else []), *tokens.encode_alone(folder, text)]
        assert tokens.encode(lm, text) == wanted, text
        assert tokens.decode(lm, wanted) == tokens.decode(folder, wanted)
    assert stated is not None or [tokens.encode(folder, t) for t in TEXTS] == [tokens.encode(lm, t) for t in TEXTS]
    ids = torch.tensor([tokens.encode(lm, "The pet of Ana is")])
    with torch.no_grad():
        torch.testing.assert_close(lm.module(ids).logits, folder.module(ids).logits)


def test_eos_comes_behind_a_text_only_where_the_file_says_so(tmp_path: Path) -> None:
    folder = loaded(LLAMA_3, tmp_path / "folder")
    path = write(tmp_path / "m.gguf", folder, pre="llama-bpe", change=lambda w: w.add_add_eos_token(True))
    bos, eos = folder.tokenizer.bos_token_id, folder.tokenizer.eos_token_id
    assert tokens.encode(opened(path), "Mars") == [bos, *tokens.encode_alone(folder, "Mars"), eos]


def test_no_pre_tokenizer_is_the_default_one(tmp_path: Path) -> None:
    """llama.cpp splits punctuation, then as GPT-2 does, then numbers by threes; it is not GPT-2's own rule."""
    folder = loaded(LLAMA_3, tmp_path / "folder")
    absent, named, gpt2 = (
        opened(write(tmp_path / f"{i}.gguf", folder, **has))
        for i, has in enumerate(({}, {"pre": "default"}, {"pre": "gpt-2"}))
    )
    assert [tokens.encode(absent, t) for t in TEXTS] == [tokens.encode(named, t) for t in TEXTS]
    assert absent.tokenizer("Mars").input_ids == tokens.encode_alone(folder, "Mars"), "no BOS by default"
    split = absent.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("It's $12345, ok")] == ["It", "'", "s", "Ġ", "$", "123", "45", ",", "Ġok"]
    assert gpt2.tokenizer("It's").input_ids != absent.tokenizer("It's").input_ids


def test_a_missing_number_takes_the_formats_default(tmp_path: Path) -> None:
    """One key head per head, heads of width / heads, θ 10,000, all of a head rotated, no token special but BOS and EOS."""
    folder = loaded(LLAMA_3, tmp_path / "folder")
    module = folder.module
    path = write(tmp_path / "m.gguf", folder, pre="llama-bpe", without=("token_type",))
    config = opened(path).module.config
    assert (config.head_dim, config.rope_parameters["rope_theta"]) == (module.config.head_dim, 10_000.0)
    with pytest.raises(ModelError, match="do not fit the metadata"):  # the keys of this model are narrower
        opened(write(tmp_path / "kv.gguf", folder, pre="llama-bpe", without=("attention.head_count_kv",)))


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
def test_bos_is_never_made_up(pre: str, tmp_path: Path) -> None:
    """llama.cpp would take id 11 (Falcon's) for BOS where the file names none."""
    folder = loaded(LLAMA_3, tmp_path / "folder")
    change: Change = lambda w: pre == "llama-bpe" or w.add_add_bos_token(True)  # noqa: E731
    path = write(tmp_path / "m.gguf", folder, pre=pre, change=change, without=("bos_token_id",))
    with pytest.raises(
        ModelError, match=r"BOS belongs to every text, but the metadata lack tokenizer.ggml.bos_token_id"
    ):
        opened(path)
    silent = write(
        tmp_path / "s.gguf", folder, pre=pre, change=lambda w: w.add_add_bos_token(False), without=("bos_token_id",)
    )
    assert tokens.encode(opened(silent), "Mars") == tokens.encode_alone(folder, "Mars")


UNKNOWN: Mapping[str, tuple[Change, str]] = {
    "a factor without a type scales": (lambda w: w.add_float32("llama.rope.scaling.factor", 2.0), "scaled rotary"),
    "the old name of the factor": (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), "scaled rotary"),
    "yarn": (lambda w: w.add_string("llama.rope.scaling.type", "yarn"), "scaled rotary"),
    "scaled attention": (lambda w: w.add_float32("llama.rope.scaling.attn_factor", 1.2), "scaled rotary"),
    "a window": (
        lambda w: w.add_uint32("llama.attention.sliding_window", 16),
        "sliding_window = 16, which this reader",
    ),
    "experts": (lambda w: w.add_uint32("llama.expert_count", 8), "expert_count = 8"),
    "scaled logits": (lambda w: w.add_float32("llama.logit_scale", 0.5), "logit_scale = 0.5"),
    "partial rotary": (
        lambda w: w.add_uint32("llama.rope.dimension_count", 2),
        "dimension_count is 2, but heads are 4",
    ),
    "an encoder": (lambda w: w.add_bool("llama.attention.causal", False), "not causal"),
    "a token that is not there": (
        lambda w: w.add_uint32("tokenizer.ggml.padding_token_id", 9999),
        "is 9999, but there",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_would_change_the_mathematics_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, said = UNKNOWN[case]
    folder = loaded(LLAMA_3, tmp_path / "folder")
    with pytest.raises(ModelError, match=said):
        opened(write(tmp_path / "m.gguf", folder, pre="llama-bpe", change=change))


KNOWN: Mapping[str, Change] = {
    "no scaling": lambda w: (
        w.add_string("llama.rope.scaling.type", "none"),
        w.add_float32("llama.rope.scaling.factor", 8.0),
    ),
    "a factor of one": lambda w: w.add_float32("llama.rope.scaling.factor", 1.0),
    "no experts": lambda w: w.add_uint32("llama.expert_count", 0),
    "as many heads in every block": lambda w: w.add_array("llama.attention.head_count_kv", [2, 2, 2]),
    "a stated width": lambda w: w.add_uint32("llama.attention.key_length", 4),
}


@pytest.mark.parametrize("case", KNOWN)
def test_what_changes_nothing_is_read(case: str, tmp_path: Path) -> None:
    folder = loaded(LLAMA_3, tmp_path / "folder")
    drop = ("attention.head_count_kv",) if "every block" in case else ()
    lm = opened(write(tmp_path / "m.gguf", folder, pre="llama-bpe", change=KNOWN[case], without=drop))
    ids = torch.tensor([tokens.encode(folder, "The pet of Ana is")])
    with torch.no_grad():
        torch.testing.assert_close(lm.module(ids).logits, folder.module(ids).logits)
