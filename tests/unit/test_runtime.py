"""How matrices are multiplied, and sums are taken, is said in one place, for one block, and nothing of it stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from raysweep.config.schema import ModelSpec
from raysweep.runtime import matmul, repeatable
from raysweep.testing.sham_device import ShamDevice, device


def state() -> tuple[str, str, str]:
    """How this process multiplies: torch's own word for it, on a GPU, on the CPU."""
    try:
        word = torch.get_float32_matmul_precision()
    except RuntimeError:
        word = "mixed"
    return word, torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


def set_backend(name: str, value: str) -> None:
    getattr(torch.backends, name).matmul.fp32_precision = value


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "told",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: set_backend("cuda", "tf32"),
        lambda: set_backend("mkldnn", "bf16"),
    ],
    ids=["nothing", "high", "medium", "allow_tf32", "one back end", "the CPU"],
)
@pytest.mark.usefixtures("restored")
def test_a_block_multiplies_as_it_says_and_leaves_the_process_as_it_was(told: Callable[[], None]) -> None:
    torch.set_float32_matmul_precision("highest")
    told()
    before = state()
    with matmul("tf32"):
        assert state() == ("high", "tf32", "ieee")
        with matmul("ieee"):
            assert state() == ("highest", "ieee", "ieee")
        assert state() == ("high", "tf32", "ieee")
    assert state() == before


def test_a_block_that_fails_leaves_the_process_as_it_was() -> None:
    before = state()
    with pytest.raises(ValueError, match="asked to"), matmul("tf32"):
        raise ValueError("asked to")
    assert state() == before


def test_products_on_the_cpu_are_the_same_either_way() -> None:
    left, right = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)), torch.ones(256, 64) / 3
    with matmul("ieee"):
        exact = left @ right
    with matmul("tf32"):
        assert torch.equal(left @ right, exact)


def test_only_what_is_not_the_default_is_stored() -> None:
    assert "matmul" not in ModelSpec().model_dump()
    stored = ModelSpec(matmul="tf32").model_dump_json()
    assert ModelSpec.model_validate_json(stored).matmul == "tf32"


def order() -> tuple[bool, bool, bool, bool, str | None]:
    """How this process adds up on a GPU."""
    asked = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    attention = torch.backends.cuda.cudnn_sdp_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    return *asked, attention, fills, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize("told", [None, True, False])
def test_a_block_repeats_and_leaves_the_process_as_it_was(told: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if told is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(bool(told), warn_only=bool(told))
    try:
        before = order()
        with ShamDevice(), repeatable(device()):
            assert order() == (True, False, False, False, ":4096:8" if told is None else ":16:8")
        assert order() == before
        with ShamDevice(), pytest.raises(ValueError, match="asked to"), repeatable(device()):
            raise ValueError("asked to")
        assert order() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_on_the_cpu_nothing_is_asked_for() -> None:
    before = order()
    with repeatable(torch.device("cpu")):
        assert order() == before


def test_a_process_that_has_multiplied_before_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks at the environment at the first product, and refuses all others where it found nothing."""

    def refuse(*_: object) -> None:
        raise RuntimeError("set CUBLAS_WORKSPACE_CONFIG=:4096:8")

    monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
    with (
        ShamDevice(),
        pytest.warns(RuntimeWarning, match="before CUBLAS_WORKSPACE_CONFIG was set"),
        repeatable(device()),
    ):
        assert not torch.are_deterministic_algorithms_enabled()
