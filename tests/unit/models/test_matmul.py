"""Products are the same numbers in either order, with one thread or several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from raysweep.models.forward import matmul


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 4, 8, 16, 40])
@pytest.mark.parametrize("columns_first", [False, True])
def test_forward_and_backward_are_the_plain_products(threads: int, rows: int, columns_first: bool) -> None:
    made = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 32, generator=made), torch.randn(24, generator=made)
    x, grad, start = (torch.randn(rows, n, generator=made) for n in (32, 24, 32))
    if columns_first:
        x, grad, start = (t.t().contiguous().t() for t in (x, grad, start))
    assert matmul.weights_first(x) == (threads > 1)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(matmul.linear(x, weight), x @ weight.t(), **close)
    torch.testing.assert_close(matmul.linear(x, weight, bias), F.linear(x, weight, bias), **close)
    kept = start.clone()
    torch.testing.assert_close(matmul.linear_backward(grad, weight), grad @ weight, **close)
    torch.testing.assert_close(matmul.linear_backward(grad, weight, start), start + grad @ weight, **close)
    assert torch.equal(start, kept)


def test_heights_are_never_less_than_asked_nor_much_more(threads: int) -> None:
    for n in range(1, 200):
        assert n <= matmul.best_rows(n) < max(n + 8, matmul.FEW_ROWS + 1)
        assert matmul.best_rows(matmul.best_rows(n)) == matmul.best_rows(n)


def test_padding_repeats_the_last_row_and_is_never_much(threads: int) -> None:
    for n in range(60):
        rows = torch.arange(3 * n).view(n, 3).float()
        found = matmul.pad_rows(rows)
        assert torch.equal(found[:n], rows)
        assert all(torch.equal(row, rows[-1]) for row in found[n:])
        assert len(found) < max(n + 8, matmul.FEW_ROWS + 1)
    assert len(matmul.pad_rows(torch.zeros(1, 3))) == 1
