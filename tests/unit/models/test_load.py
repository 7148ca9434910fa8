"""Loading: what comes out, and what is said when it cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError
from raysweep.models.sources import catalogue
from raysweep.models.sources.load import load
from raysweep.models.sources.tokenizers import fit_tokenizer
from raysweep.models.tokens import encode
from raysweep.runtime import device
from raysweep.workspace import Workspace

from .conftest import byte_tokenizer, save_tiny

Make = Callable[..., Path]


def spec(folder: Path, **values: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "tiny", "path": str(folder), **values})


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gptj"])
def test_a_loaded_model_is_ready_to_be_edited(model_type: str, make_folder: Make, workspace: Workspace) -> None:
    lm = load(spec(make_folder(model_type)), workspace)
    assert not lm.module.training
    assert not any(p.requires_grad for p in lm.module.parameters())
    assert lm.tokenizer.pad_token == "</s>"
    assert (lm.n_blocks, lm.dtype, lm.bos) == (3, torch.float32, ())
    assert lm.layout.model_type == model_type
    assert len(lm.digest) == 16
    with torch.no_grad():
        assert lm.module(torch.tensor([encode(lm, "ab")], device=lm.device)).logits.shape == (1, 2, 259)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_specs(dtype: str, make_folder: Make, workspace: Workspace) -> None:
    lm = load(spec(make_folder(), dtype=dtype), workspace)
    assert {p.dtype for p in lm.module.parameters()} == {getattr(torch, dtype)}


def test_weights_are_the_files(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder("qwen2")
    lm = load(spec(folder), workspace)
    state = lm.module.state_dict()
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(state[name].cpu(), value), name


def test_a_generic_tokenizer_is_read_as_it_is(make_folder: Make, workspace: Workspace) -> None:
    for model_type in ("llama", "qwen2", "gpt2"):
        lm = load(spec(make_folder(model_type, name=model_type)), workspace)
        assert lm.tokenizer.get_vocab() == byte_tokenizer().get_vocab(), model_type
        assert lm.tokenizer.backend_tokenizer.pre_tokenizer.__class__.__name__ == "ByteLevel"


def test_the_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device().type == kind


def test_bos_policies(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder(adds_bos=True)
    bare = [byte_tokenizer().get_vocab()[c] for c in "ab"]
    for bos, wanted in (
        ("auto", [0, *bare]),
        ("tokenizer", [0, *bare]),
        ("none", bare),
        ("<sep>", [2, *bare]),
        ("<s>", [0, *bare]),
    ):
        lm = load(spec(folder, bos=bos), workspace)
        assert encode(lm, "ab") == wanted, bos
        assert lm.bos == ((wanted[0],) if bos.startswith("<") else ())


def test_an_unknown_bos_suggests_the_special_tokens(make_folder: Make, workspace: Workspace) -> None:
    with pytest.raises(ModelError, match=r"model.bos '<S>' is not a token") as caught:
        load(spec(make_folder(), bos="<S>"), workspace)
    assert "</s>, <s>" in caught.value.hint


def test_files_changed_since_the_plan_are_refused(make_folder: Make, workspace: Workspace) -> None:
    planned = catalogue.resolve(spec(make_folder()), workspace)
    assert load(planned, workspace).digest == planned.digest
    with pytest.raises(ModelError, match=r"has fingerprint [0-9a-f]{16}, the plan saw feed"):
        load(planned.model_copy(update={"digest": "feed"}), workspace)


def test_weights_that_are_not_finite_are_refused(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights hold NaN or infinity, first 'model.norm.weight'"):
        load(spec(folder), workspace)


def test_large_half_precision_weights_are_finite(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"].fill_(60_000.0)  # their sum overflows float16
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(spec(folder, dtype="float16"), workspace).dtype == torch.float16
    state["model.embed_tokens.weight"].fill_(70_000.0)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="NaN or infinity") as caught:
        load(spec(folder, dtype="float16"), workspace)
    assert "too narrow" in caught.value.hint


def test_a_model_that_float16_cannot_hold_is_refused_with_the_reason(make_folder: Make, workspace: Workspace) -> None:
    """Its weights fit, what it computes does not: as in models that were trained in bf16."""
    folder = make_folder()
    state = load_file(folder / "model.safetensors")
    for name in ("up_proj", "down_proj"):
        state[f"model.layers.1.mlp.{name}.weight"] *= 1e4
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"in float16 this model gives NaN or infinity .* pass 65504") as caught:
        load(spec(folder, dtype="float16"), workspace)
    assert "bfloat16" in caught.value.hint
    for dtype in ("bfloat16", "float32"):
        load(spec(folder, dtype=dtype), workspace)


def test_missing_weights_are_never_made_up(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.down_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*: model.layers.1.mlp.down_proj.weight"):
        load(spec(folder), workspace)


def test_an_unknown_architecture_is_refused_before_weights_are_read(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "opt"}), encoding="utf-8")
    with pytest.raises(ModelError, match="no layout for model_type 'opt'"):
        load(spec(folder), workspace)


def test_a_damaged_tokenizer_is_reported(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(spec(folder), workspace)


def test_a_tokenizer_larger_than_the_embedding_is_refused(make_folder: Make, workspace: Workspace) -> None:
    with pytest.raises(ModelError, match="the tokenizer has id 258, the embedding only 200 rows"):
        load(spec(make_folder(vocabulary=200)), workspace)


def test_a_tokenizer_without_pad_and_eos_is_refused() -> None:
    with pytest.raises(ModelError, match="neither a pad nor an EOS token"):
        fit_tokenizer(byte_tokenizer(eos=False), "tokenizer", vocabulary=300)


@pytest.mark.parametrize(
    ("raised", "hint"),
    [
        ("We couldn't connect to 'https://huggingface.co'", "offline models: 'embedded'"),
        ("You are trying to access a gated repo.", "hf auth login"),
        ("set the option `trust_remote_code=True`", "model.trust_remote_code: true"),
    ],
)
def test_a_hub_failure_says_what_to_do(
    raised: str, hint: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fail(where: str, **options: Any) -> None:
        asked.update(options, where=where)
        raise OSError(raised)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ModelError, match="hub model 'meta-llama/Llama-2-7b-hf' cannot be loaded") as caught:
        load(ModelSpec(name="llama-2-7b", revision="abc"), workspace)
    assert hint in caught.value.hint
    assert asked["where"] == "meta-llama/Llama-2-7b-hf"
    assert (asked["trust_remote_code"], asked["local_files_only"], asked["revision"]) == (False, False, "abc")


def test_local_folders_never_ask_the_network(make_folder: Make, workspace: Workspace, monkeypatch: Any) -> None:
    seen: list[bool] = []
    real = transformers.AutoConfig.from_pretrained

    def watch(where: Any, **options: Any) -> Any:
        seen.append(options["local_files_only"])
        return real(where, **options)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", watch)
    load(spec(make_folder()), workspace)
    assert set(seen) == {True}


@pytest.mark.skipif(
    not (catalogue.embedded_folder() / "config.json").is_file(), reason="the embedded model is not built"
)
def test_the_embedded_model_loads(workspace: Workspace) -> None:
    lm = load(ModelSpec(), workspace)
    assert lm.layout.model_type == "llama"
    assert lm.dtype == torch.float32
    assert encode(lm, "a")[0] == lm.tokenizer.bos_token_id


@pytest.mark.parametrize("value", [[10**30], "long", {"a": 1}])
def test_a_tokenizer_that_opens_but_cannot_encode_is_refused(value: object, tmp_path: Path) -> None:
    """An odd value of its configuration is met on the first text only: by the plan, which takes the tokenizer's digest."""
    folder = save_tiny(tmp_path / "m", "gpt2")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "model_max_length": value}))
    for call in (catalogue.resolve, load):
        with pytest.raises(ModelError, match="the tokenizer cannot encode a text: TypeError"):
            call(ModelSpec(name="m", path=str(folder)), Workspace(tmp_path))


