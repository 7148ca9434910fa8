"""A workspace with a model folder of every kind of file, a data file and a hyper-parameter file, planned in milliseconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from raysweep.config.plan import plan
from raysweep.config.schema import TrialSpec
from raysweep.config.sweep import parse_search_space
from raysweep.testing.fixtures import byte_tokenizer
from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace, package_share

JSON = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "quantize_config.json")
OTHER = {
    "merges.txt": "#version: 0.2\n",
    "vocab.txt": "a\n",
    "vocab.json": '{"a": 0}',
    "tokenizer.model": "pieces",
    "tekken.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "modeling_own.py": "A = 1\n",
    "parts/layers.py": "B = 1\n",
}


def write_model(folder: Path) -> Path:
    """Write a tiny Llama with a byte tokenizer, and files of every kind that a loader may read."""
    folder.mkdir(parents=True)
    model = tiny_model("llama", vocab_size=258, tie_word_embeddings=False, max_position_embeddings=256)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer(bos=True).save_pretrained(folder)
    for name in JSON:
        (folder / name).write_text("{}", encoding="utf-8")
    for name, text in OTHER.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("files") / "m")


@pytest.fixture
def root(tmp_path: Path, model_files: Path) -> Path:
    """A workspace's folder."""
    shutil.copytree(model_files, tmp_path / "m")
    shutil.copy(package_share() / "data/ZsRE/sample.json", tmp_path / "zsre-edit.json")
    shutil.copy(package_share() / "data/ZsRE/sample.json", tmp_path / "zsre-train.json")
    (tmp_path / "text.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    for name, text in {"rome": "layers: [1]", "simie": "lam: 10"}.items():
        (tmp_path / "hparams" / name).mkdir(parents=True)
        (tmp_path / "hparams" / name / "m.yaml").write_text(f"source: a test\n{text}\n", encoding="utf-8")
    return tmp_path


Planned = Callable[..., TrialSpec]


@pytest.fixture
def planned(root: Path) -> Planned:
    """Return a function that plans the one trial of a small sweep; *changed* replaces keys of its base."""

    def one(**changed: Any) -> TrialSpec:
        base = {
            "model": {"name": "m", "path": "m"},
            "data": {"name": "zsre", "path": "zsre-edit.json", "size": 3},
            "protocol": {"rounds": [0, 3]},
        }
        text = {"moments": {"text": {"name": "own", "path": "text.txt"}}}
        tree = {
            "sweep": "s",
            "base": base | changed,
            "arms": {"a": {"editor": {"name": "rome", **text}, "wrap": "simie"}},
        }
        (found,) = plan(parse_search_space(json.loads(json.dumps(tree)), file="flags"), Workspace(root)).trials
        return found.trial

    return one
