"""What a plan asks of a model folder or GGUF file: everything that loading would refuse, by file and cure, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from raysweep.config.schema import ModelSpec
from raysweep.errors import MissingExtraError, ModelError
from raysweep.models.sources import gguf_header, load, tokenizers
from raysweep.models.sources.catalogue import fingerprint
from raysweep.models.sources.facts import facts
from raysweep.models.sources.folder import check_folder, weight_files
from raysweep.models.tokens import encode
from raysweep.workspace import Workspace

from .test_gguf import write_gguf

Make = Callable[..., Path]


def ask(folder: Path, workspace: Workspace, **more: Any) -> Any:
    return facts(ModelSpec(name="m", path=str(folder), **more), workspace)


def refused(folder: Path, workspace: Workspace, **more: Any) -> str:
    with pytest.raises(ModelError) as caught:
        ask(folder, workspace, **more)
    assert caught.value.hint
    return str(caught.value)


def edit(file: Path, **changes: Any) -> None:
    tree = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({k: v for k, v in {**tree, **changes}.items() if v != "GONE"}), encoding="utf-8")


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama", "mistral", "qwen2", "qwen3"])
def test_a_plan_and_the_loaded_model_agree(kind: str, make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder(kind, adds_bos=True)
    known = ask(folder, workspace)
    lm = load.load(ModelSpec(name="m", path=str(folder)), workspace)
    assert (known.blocks, known.positions) == (lm.n_blocks, lm.positions)
    assert known.count("ab cé") == len(encode(lm, "ab cé"))


def test_what_is_not_here_is_not_guessed(workspace: Workspace) -> None:
    assert facts(ModelSpec(name="someone/model"), workspace).blocks == 0
    assert facts(ModelSpec(name="gpt2-xl"), workspace).blocks == 48


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"load_in_8bit": True}, "some method"),
        ("whatever", "some method"),
    ],
)
def test_quantised_weights_are_refused(config: Any, method: str, make_folder: Make, workspace: Workspace) -> None:
    """They passed, and then each trial failed asking for another package (case 15)."""
    folder = make_folder()
    edit(folder / "config.json", quantization_config=config)
    assert f"the weights are quantised ({method}) and cannot be edited" in refused(folder, workspace)


def test_packed_weights_are_seen_without_a_word_in_the_configuration(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    assert "quantised" in refused(folder, workspace)
    (folder / "quantize_config.json").unlink()
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4, dtype=torch.uint8)}, folder / "model.safetensors")
    assert "'model.layers.0.mlp.up_proj.weight' is stored as U8" in refused(folder, workspace)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "lama"}, "no layout for model_type 'lama'\n    did you mean: llama?"),
        ({"model_type": "GONE"}, "no model_type"),
        ({"model_type": 3}, "no model_type"),
        ({"model_type": "odd", "auto_map": {"AutoModel": "m.M"}}, "comes with code of its own (auto_map)"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": "GONE"}, "the sizes of the model are missing"),
        ({"num_attention_heads": 7, "head_dim": None}, "is not a multiple of the 7 heads"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    changes: dict[str, Any], said: str, make_folder: Make, workspace: Workspace
) -> None:
    folder = make_folder()
    edit(folder / "config.json", **changes)
    assert said in refused(folder, workspace)


@pytest.mark.parametrize("text", ["[1]", "null", "3", '"x"', "{", "", "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_json_of_the_wrong_shape_is_refused(name: str, text: str, make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / name).write_bytes(text.encode("latin-1"))
    assert name in refused(folder, workspace)
    if name != "tokenizer.json":
        with pytest.raises(ModelError):
            fingerprint(folder)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"a": "model-00001-of-00002.safetensors", "b": "lost.safetensors"}, "missing weight files: lost.safetensors"),
        ({"a": "../../secret.safetensors"}, "names a file outside the folder"),
        ({"a": 3}, "no table 'weight_map' of file names"),
        ([], "no table 'weight_map' of file names"),
    ],
)
def test_an_index_names_files_of_its_folder(table: Any, said: str, make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert said in refused(folder, workspace)


@pytest.mark.parametrize("index", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_the_index_of_a_format_that_is_not_in_use_is_left_alone(index: str, make_folder: Make) -> None:
    """A download without the *.bin leaves their index behind; transformers loads the folder (case 7)."""
    folder = make_folder()
    (folder / index).write_text(json.dumps({"weight_map": {"a": "lost-00001-of-00002"}}))
    assert [p.name for p in check_folder(folder)] == ["model.safetensors"]


def test_shards_need_their_index(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "neither a whole model.safetensors nor an index" in refused(folder, workspace)


def test_a_pytorch_file_that_was_cut_short_is_refused(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2000)}, folder / "pytorch_model.bin")
    assert [p.name for p in weight_files(folder)] == ["pytorch_model.bin"]
    ask(folder, workspace)
    raw = (folder / "pytorch_model.bin").read_bytes()
    for damage in (raw[:-100], b"version https://git-lfs.github.com/spec/v1"):
        (folder / "pytorch_model.bin").write_bytes(damage)
        assert "not a whole PyTorch file" in refused(folder, workspace)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "this is a tokenizer only"),
        (["adapter_config.json", "adapter_model.safetensors"], "this is a PEFT adapter"),
        (["model.Q4_0.gguf"], "give the file itself as model.path"),
        (["consolidated.00.pth", "params.json", "tokenizer.model"], "a checkpoint in Meta's own layout"),
        (["model_index.json"], "a diffusers pipeline"),
        ([], "no config.json"),
    ],
)
def test_a_folder_of_another_kind_is_called_by_its_name(
    files: list[str], said: str, tmp_path: Path, workspace: Workspace
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    assert said in refused(folder, workspace)


def with_pad(folder: Path) -> Path:
    """Add ``[PAD]`` to the tokenizer alone, as many checkpoints have it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return folder