def test_a_special_token_written_as_nothing_is_none(tmp_path: Path) -> None:
    """``"bos_token": ""`` is not a token without a number, which nothing could sort or compare."""
    folder = save_tiny(tmp_path / "m", "gpt2")
    file = folder / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    digests = []
    for empty in ({"bos_token": ""}, {"bos_token": None}):
        file.write_text(json.dumps({**written, **empty}))
        digests.append(catalogue.resolve(ModelSpec(name="m", path=str(folder)), Workspace(tmp_path)).tokenizer_digest)
        assert load(ModelSpec(name="m", path=str(folder)), Workspace(tmp_path)).tokenizer.bos_token_id is None
    assert digests[0] == digests[1] != ""
    file.write_text(json.dumps({**written, "eos_token": "", "pad_token": ""}))
    with pytest.raises(ModelError, match="neither a pad nor an EOS token"):
        load(ModelSpec(name="m", path=str(folder)), Workspace(tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(value: float, tmp_path: Path) -> None:
    """Python writes them into JSON, and a key cannot hold them."""
    folder = save_tiny(tmp_path / "m", "gpt2")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "add_cross_attention": value}))
    for call in (catalogue.resolve, load):
        with pytest.raises(ModelError, match=r"config\.json: not JSON: (NaN|-?Infinity) is no number of JSON"):
            call(ModelSpec(name="m", path=str(folder)), Workspace(tmp_path))
