"""Second moments and projectors that other programs stored; the files are written here as those programs write them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.artifacts import ArtifactRequest, Built
from raysweep.config.schema import without_paths
from raysweep.config.shared_specs import FileSpec, MomentSpec
from raysweep.editors.alphaedit import AlphaEdit, AlphaEditConfig
from raysweep.editors.locate import foreign
from raysweep.editors.memit import Memit, MemitConfig
from raysweep.errors import ArtifactError
from raysweep.models.lm import LanguageModel
from raysweep.testing.fixtures import tiny_lm


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm("gpt2")


def width(lm: LanguageModel) -> int:
    return int(lm.logical("transformer.h.1.mlp.c_proj.weight").shape[1])


def npz(folder: Path, layer: int, size: int, **changed: Any) -> FileSpec:
    """Write what MEMIT's ``layer_stats.py`` leaves of a layer."""
    keys = torch.randn(64, size, generator=torch.Generator().manual_seed(layer))
    stored = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": 64,
        "mom2.mom2": (keys.T @ keys).numpy(),
        "sample_size": 100000,
    }
    file = folder / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz"
    np.savez(file, **{k: v for k, v in (stored | changed).items() if v is not None})
    return FileSpec(path=str(file))


def memit(lm: LanguageModel, *files: FileSpec) -> Mapping[str, ArtifactRequest]:
    return Memit(MemitConfig(layers=(1, 2), moments=MomentSpec(files=files))).artifact_requests(lm)


def built(lm: LanguageModel, request: ArtifactRequest) -> Built:
    return (foreign.build_moments if request.kind == "moments" else foreign.build_projectors)(lm, [request], iter(()))[
        0
    ]


def test_moments_are_the_mean_of_their_sum_each_from_the_file_of_its_module(lm: LanguageModel, tmp_path: Path) -> None:
    files = [npz(tmp_path, layer, width(lm)) for layer in (2, 1)]
    requests = memit(lm, *files)
    for layer in (1, 2):
        tensors, meta = built(lm, requests[f"moments/{layer}"])
        keys = torch.randn(64, width(lm), generator=torch.Generator().manual_seed(layer))
        assert torch.allclose(tensors["moments"], keys.T @ keys / 64, atol=1e-5)
        assert meta == {"tokens": 64}
        assert requests[f"moments/{layer}"].text is None


def test_the_file_is_in_the_key_and_its_place_is_not(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = npz(tmp_path, 1, width(lm)), npz(tmp_path / "other", 1, width(lm))
    third = npz(tmp_path / "other", 2, width(lm), **{"mom2.count": 7})
    here, there = memit(lm, first, third)["moments/1"], memit(lm, second, third)["moments/1"]
    assert (here.inputs, here.where == there.where) == (there.inputs, False)
    npz(tmp_path, 1, width(lm), **{"mom2.count": 7})
    assert memit(lm, first, third)["moments/1"].inputs != here.inputs
    with pytest.raises(ArtifactError, match="which the plan saw"):
        built(lm, here)


def test_a_trial_has_the_digest_of_each_file_in_its_key() -> None:
    def key(*files: FileSpec) -> object:
        return without_paths(MomentSpec(files=files).model_dump(mode="json"))

    first, moved, other = (FileSpec(path=p, digest=d) for p, d in (("a", "x"), ("b", "x"), ("a", "y")))
    assert key(first) == key(moved)
    assert len({str(key()), str(key(first)), str(key(other)), str(key(first, other))}) == 4
    assert "files" not in MomentSpec().model_dump()


def test_a_layer_without_a_file_or_with_two_is_refused_by_name(lm: LanguageModel, tmp_path: Path) -> None:
    one = npz(tmp_path, 1, width(lm))
    with pytest.raises(ArtifactError, match=r"no file is of transformer\.h\.2\.mlp\.c_proj, among transformer\.h\.1"):
        memit(lm, one)
    with pytest.raises(ArtifactError, match=r"2 files are of transformer\.h\.1"):
        memit(lm, one, one)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mom2.count": None}, "has no mom2.count"),
        ({"mom2.count": 0}, "mom2.count is 0"),
        (
            {"mom2.mom2": np.eye(5, dtype=np.float32)},
            r"mom2.mom2 is \[5, 5\], and transformer.h.1.mlp.c_proj reads vectors",
        ),
        ({"mom2.mom2": np.array([{"a": 1}], dtype=object)}, "not an .npz of second moments"),
        ({"mom2.mom2": "triangle"}, "no matrix of second moments"),
    ],
)
def test_moments_that_are_none(lm: LanguageModel, tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    if changed.get("mom2.mom2") is not None and isinstance(changed["mom2.mom2"], str):
        changed = {"mom2.mom2": np.triu(np.ones((width(lm), width(lm)), dtype=np.float32))}
    file = npz(tmp_path, 1, width(lm), **changed)
    with pytest.raises(ArtifactError, match=words):
        built(lm, foreign.moments_request(lm, "transformer.h.1.mlp.c_proj", [file]))


def test_a_file_that_was_cut_short(lm: LanguageModel, tmp_path: Path) -> None:
    file = npz(tmp_path, 1, width(lm))
    whole = Path(file.path).read_bytes()
    Path(file.path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="was it cut short"):
        built(lm, foreign.moments_request(lm, "transformer.h.1.mlp.c_proj", [file]))


def projector(size: int, rank: int, seed: int) -> torch.Tensor:
    basis, _ = torch.linalg.qr(torch.randn(size, rank, generator=torch.Generator().manual_seed(seed)))
    return basis @ basis.T


def alphaedit(lm: LanguageModel, file: Path) -> Mapping[str, ArtifactRequest]:
    return AlphaEdit(AlphaEditConfig(layers=(1, 2), null_space=FileSpec(path=str(file)))).artifact_requests(lm)


def test_projectors_are_those_of_the_file_in_the_order_of_the_layers(lm: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "null_space_project.pt"
    whole = torch.stack([projector(width(lm), rank, rank) for rank in (3, 5)])
    torch.save(whole, file)
    requests = alphaedit(lm, file)
    for i, (layer, rank) in enumerate(((1, 3), (2, 5))):
        tensors, meta = built(lm, requests[f"projector/{layer}"])
        assert torch.equal(tensors["projector"], whole[i])
        assert meta == {"kept_rank": rank, "width": width(lm)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: torch.stack([projector(d, 3, 0)]), r"for the layers \[1, 2\] of this model it is \[2, "),
        (lambda d: torch.eye(4).repeat(2, 1, 1), "is the file of another model|of other layers"),
        (lambda d: torch.eye(d).repeat(2, 1, 1) * 2, "matrix 0, of layer 1, is no projector"),
        (lambda d: torch.full((2, d, d), float("nan")), "is no projector"),
        (lambda d: {"P": torch.eye(d)}, "holds no tensor of projectors"),
    ],
)
def test_projectors_that_are_none(lm: LanguageModel, tmp_path: Path, make: Any, words: str) -> None:
    torch.save(make(width(lm)), tmp_path / "p.pt")
    with pytest.raises(ArtifactError, match=words):
        built(lm, alphaedit(lm, tmp_path / "p.pt")["projector/1"])


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_nothing_of_a_file_is_run(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtifactError, match="cannot be read safely"):
        built(lm, alphaedit(lm, tmp_path / "p.pt")["projector/1"])
    assert not (tmp_path / "exploded").exists()
