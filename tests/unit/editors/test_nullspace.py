"""Null-space projectors, the exact shortcuts of AlphaEdit (docs/methods/alphaedit.md), and what an edit leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raysweep.artifacts import Artifact, ArtifactStore
from raysweep.config.schema import EditorSpec
from raysweep.editors.build import build_editor, provide
from raysweep.editors.linalg import cholesky
from raysweep.editors.locate import layers, null_space, second_moments
from raysweep.editors.specs import MomentSpec
from raysweep.errors import ArtifactError
from raysweep.models import ledger
from raysweep.testing.editor_contract import Exam
from raysweep.testing.fixtures import tiny_lm, toy_records


def spd(d: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    a = (
        torch.randn(d, 2 * d, generator=rng, dtype=torch.float64)
        * torch.logspace(-2, 0.5, d, dtype=torch.float64)[:, None]
    )
    return a @ a.T / (2 * d)


def keys(d: int, n: int, seed: int) -> Tensor:
    return torch.randn(d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(projector: Tensor, gram: Tensor, ridge: float, columns: Tensor) -> Tensor:
    """``(P (K Kᵀ + C_p) + L2 I)⁻¹ P K`` as written (AlphaEdit eq. 13)."""
    eye = torch.eye(len(projector), dtype=torch.float64)
    return torch.linalg.solve(projector @ (columns @ columns.T + gram) + ridge * eye, projector @ columns)


def test_projector_is_the_null_space() -> None:
    c = spd(24)
    p, values = null_space.project(c, 0.05)
    kept = int((values < 0.05).sum())
    assert 0 < kept < 24
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-14)
    assert torch.equal(p, p.T)
    assert float(p.trace()) == pytest.approx(kept)
    assert float(torch.linalg.eigvalsh(p @ c @ p)[-1]) < 0.05
    published, same = null_space.project(c, 0.05, "ref_fp32_svd")
    torch.testing.assert_close(published.double(), p, rtol=0, atol=1e-4)
    torch.testing.assert_close(same, values, rtol=1e-4, atol=1e-6)


def test_an_empty_null_space_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="below 1e-09; they run from"):
        null_space.project(spd(8), 1e-9)


@pytest.mark.parametrize("n", [1, 3])
def test_without_memory_the_shortcut_is_the_solve(n: int) -> None:
    p, _ = null_space.project(spd(24), 0.05)
    k = keys(24, n, 1)
    ours = cholesky.push_through(p @ k, k, 10.0)
    torch.testing.assert_close(ours, solve(p, torch.zeros_like(p), 10.0, k), rtol=1e-12, atol=1e-14)
    if n == 1:  # ΔW = ρ (Pk)ᵀ / (L2 + kᵀPk)
        torch.testing.assert_close(ours, p @ k / (10.0 + k.T @ p @ k), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 3])
def test_with_memory_the_shortcut_is_the_solve_over_many_edits(n: int) -> None:
    """Keys before and after an edit differ: the solve uses the former, the memory absorbs the latter."""
    p, _ = null_space.project(spd(24), 0.05)
    memory, gram = p / 10.0, torch.zeros_like(p)
    for edit in range(50):
        before = keys(24, n, edit)
        after = before + 0.1 * keys(24, n, 1000 + edit)
        ours = cholesky.push_through(memory @ before, before, 1.0)
        torch.testing.assert_close(ours, solve(p, gram, 10.0, before), rtol=1e-10, atol=1e-13)
        memory, gram = cholesky.downdate(memory, after), gram + after @ after.T
    assert float((memory - memory.T).norm()) < 1e-14
    torch.testing.assert_close(
        memory, torch.linalg.solve(p @ gram + 10.0 * torch.eye(24).double(), p), rtol=0, atol=1e-14
    )


def test_the_memit_shortcut_is_the_solve() -> None:
    c, k = spd(24) + 0.1 * torch.eye(24), keys(24, 1, 2)
    ours = cholesky.low_rank_update(cholesky.factor(c), 15.0, k)
    torch.testing.assert_close(ours, torch.linalg.solve(15.0 * c + k @ k.T, k), rtol=0, atol=1e-14)


VALUE = {"steps": 5, "lr": 0.5}
CONFIG = {"layers": [0, 1], "value": VALUE, "threshold": 0.01, "ridge": 0.01}


@pytest.mark.parametrize("pre", [0, 1])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edits_stay_in_the_null_space(family: str, pre: int) -> None:
    lm = tiny_lm(family)
    editor = build_editor(EditorSpec(name="alphaedit", config={**CONFIG, "pre": pre}))
    exam = Exam(build=lambda: editor, lm=lm, fresh=lambda: lm)
    artifacts = exam.artifacts(editor, lm)
    state = editor.begin(lm, artifacts)
    records = toy_records(4)
    for batch in (records[:1], records[1:3], records[3:]):
        step = editor.edit(lm, batch, state, artifacts=artifacts, rng=torch.Generator())
        state = step.state
        for layer in (0, 1):
            p = artifacts[f"projector/{layer}"].tensors["projector"].double()
            delta = step.patch.deltas[f"{lm.layout.mlp_out.format(layer)}.weight"].dense()
            assert float((delta - delta @ p).norm() / delta.norm()) < 1e-5  # P is stored in fp32
            assert int(torch.linalg.matrix_rank(delta, rtol=1e-9)) == len(batch)
            assert step.stats[f"kept_rank/{layer}"] == round(float(p.trace()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_memory_absorbs_the_keys_of_the_edited_model(family: str) -> None:
    lm, records = tiny_lm(family), toy_records(2)
    editor = build_editor(EditorSpec(name="alphaedit", config={**CONFIG, "pre": 1, "backend": "ref_fp32_lu"}))
    artifacts = Exam(build=lambda: editor, lm=lm, fresh=lambda: lm).artifacts(editor, lm)
    step = editor.edit(lm, records, editor.begin(lm, artifacts), artifacts=artifacts, rng=torch.Generator())
    texts = ["{}", *artifacts["contexts"].meta["templates"]]
    bare = layers.subject_keys(lm, records, [0, 1], texts)
    with ledger.applied(lm, step.patch.deltas):
        edited = layers.subject_keys(lm, records, [0, 1], texts)
    assert torch.equal(bare[0], edited[0])  # the lowest layer's keys do not see the edit
    assert not torch.equal(bare[1], edited[1])
    for layer in (0, 1):
        k = edited[layer].float()
        torch.testing.assert_close(step.state[str(layer)], k @ k.T, rtol=1e-5, atol=1e-6)


def test_the_projector_is_an_artifact_made_of_shared_moments(tmp_path: Path) -> None:
    """The moments are read once, stored under their own digest, and not asked for again once the projector exists."""
    lm, readings = tiny_lm("llama"), []
    moments_of = {"text": {"digest": "told"}}
    editor = build_editor(
        EditorSpec(name="alphaedit", config={**CONFIG, "contexts": {"templates": []}, "moments": moments_of})
    )

    def texts(_):  # type: ignore[no-untyped-def]
        readings.append(1)
        return (f"{p.prompt} {p.target}" for r in toy_records(8) for p in r.probes)

    store = ArtifactStore(tmp_path)
    needs = editor.artifact_requests(lm)
    found = provide(lm, needs, store, texts, threads=1)
    assert len(readings) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moments", "projector"]
    for layer in (0, 1):
        meta = found[f"projector/{layer}"].meta
        assert meta["threshold"] == 0.01
        assert meta["largest_kept"] < 0.01 <= meta["smallest_dropped"]
        request = second_moments.request(lm, lm.layout.mlp_out, layer, MomentSpec.model_validate(moments_of))
        plain = store.get(replace(request, threads=1))
        assert isinstance(plain, Artifact)
        p, values = null_space.project(plain.tensors["moments"], 0.01)
        assert meta["kept_rank"] == int((values < 0.01).sum())
        assert torch.equal(found[f"projector/{layer}"].tensors["projector"], p.float())
    assert store.folder(needs["projector/0"]) != store.folder(
        replace(needs["projector/0"], inputs={**needs["projector/0"].inputs, "threshold": 0.02})
    )
    provide(lm, needs, store, texts, threads=1)
    assert len(readings) == 1


def test_damping_is_refused() -> None:
    with pytest.raises(ValueError, match="damping must be 0"):
        build_editor(EditorSpec(name="alphaedit", config={"layers": [0], "moments": {"damping": 1e-3}}))
