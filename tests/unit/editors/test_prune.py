"""PRUNE's exact fixture, its algebra against a plain SVD, and where it may stand among wrappers."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.build import build_editor
from raysweep.editors.wrappers.prune import PruneConfig, restrain, restraint
from raysweep.errors import WrapError
from raysweep.testing.fixtures import tiny_lm

SPECTRUM = torch.tensor([25.0, 12.0, 10.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("base", "wanted"),
    [
        ("1.2", [15.025685, 11.0, 10.0, 4.0]),
        ("2", [11.321928, 10.263034, 10.0, 4.0]),
        ("e", [10 + math.log(2.5), 10 + math.log(1.2), 10.0, 4.0]),
        ("1.5", [10 + math.log(2.5, 1.5), 10 + math.log(1.2, 1.5), 10.0, 4.0]),
        ("linear", [17.5, 11.0, 10.0, 4.0]),
    ],
)
def test_fixture(base: str, wanted: list[float]) -> None:
    found = restrain(SPECTRUM, 10.0, base)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("base", ["1.2", "1.5", "2", "e", "linear"])
def test_the_view_is_the_restrained_svd(base: str, shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], 4, generator=rng, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], 4, generator=rng, dtype=torch.float64))
    total = u @ torch.diag(SPECTRUM) @ v.T
    change, values, after = restraint(total, 9.0, base)
    assert change is not None
    torch.testing.assert_close(values, SPECTRUM[:3].flip(0))
    torch.testing.assert_close(after, restrain(values, 9.0, base))
    wanted = u @ torch.diag(restrain(SPECTRUM, 9.0, base)) @ v.T
    torch.testing.assert_close(total + change.dense(), wanted, rtol=0, atol=1e-12)


def test_nothing_large_nothing_to_do() -> None:
    assert restraint(torch.eye(3), 2.0, "2")[0] is None  # by its Frobenius norm
    assert restraint(torch.eye(3), 1.5, "2")[0] is None  # by its spectrum
    assert restraint(torch.zeros(3, 3), 2.0, "2")[0] is None


def test_bases_may_be_written_as_numbers() -> None:
    written = {1.2: "1.2", 1.5: "1.5", 2: "2", "e": "e", "linear": "linear"}
    assert {k: PruneConfig.model_validate({"base": k}).base for k in written} == written
    with pytest.raises(ValueError, match="base"):
        PruneConfig.model_validate({"base": 3})


def test_a_base_that_enlarges_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """Quirk Q24: F(s) > s just above M if M < 1 / ln b."""
    assert float(restrain(torch.tensor([1.1]), 1.0, "1.2")) > 1.1
    lm = tiny_lm("llama")
    for base, said in (("1.2", True), ("linear", False)):
        wrap = (WrapSpec(name="prune", config={"base": base}),)
        editor = build_editor(EditorSpec(name="ft", config={"layers": [0]}, wrap=wrap))
        with caplog.at_level(logging.WARNING):
            state = editor.begin(lm, {})
        assert ("enlarges singular values" in caplog.text) is said
        caplog.clear()
        (name,) = editor.edited_parameters(lm)
        assert state["largest"][name] == pytest.approx(float(torch.linalg.svdvals(lm.logical(name))[0]), rel=1e-6)


def test_a_persistent_view_refuses_a_wrapped_editor() -> None:
    simie, ft = WrapSpec(name="simie"), {"layers": [0]}
    build_editor(EditorSpec(name="ft", config=ft, wrap=(simie, WrapSpec(name="prune"))))
    with pytest.raises(WrapError, match="persist: true cannot wrap a wrapped editor"):
        build_editor(EditorSpec(name="ft", config=ft, wrap=(simie, WrapSpec(name="prune", config={"persist": True}))))
