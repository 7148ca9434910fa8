"""Blocks in few launches: what the modules compute, in every precision, from the tokens and blocks that are needed alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from raysweep.models.forward import blocks, fused, matmul, prefix_tree, resume
from raysweep.models.forward.llama_device import DeviceLlamaBlocks
from raysweep.models.layout import layout_of
from raysweep.models.lm import LanguageModel
from raysweep.testing.layout_contract import tiny_model
from raysweep.testing.sham_device import ShamDevice, device, move, to_sham

FAMILIES = ("llama", "mistral", "qwen2")
ROWS = ([5, 6, 7, 8, 9, 10], [11, 12, 13], [5, 6, 7, 20, 21, 22, 23, 24])
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def small(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    changes: dict[str, Any] = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    module = tiny_model(family, **changes).to(dtype)
    return LanguageModel(module=module, tokenizer=None, layout=layout_of(module.config))  # type: ignore[arg-type]


def on_sham(lm: LanguageModel) -> LanguageModel:
    module = move(copy.deepcopy(lm.module))
    return LanguageModel(module=module, tokenizer=lm.tokenizer, layout=lm.layout)


def remainder(lm: LanguageModel, width: int, start: int) -> resume.Remainder:
    """Packs of unequal size; tokens from *start* on may change."""
    packs = prefix_tree.pack_rows(lm, ROWS, width=width)
    with torch.no_grad():
        return resume.remainder_after(lm, packs, packs.positions >= start, first=1)


def states_and_gradient(lm: LanguageModel, rest: resume.Remainder, *, modules: bool) -> tuple[Tensor, Tensor]:
    """Return the final states at every remaining token, and a gradient of theirs; zero at padding."""
    upper = rest.upper
    way = resume.UpperBlocks(1, upper.positions, upper.mask, upper.cache, None) if modules else upper
    # padding repeats other tokens: of two columns with one token the later one is padding
    column = rest.column_of.cpu()
    real = torch.zeros(rest.states.shape[:2], dtype=torch.bool)
    for pack, columns in enumerate(column):
        real[pack, columns[columns >= 0]] = True
    weights = torch.randn(rest.states.shape, generator=torch.Generator().manual_seed(0)) * real[..., None]
    leaf = rest.states.detach().clone().requires_grad_(True)
    hidden = way.hidden(lm, leaf)
    loss = (hidden.float() * weights.to(hidden.device)).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return (hidden.detach().cpu() * real[..., None]).float(), gradient.cpu().float()


@pytest.fixture
def unpadded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU leave out padding too, so that both sides have the same tables."""
    monkeypatch.setattr(matmul, "best_rows", lambda n, device=None: n)


@pytest.mark.usefixtures("unpadded")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("width", [9, 64])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_states_and_gradients_are_those_of_the_modules(family: str, start: int, width: int, dtype: torch.dtype) -> None:
    """The error beside fp32 is no larger than that of the modules in the same precision."""
    lm = small(family)
    truth = states_and_gradient(lm, remainder(lm, width, start), modules=True)
    lm.module.to(dtype)
    modules = states_and_gradient(lm, remainder(lm, width, start), modules=True)
    with ShamDevice():
        there = on_sham(lm)
        rest = remainder(there, width, start)
        assert isinstance(rest.upper.fused, DeviceLlamaBlocks)
        found = states_and_gradient(there, rest, modules=False)
    for ours, theirs, exact in zip(found, modules, truth, strict=True):
        error, allowed = (ours - exact).norm(), (theirs - exact).norm()
        assert float(error) <= 1.5 * float(allowed) + 1e-5 * float(exact.norm())


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("width", [9, 64])
def test_what_is_read_at_some_places_is_what_all_of_them_hold(start: int, width: int) -> None:
    """A place may be asked twice, and a pack not at all."""
    lm = small("llama")
    with ShamDevice() as sham:
        there, found = on_sham(lm), []
        rest = remainder(there, width, start)
        # real columns of the first pack
        columns = rest.column_of[0].cpu()
        columns = columns[columns >= 0][[0, 1, -1, 0]]
        rows = torch.zeros_like(columns)
        few = rest.upper.read_at(rows, columns)
        for way in (
            lambda s: few.hidden(there, s),
            lambda s: rest.upper.hidden(there, s)[rows.to(device()), columns.to(device())],
        ):
            leaf = rest.states.detach().clone().requires_grad_(True)
            sham.mark("begin")
            read = way(leaf)
            (gradient,) = torch.autograd.grad((read * torch.arange(1, 5).to(device())[:, None]).square().sum(), leaf)
            found.append((read.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    assert float(found[0][1].norm()) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [9, 64])
def test_an_evaluation_reads_what_the_modules_say_and_waits_for_nothing(family: str, width: int) -> None:
    lm = small(family)
    packs = prefix_tree.pack_rows(lm, ROWS, width=width)
    asked = [(packs.row_positions[i][0], packs.row_positions[i][1][-1]) for i in (2, 0, 2)]
    rows, columns = (torch.tensor(c) for c in zip(*asked, strict=True))
    with torch.no_grad():
        wished = blocks.run_packs(lm, packs)[rows, columns]
        with ShamDevice() as sham:
            there = on_sham(lm)
            on_device = prefix_tree.pack_rows(there, ROWS, width=width)
            before = sham.total
            found = resume.packed_hidden_at(there, on_device, rows, columns)
            assert (sham.total - before).syncs == 0
            found = found.cpu()
    torch.testing.assert_close(found, wished, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_blocks_below_the_last_that_is_asked_take_few_launches_too(dtype: torch.dtype) -> None:
    lm = small("llama", dtype)
    with torch.no_grad(), ShamDevice() as sham:
        there = on_sham(lm)
        packs = prefix_tree.pack_rows(there, ROWS, width=9)
        before = sham.total
        blocks.run_packs(there, packs, last=2)
        few = (sham.total - before).launches
        before = sham.total
        mask = prefix_tree.attention_mask(there, packs.visible, packs.positions, packs.positions)
        blocks.run(there, ids=packs.ids, mask=mask, positions=packs.positions, last=2)
        assert few < (sham.total - before).launches


def test_the_way_is_chosen_by_the_device_and_the_cpus_precision_alone() -> None:
    assert fused.supports(small("llama"), 1)
    assert not fused.supports(small("llama", torch.bfloat16), 1)  # no fast products: the modules
    with ShamDevice():
        assert all(fused.supports(on_sham(small("llama", dtype)), 1) for dtype in PRECISIONS)
        assert not fused.supports(on_sham(small("gpt2")), 1)
    assert matmul.best_rows(13, torch.device("cpu")) == matmul.best_rows(13)
    assert matmul.best_rows(13, device()) == 13
    assert to_sham(torch.zeros(1)).is_cpu is False
