"""What a process loads once however many trials it serves: the model, and each artifact's file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep import artifacts as artifacts_module
from raysweep.artifacts import ArtifactRequest, ArtifactStore
from raysweep.config.plan import plan
from raysweep.config.sweep import parse_search_space
from raysweep.models.sources import load as load_module
from raysweep.results.store import ResultStore, State
from raysweep.tune.trainable import Trainable
from raysweep.workspace import Workspace

CHEAP = {
    "name": "rome",
    "layers": [1],
    "value": {"steps": 1, "lr": 0.5, "weight_decay": 1.0e-3, "clamp": 4, "kl": 0.0625},
    "contexts": {"lengths": [[6, 2]]},
    "moments": {"text": {"name": "dataset", "tokens": 800}, "width": 64, "damping": 0.01},
}
REQUEST = ArtifactRequest(kind="moments", inputs={"layer": 1}, builder="a:b", model="m")


def test_an_actor_loads_its_model_and_maps_each_artifact_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "sweep": "s",
        "base": {"model": "embedded", "data": {"name": "world", "size": 1}, "protocol": {"rounds": [0, 1]}},
        "arms": {"rome": {"editor": CHEAP}},
        "space": {"seed": {"grid": [0, 1, 2]}},
    }
    workspace = Workspace(tmp_path)
    found = plan(parse_search_space(tree, file="flags"), workspace)
    models: list[str] = []
    files: Counter[Path] = Counter()
    load, digest = load_module.load, artifacts_module.file_digest

    def counted_load(spec: Any, *arguments: Any) -> Any:
        models.append(spec.name)
        return load(spec, *arguments)

    def counted_digest(path: Path, **options: Any) -> str:
        files[path] += not path.parent.name.startswith(".")  # a draft is hashed by whoever writes it
        return digest(path, **options)

    monkeypatch.setattr(load_module, "load", counted_load)
    monkeypatch.setattr(artifacts_module, "file_digest", counted_digest)
    # The actor as Ray uses it, without Ray: set up with its first trial, then given one after the other.
    actor = Trainable.__new__(Trainable)
    keys = [t.key for t in found.trials]
    actor.setup({"trial": keys[0]}, table={t.key: t for t in found.trials}, workspace=workspace, sweep="s")
    for key in keys:
        actor.reset_config({"trial": key})
        while not actor.step()["done"]:
            pass
    store = ResultStore(workspace.results("s"))
    assert [store.status(key).state for key in keys] == [State.DONE] * 3
    assert models == ["embedded"]
    kinds = Counter(path.parent.parent.name for path in files)
    assert kinds["moments"] >= 1
    assert set(files.values()) <= {0, 1}, files


def built(store: ArtifactStore, value: float = 1.0) -> torch.Tensor:
    return store.get_or_build(REQUEST, lambda: ({"gram": torch.full((3,), value)}, {})).tensors["gram"]


def test_an_artifact_that_somebody_wrote_into_is_read_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = built(store)
    assert built(store) is first
    first += 1
    second = built(store)
    assert second is not first
    assert second.tolist() == [1, 1, 1]


def test_an_artifact_whose_file_changed_is_looked_at_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    built(store)
    file = store.folder(REQUEST) / "data.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(artifacts_module.ArtifactError, match="does not match its recorded hash"):
        built(store)


def test_a_store_keeps_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts_module, "KEPT", 2)
    store = ArtifactStore(tmp_path)
    for layer in range(5):
        request = ArtifactRequest(kind="moments", inputs={"layer": layer}, builder="a:b", model="m")
        store.get_or_build(request, lambda: ({"gram": torch.ones(3)}, {}))
    assert len(store._read) == 2
