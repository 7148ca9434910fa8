"""``raysweep models check``: everything that is missing or damaged, at once, by file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from raysweep.cli.main import main
from raysweep.downloads.record import write_record
from raysweep.downloads.web import Remote
from raysweep.models.sources.check import problems
from tests.unit.models.conftest import save_tiny
from tests.unit.models.sharded import shard
from tests.unit.models.test_gguf import write_gguf

Make = Callable[..., Path]
ONE, TWO = "model-1-of-2.safetensors", "model-2-of-2.safetensors"


@pytest.fixture
def folder(make_folder: Make) -> Path:
    return shard(make_folder(name="llama"))


def found(where: Path) -> list[str]:
    return [f"{p.message} | {p.hint}" for p in problems(where)]


def configure(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def drop_tensor(folder: Path) -> None:
    state = load_file(folder / TWO)
    del state["model.norm.weight"]
    save_file(state, folder / TWO)


def other_tokenizer(folder: Path) -> None:
    larger = save_tiny(folder.parent / "larger", "llama", vocabulary=300)
    tokenizer = json.loads((larger / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["\u0100\u0101"] = 280
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(("hurt", "said"), [
    (lambda f: (f / TWO).unlink(), [f"missing weight files: {TWO} | model.safetensors.index.json asks for them"]),
    (lambda f: (f / TWO).write_bytes((f / TWO).read_bytes()[:-100]), ["bytes, but its header promises"]),
    (lambda f: (f / ONE).write_text("version https://git-lfs.github.com/spec/v1\n"), [f"{ONE}: not a safetensors file"]),
    (drop_tensor, [f"{TWO}: lacks 1 tensors that model.safetensors.index.json promises, such as 'model.norm.weight'"]),
    (lambda f: configure(f, vocab_size=260), ["vocab_size is 260, but the embedding in the weights has 259 rows"]),
    (lambda f: configure(f, num_hidden_layers=9), ["config.json: 9 blocks, but the weights have"]),
    (lambda f: configure(f, hidden_size=-1), ["hidden_size is -1"]),
    (lambda f: configure(f, model_type="lama"), ["no layout for model_type 'lama' | did you mean: llama?"]),
    (other_tokenizer, ["the vocabulary goes up to id 280, the embedding has only 259 rows"]),
    (lambda f: (f / "config.json").write_text("{"), ["config.json: not JSON"]),
    (lambda f: (f / "config.json").unlink(), ["no config.json"]),
    (lambda f: (f / "model.safetensors.index.json").write_text("{}"), ["no table 'weight_map'"]),
    (lambda f: ((f / ONE).unlink(), (f / TWO).write_bytes(b""), (f / "tokenizer.json").unlink()),
     ["no tokenizer", f"missing weight files: {ONE}", f"{TWO}: not a safetensors file"]),
])  # fmt: skip
def test_what_is_wrong_is_told_by_file(folder: Path, hurt: Callable[[Path], object], said: list[str]) -> None:
    assert not found(folder)
    hurt(folder)
    told = found(folder)
    assert len(told) == len(said), told
    for wanted, message in zip(said, told, strict=True):
        assert wanted in message


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_sound_model_of_each_kind_of_names(make_folder: Make, family: str) -> None:
    folder = make_folder(family)
    assert not found(folder)
    configure(folder, vocab_size=258)
    assert "vocab_size is 258, but the embedding in the weights has 259 rows" in "".join(found(folder))


def test_files_are_as_they_were_fetched(folder: Path) -> None:
    (folder / "README.md").write_text("a")
    known = Remote(url="https://x/y", sha256="0" * 64)
    write_record(
        folder, {"README.md": known, "tokenizer_config.json": Remote(url="", size=1), "gone.py": known}, commit="c"
    )
    told = "\n".join(found(folder))
    assert "README.md: sha256 is" in told
    assert "bytes, expected 1" in told
    assert "gone.py: was fetched, and is not there any more" in told


def test_gguf(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(file)
    assert not found(file)
    file.write_bytes(file.read_bytes()[:-64])
    assert "bytes before its last tensor does" in "".join(found(file))
    write_gguf(file, drop="model.embed_tokens.weight")
    assert "no embedding" in "".join(found(file))


def test_from_the_shell(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    assert main(["models", "check", "llama"]) == 0
    assert f"{folder}: whole, " in capsys.readouterr().out
    (folder / ONE).unlink()
    configure(folder, vocab_size=5)
    assert main(["models", "check", "./llama"]) == 2
    assert "2 errors" in capsys.readouterr().err
    assert main(["models", "check", "embedded"]) == 0
