"""How matrices are multiplied is said in one place, for one block, and nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from raysweep.config.schema import ModelSpec
from raysweep.runtime import matmul


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