def test_an_added_pad_without_a_row_is_taken_out(make_folder: Make, workspace: Workspace) -> None:
    """It was refused with a hint that sent people to another model (case 17); a text that spells it out is read as text."""
    plain = load.load(ModelSpec(name="m", path=str(make_folder(name="plain"))), workspace)
    folder = with_pad(make_folder())
    ask(folder, workspace)
    lm = load.load(ModelSpec(name="m", path=str(folder)), workspace)
    for text in ("a b", "a [PAD] b", "</s>[PAD]"):
        assert encode(lm, text) == encode(plain, text)
    assert max(lm.tokenizer.get_vocab().values()) < 259
    assert lm.tokenizer.pad_token == "</s>"


def test_other_tokens_without_a_row_belong_to_another_model(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder(vocabulary=200)
    assert "the vocabulary goes up to id 258, the embedding has only 200 rows" in refused(folder, workspace)


def test_a_bos_that_is_no_token_is_refused(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()
    assert "model.bos '<sop>' is not a token" in refused(folder, workspace, bos="<sop>")
    ask(folder, workspace, bos="<sep>")


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (ImportError("requires accelerate: `pip install accelerate`"), "a package that is not installed", "accelerate"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "not installed", "pip install tiktoken"),
        (MemoryError(), "not enough memory", "smaller"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero", "fetch the model again"),
        (AssertionError(), "AssertionError", "fetch the model again"),
        (ValueError("set trust_remote_code=True"), "trust_remote_code", "model.trust_remote_code: true"),
    ],
)
def test_whatever_a_loader_raises_has_file_and_cure(error: Exception, said: str, hint: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(ModelError) as caught:
        tokenizers.guarded(tmp_path, fail)
    assert said in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert hint in caught.value.hint


class TestGguf:
    def test_a_header_tells_blocks_and_positions(self, tmp_path: Path, workspace: Workspace) -> None:
        known = ask(write_gguf(tmp_path / "m.gguf"), workspace)
        assert (known.blocks, known.positions, known.count) == (3, 32, None)

    @pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
    def test_a_file_cut_short_is_refused(self, share: float, tmp_path: Path, workspace: Workspace) -> None:
        path = write_gguf(tmp_path / "m.gguf")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        assert "not a readable GGUF file" in refused(path, workspace)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda w: w.add_uint16("split.count", 3), "part 1 of 3 of a split GGUF model"),
            (lambda w: w.add_rope_scaling_type(_linear()), "scaled rotary embeddings"),
        ],
        ids=["split", "scaled"],
    )
    def test_kinds_that_are_not_read_are_told(
        self, change: Callable[[Any], None], said: str, tmp_path: Path, workspace: Workspace
    ) -> None:
        assert said in refused(write_gguf(tmp_path / "m.gguf", change=change), workspace)

    def test_a_part_is_told_by_its_name_too(self, tmp_path: Path, workspace: Workspace) -> None:
        path = write_gguf(tmp_path / "m-00002-of-00005.gguf")
        assert "this is part 2 of 5 of a split GGUF model" in refused(path, workspace)

    @pytest.mark.parametrize(("key", "value"), [("arch", "gemma"), ("family", "llama"), ("pre", "tekken")])
    def test_other_families_are_refused_while_planning(
        self, key: str, value: str, tmp_path: Path, workspace: Workspace
    ) -> None:
        assert f"'{value}'" in refused(write_gguf(tmp_path / "m.gguf", **{key: value}), workspace)

    @pytest.mark.parametrize(
        ("head", "said"),
        [
            (b"GGUF" + struct.pack("<I", 1), "version 1; versions 2 and 3 are read"),
            (b"GGUF" + struct.pack(">I", 3), "of the other byte order"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "more than its"),
            (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "more than its"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62) + b"x" * 64, "more than its"),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 0, 1)
                + struct.pack("<Q", 1)
                + b"k"
                + struct.pack("<IIQ", 9, 99, 2)
                + b"\0" * 64,
                "unknown type",
            ),
        ],
        ids=["old", "big-endian", "keys", "tensors", "a text", "an array"],
    )
    def test_no_count_is_believed(self, head: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(head + b"\0" * 64)
        with pytest.raises(ModelError, match="not a readable GGUF file") as caught:
            gguf_header.read_header(tmp_path / "m.gguf")
        assert said in caught.value.message

    def test_the_missing_extra_is_asked_for_while_planning(
        self, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_gguf(tmp_path / "m.gguf")
        monkeypatch.setitem(__import__("sys").modules, "gguf", None)
        with pytest.raises(MissingExtraError, match="'gguf' package"):
            ask(path, workspace)


def _linear() -> Any:
    from gguf import RopeScalingType

    return RopeScalingType.LINEAR
