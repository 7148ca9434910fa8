"""Model folders and GGUF files of every kind of damage: a plan and the loader itself answer in words, in time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.config.schema import ModelSpec
from raysweep.models.load import load
from raysweep.workspace import Workspace
from tests.fuzz.conftest import share
from tests.fuzz.mutate import damaged, trees, written
from tests.fuzz.oracle import ACCEPTED, Tally
from tests.unit.models.conftest import save_tiny
from tests.unit.models.test_gguf import write_gguf

SPACE = """\
sweep: fuzz
base:
  model: {name: m, path: MODEL, hparams: embedded}
  data: {name: zsre, path: short.json, size: 2}
arms: {ft: {editor: {name: ft, layers: [1]}}}
"""
SHORT = [  # the tiny models have 32 positions
    {
        "src": f"{name} eats",
        "alt": "figs",
        "subject": name,
        "rephrase": f"Eats {name}",
        "loc": "nq: up",
        "loc_ans": "up",
    }
    for name in ("Ana", "Bo")
]
KINDS = ("gpt2", "gptj", "llama", "mistral", "qwen2", "qwen3")
TREES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json")
STRAYS = (
    "adapter_config.json",
    "quantize_config.json",
    "pytorch_model.bin.index.json",
    "generation_config.json",
    "special_tokens_map.json",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {kind: save_tiny(base / kind, kind) for kind in KINDS}


def tried(path: Path, root: Path, tally: Tally, kind: str) -> None:
    (root / "short.json").write_text(json.dumps(SHORT))
    (root / "fuzz.yaml").write_text(SPACE.replace("MODEL", json.dumps(str(path))))
    tally.command(f"{kind}, plan", "validate", "fuzz.yaml")
    tally.command(f"{kind}, info", "models", "info", "m", "--path", str(path))
    tally.call(f"{kind}, load", lambda: load(ModelSpec(name="m", path=str(path)), Workspace(root)))


def copied(folder: Path, root: Path) -> Path:
    shutil.rmtree(root / "m", ignore_errors=True)
    return Path(shutil.copytree(folder, root / "m"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_are_accepted(kind: str, good: dict[str, Path], root: Path) -> None:
    """Else the others would try nothing but the refusal of what they have in common."""
    tally = Tally()
    tried(good[kind], root, tally, "model folders, undamaged")
    assert {outcome for _, outcome in tally.outcomes} == {ACCEPTED}


@given(kind=st.sampled_from(KINDS), name=st.sampled_from(TREES), data=st.data())
@share(0.12)
def test_odd_json(kind: str, name: str, data: st.DataObject, good: dict[str, Path], root: Path, tally: Tally) -> None:
    folder = copied(good[kind], root)
    file = folder / name
    tree: Any = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "x.safetensors"}}
    if file.is_file():
        tree = json.loads(file.read_text(encoding="utf-8"))
    else:
        (folder / "model.safetensors").rename(folder / "x.safetensors")
    file.write_bytes(data.draw(written(data.draw(trees(tree)))))
    tried(folder, root, tally, "model folders, odd JSON")


@given(kind=st.sampled_from(KINDS), name=st.sampled_from([*TREES[:3], *["model.safetensors"] * 2]), data=st.data())
@share(0.08)
def test_damaged_files(
    kind: str, name: str, data: st.DataObject, good: dict[str, Path], root: Path, tally: Tally
) -> None:
    folder = copied(good[kind], root)
    raw = (folder / name).read_bytes()
    head = raw[:2000]  # where a safetensors file is more than numbers
    (folder / name).write_bytes(data.draw(damaged(head)) + raw[2000:])
    tried(folder, root, tally, "model folders, damaged files")


@given(kind=st.sampled_from(KINDS), data=st.data())
@share(0.05)
def test_missing_and_stray_files(
    kind: str, data: st.DataObject, good: dict[str, Path], root: Path, tally: Tally
) -> None:
    folder = copied(good[kind], root)
    for name in data.draw(st.lists(st.sampled_from(sorted(p.name for p in folder.iterdir())), max_size=2, unique=True)):
        (folder / name).unlink()
    for name in data.draw(st.lists(st.sampled_from(STRAYS), max_size=2, unique=True)):
        (folder / name).write_bytes(
            data.draw(written(data.draw(trees({"quant_method": "gptq", "weight_map": {"a": "b"}, "bits": 4}))))
        )
    tried(folder, root, tally, "model folders, missing and stray files")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def test_the_undamaged_gguf_is_accepted(gguf: bytes, root: Path) -> None:
    (root / "m.gguf").write_bytes(gguf)
    tally = Tally()
    tried(root / "m.gguf", root, tally, "GGUF files, undamaged")
    assert {outcome for _, outcome in tally.outcomes} == {ACCEPTED}


@given(data=st.data())
@share(0.09)
def test_damaged_gguf(data: st.DataObject, gguf: bytes, root: Path, tally: Tally) -> None:
    end = gguf.index(b"output_norm") + 2000
    (root / "m.gguf").write_bytes(data.draw(damaged(gguf[:end])) + gguf[end:])
    tried(root / "m.gguf", root, tally, "GGUF files")
