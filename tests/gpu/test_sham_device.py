"""The device that pretends: it refuses what a GPU refuses, and counts what a GPU pays for."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raysweep.runtime import repeatable
from raysweep.testing.fixtures import tiny_lm
from raysweep.testing.sham_device import Counts, ShamDevice, device, move, to_sham


def a(*size: int) -> Tensor:
    return to_sham(torch.arange(1.0, 1.0 + torch.Size(size).numel()).reshape(size))


@pytest.mark.parametrize(
    ("work", "counts"),
    [
        (lambda: a(3) + a(3), Counts(launches=1)),
        (lambda: a(3) + 1.0, Counts(launches=1)),
        (lambda: a(3) + torch.tensor(1.0), Counts(launches=1)),  # a single number goes along with the launch
        (lambda: a(3).masked_fill_(a(3) > 1, torch.tensor(1.0)), Counts(launches=2)),
        (lambda: torch.where(a(3) > 1, a(3), torch.tensor(1.0)), Counts(launches=2)),
        (lambda: a(2, 3).T[0].reshape(2, 1).expand(2, 4), Counts()),
        (lambda: a(2, 3).T.reshape(6), Counts(launches=1)),
        (lambda: torch.zeros(2, device=device()), Counts(launches=1)),
        (lambda: torch.empty(2, device=device()), Counts()),
        (lambda: torch.arange(4, device=device()), Counts(launches=1)),
        (lambda: torch.tensor([1, 2], device=device()), Counts(uploads=1)),
        (lambda: torch.ones(3).to(device()), Counts(uploads=1)),
        (lambda: a(3).double(), Counts(launches=1)),
        (lambda: a(3).copy_(torch.ones(3)), Counts(uploads=1)),
        (lambda: a(3).copy_(a(3)), Counts(launches=1)),
        (lambda: a(3).cpu(), Counts(syncs=1)),
        (lambda: torch.zeros(3).copy_(a(3)), Counts(syncs=1)),
        (lambda: a(3).tolist(), Counts(syncs=1)),
        (lambda: a(3)[0].item(), Counts(syncs=1)),
        (lambda: float(a(3).sum()), Counts(launches=1, syncs=1)),
        (lambda: bool((a(3) > 1).any()), Counts(launches=2, syncs=1)),
        (lambda: a(3)[a(3) > 1], Counts(launches=2, syncs=1)),
        (lambda: a(3)[a(3).long() - 1], Counts(launches=3)),
        (lambda: a(3)[torch.tensor([0, 1])], Counts(launches=1, uploads=1)),
        (lambda: a(3)[[0, 1]], Counts(launches=1, uploads=1)),
        (lambda: a(3).nonzero(), Counts(launches=1, syncs=1)),
        (lambda: torch.equal(a(3), a(3)), Counts(launches=1, syncs=1)),
        (lambda: torch.linalg.cholesky(torch.eye(3, device=device())), Counts(launches=2, syncs=1)),
    ],
)  # fmt: skip
def test_counts(work: Callable[[], object], counts: Counts) -> None:
    with ShamDevice() as sham:
        work()
    assert sham.total == counts, sham.operations


@pytest.mark.parametrize(
    "work",
    [
        lambda: a(3) + torch.ones(3),
        lambda: torch.ones(2, 2) @ a(2, 2),
        lambda: torch.cat([a(3), torch.ones(3)]),
        lambda: torch.where(a(3) > 1, torch.ones(3), a(3)),
        lambda: torch.ones(3)[a(3).long() - 1],
        lambda: a(3).index_put_((torch.tensor([0]),), torch.ones(1)),
        lambda: to_sham(torch.ones(3)) + to_sham(torch.ones(3), index=1),
        lambda: torch.rand(3, device=device(), generator=torch.Generator()),
        # a number of the CPU goes along where it is taken entry by entry, nowhere else
        lambda: torch.stack([a(3)[0], torch.tensor(1.0)]),
        lambda: a(3).index_select(0, torch.tensor(1)),
    ],
)
def test_mixed_devices_raise(work: Callable[[], object]) -> None:
    with ShamDevice(), pytest.raises(RuntimeError, match=r"on the sham device|in one operation|the values are on"):
        work()


@pytest.mark.parametrize(
    "work",
    [
        lambda: a(3).cumsum(0),
        lambda: a(3).median(0),
        lambda: a(3).put_(a(3).long() - 1, a(3)),
        lambda: a(3).scatter_reduce(0, a(3).long() - 1, a(3), "prod"),
        lambda: torch.bincount(a(3).long(), a(3)),
    ],
)
def test_what_cannot_repeat_to_the_bit_raises_where_that_is_asked_for(work: Callable[[], object]) -> None:
    with ShamDevice():
        work()
        with repeatable(device()), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            work()
        work()


def test_what_adds_by_atomics_is_counted() -> None:
    """As gradients, too; a sum at a place that is written once is none."""
    where = to_sham(torch.tensor([0, 2, 2]))
    with ShamDevice() as sham, repeatable(device()):
        (a(3) > 1).cumsum(0)
        a(3).index_put((where,), a(3), accumulate=True)
        assert not sham.sorted
        for pick in (lambda t: t.index_select(0, where), lambda t: t.gather(0, where)):
            leaf = a(3).requires_grad_()
            torch.autograd.grad(pick(leaf).sum(), leaf)
        a(3).index_put((where,), a(3))
        a(3).scatter_reduce(0, where, a(3), "amax")
    assert sham.sorted == {"aten.index_add.default": 1, "aten.scatter_add.default": 1, "aten.index_put.default": 1}


def test_numpy_raises() -> None:
    with ShamDevice(), pytest.raises(TypeError, match=r"use \.cpu\(\) first"):
        a(3).numpy()


def test_a_pass_and_its_gradient_are_the_cpu_s() -> None:
    ours, theirs = tiny_lm("qwen2"), tiny_lm("qwen2")
    ids = torch.arange(2, 14).reshape(2, 6)
    losses, gradients = [], []
    with ShamDevice() as sham:
        move(ours.module)
        for lm, tokens in ((ours, ids.to(device())), (theirs, ids)):
            weight = lm.weight("model.layers.0.mlp.up_proj.weight").requires_grad_()
            loss = lm.module(tokens).logits.logsumexp(-1).mean()
            loss.backward()
            losses.append(loss.detach())
            gradients.append(weight.grad)
        assert losses[0].device == device()
        torch.testing.assert_close(losses[0].cpu(), losses[1], rtol=1e-6, atol=0.0)
        assert gradients[0] is not None
        torch.testing.assert_close(gradients[0].cpu(), gradients[1], rtol=1e-5, atol=1e-8)
    assert sham.total.launches > 100


def test_attention_is_one_launch_and_the_cpu_s() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 5, 8, generator=rng) for _ in range(3))
    k, v = k[:, :2], v[:, :2]
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    found = []
    with ShamDevice() as sham:
        for place in (to_sham, lambda t: t.clone()):
            asked = [place(t).requires_grad_() for t in (q, k, v)]
            out = torch.nn.functional.scaled_dot_product_attention(*asked, attn_mask=place(seen), enable_gqa=True)
            sham.mark("forward")
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), asked)])
    assert sham.marks[0] == ("forward", Counts(launches=1))
    assert sham.operations["attention, backward"] == 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-7)
    with ShamDevice(), pytest.raises(RuntimeError, match="in one operation"):
        torch.nn.functional.scaled_dot_product_attention(to_sham(q), to_sham(q), to_sham(q), attn_mask=seen)


def test_a_fused_optimiser_is_one_launch_beside_its_clock() -> None:
    with ShamDevice() as sham:
        weight = to_sham(torch.ones(3)).requires_grad_()
        adam = torch.optim.Adam([weight], lr=0.1, fused=True)
        for _ in range(2):
            adam.zero_grad()
            weight.square().sum().backward()
            sham.mark("gradient")
            adam.step()
            sham.mark("step")
    assert sham.between_marks()[-1] == ("step", Counts(launches=2))


def test_tied_parameters_stay_tied() -> None:
    module = move(tiny_lm("gpt2").module)
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight
    assert {p.device for p in module.parameters()} | {b.device for b in module.buffers()} == {device()}


def test_writing_in_place_changes_the_tensor() -> None:
    with ShamDevice():
        weight = torch.nn.Parameter(a(3), requires_grad=False)
        assert weight.add_(1.0) is weight
        weight[1:].mul_(2.0)
        other = copy.deepcopy(weight)
        weight.zero_()
        assert other.tolist() == [2.0, 6.0, 8.0]
        assert weight.tolist() == [0.0, 0.0, 0.0]


def test_a_view_in_place_is_followed() -> None:
    with ShamDevice() as sham:
        x = a(2, 1, 3)
        x.squeeze_(1).t_()
        assert x.shape == (3, 2)
        assert (x + 0).tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert sham.total == Counts(launches=1, syncs=1)


def test_marks_part_the_counts() -> None:
    with ShamDevice() as sham:
        x = a(3)
        for name in ("first", "second"):
            x = x * 2
            sham.mark(name)
        float(x.sum())
    assert sham.between_marks() == [("first", Counts(1)), ("second", Counts(1))]
    assert sham.total == Counts(launches=3, syncs=1)
    assert sham.operations["aten.mul.Tensor"] == 2


def test_importing_changes_nothing_and_a_backward_pass_may_come_first() -> None:
    program = """
import torch
x = torch.ones(2, requires_grad=True)
(x * x).sum().backward()
from raysweep.testing.sham_device import ShamDevice, device
assert torch.accelerator.current_accelerator() is None
with ShamDevice():
    y = torch.ones(2, device=device(), requires_grad=True)
    (y * y).sum().backward()
    assert y.grad.tolist() == [2.0, 2.0]
assert torch.accelerator.current_accelerator() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
