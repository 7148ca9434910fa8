"""Nested states come back as they were, in memory too: the last bits of a product depend on how a matrix lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysweep import pytree
from raysweep.editors.linalg import ridge
from raysweep.editors.wrappers.simie.recursive import _as_memory

CPU = torch.device("cpu")
ROWS = torch.arange(24.0).reshape(2, 3, 4)


def through_a_file(state: object, folder: Path) -> object:
    """What a process reads that goes on from a snapshot: the store writes tensors contiguously."""
    tensors, plain = pytree.flatten("state", state)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "s.safetensors")
    return pytree.unflatten("state", load_file(folder / "s.safetensors"), plain, CPU)


@pytest.mark.parametrize(
    "tensor",
    [ROWS, ROWS.permute(2, 0, 1).contiguous().permute(1, 2, 0), ROWS[0].T, ROWS[0][:, :1], torch.tensor(1.0), ROWS[:0]],
    ids=["rows", "permuted", "columns", "one column", "scalar", "empty"],
)
def test_a_tensor_comes_back_with_its_order_in_memory(tensor: Tensor, tmp_path: Path) -> None:
    back = through_a_file({"a": [tensor, 1]}, tmp_path)
    assert isinstance(back, dict)
    found = back["a"][0]
    assert torch.equal(found, tensor)
    if tensor.dim() != 2 or tensor.T.is_contiguous():
        assert [s for s, n in zip(found.stride(), found.shape, strict=True) if n > 1] == [
            s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1
        ]


def test_what_lies_as_usual_is_marked_as_it_always_was() -> None:
    assert pytree.flatten("s", ROWS)[1] == {"__tensor__": "s"}


def test_a_ridge_goes_on_bit_for_bit_after_its_inverse_was_computed_anew(tmp_path: Path) -> None:
    """``cholesky_inverse`` gives a matrix column by column; read back row by row, products with it had other last bits."""
    rng = torch.Generator().manual_seed(0)
    keys = [torch.randn(64, 7, generator=rng, dtype=torch.float64) for _ in range(30)]

    def absorb(state: ridge.RidgeInverse, some: list[Tensor]) -> tuple[ridge.RidgeInverse, list[Tensor]]:
        gains = []
        for one in some:
            state, gain, _ = ridge.woodbury(state, one, refresh=18, tolerance=1e-6)
            gains.append(gain)
        return state, gains

    state, _ = absorb(ridge.RidgeInverse(10.0), keys[:20])
    assert state.inverse is not None
    assert not state.inverse.is_contiguous(), "else this test tells nothing"
    back = through_a_file(_as_memory(state), tmp_path)
    assert isinstance(back, dict)
    _, straight = absorb(state, keys[20:])
    _, resumed = absorb(ridge.RidgeInverse(**back), keys[20:])
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
