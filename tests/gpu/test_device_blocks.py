"""Blocks in few launches: what the modules compute, in every precision, from the tokens and blocks that are needed alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysweep.models.forward import blocks, device_blocks, device_parts, fused, matmul, prefix_tree, resume
from raysweep.models.forward.device_blocks import DeviceBlocks
from raysweep.models.forward.device_parts import Maps, Rotation
from raysweep.models.joined import join, joined
from raysweep.models.layout import layout_of
from raysweep.models.layouts.llama import FORM
from raysweep.models.layouts.llama import LAYOUT as LLAMA
from raysweep.models.lm import LanguageModel
from raysweep.testing.layout_contract import tiny_model
from raysweep.testing.sham_device import ShamDevice, device, move, to_sham

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gptj")
ROWS = ([5, 6, 7, 8, 9, 10], [11, 12, 13], [5, 6, 7, 20, 21, 22, 23, 24])
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


# A layout of docs/add_an_architecture.md, and what would be said of its blocks.
GEMMA = replace(
    LLAMA,
    model_type="gemma",
    form=replace(FORM, block_class="transformers.models.gemma.modeling_gemma.GemmaDecoderLayer", norm="rms_plus_one"),
)


def small(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> LanguageModel:
    biases: dict[str, Any] = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    module = tiny_model(family, **biases, **changes).to(dtype)
    layout = GEMMA if family == "gemma" else layout_of(module.config)
    return LanguageModel(module=module, tokenizer=None, layout=layout)  # type: ignore[arg-type]


def on_sham(lm: LanguageModel, *, together: bool = False) -> LanguageModel:
    """Return a copy there; *together*: as it is loaded on a device, with parameters of some maps one behind the other."""
    module = copy.deepcopy(lm.module)
    if together:
        join(module, lm.layout)
    return LanguageModel(module=move(module), tokenizer=lm.tokenizer, layout=lm.layout)


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
        there = on_sham(lm, together=True)
        rest = remainder(there, width, start)
        assert isinstance(rest.upper.fused, DeviceBlocks)
        assert len(rest.upper.fused.blocks[0].qkv.weights) == 1
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
            there = on_sham(lm, together=True)
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
        assert all(fused.supports(on_sham(small(family)), 1) for family in FAMILIES)
        # what no form describes
        assert not fused.supports(on_sham(small("llama", hidden_act="relu")), 1)
        other = on_sham(small("llama"))
        assert not fused.supports(replace(other, layout=replace(LLAMA, form=None)), 1)
        other.part("model.layers.2.mlp").add_module("adapter", move(nn.Linear(2, 2, bias=False)))
        assert not fused.supports(other, 1)
        del other.part("model.layers.2.mlp").adapter
        assert fused.supports(other, 1)
    assert matmul.best_rows(13, torch.device("cpu")) == matmul.best_rows(13)
    assert matmul.best_rows(13, device()) == 13
    assert to_sham(torch.zeros(1)).is_cpu is False


@pytest.mark.parametrize("family", ["llama", "qwen3", "gptj"])
def test_long_lists_are_laid_out_by_pack_and_turned_without_matrices(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come to the same states and gradients as short ones, at all tokens and at those that are asked."""
    found = []
    lm = small(family)
    for limits in (None, 0):
        if limits is not None:
            monkeypatch.setattr(device_blocks, "_ONE_PACK_UP_TO", limits)
            monkeypatch.setattr(device_parts, "_MATRICES_UP_TO", limits)
        with ShamDevice():
            there = on_sham(lm)
            rest = remainder(there, 9, 2)
            assert isinstance(rest.upper.fused, DeviceBlocks)
            assert (rest.upper.fused.everyone.grid.shape[0] == 1) is (limits is None)
            column = rest.column_of[1].cpu()
            columns = column[column >= 0][[-1, 0, -1]]
            few = rest.upper.read_at(torch.ones_like(columns), columns)
            leaf = rest.states.detach().clone().requires_grad_(True)
            read = few.hidden(there, leaf)
            (gradient,) = torch.autograd.grad(read.square().sum(), leaf)
            found.append((*states_and_gradient(there, rest, modules=False), read.detach().cpu(), gradient.cpu()))
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-5)
        assert float(short.norm()) > 0.1


@pytest.mark.parametrize("pairs", [False, True])
def test_a_turn_leaves_the_rest_of_a_head_and_keeps_lengths(pairs: bool) -> None:
    angle = torch.tensor([[0.3, 1.1], [2.0, -0.4]])
    turn = Rotation.by_angles(angle.cos(), angle.sin(), 6, pairs=pairs)
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    y = turn(x)
    first, second = ([0, 2], [1, 3]) if pairs else ([0, 1], [2, 3])
    torch.testing.assert_close(
        torch.complex(y[..., first], y[..., second]),
        torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones(2, 2), angle)[:, None],
    )
    assert torch.equal(y[..., 4:], x[..., 4:])
    torch.testing.assert_close(turn._replace(matrices=None)(x), y)


def test_parameters_that_lie_together_are_views_of_what_is_multiplied() -> None:
    lm, before = small("qwen2"), small("qwen2")
    join(lm.module, lm.layout)
    for name, weight in before.module.named_parameters():
        assert torch.equal(lm.weight(name), weight)
    names = ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj")
    maps = Maps.of(lm, names)
    assert len(maps.weights) == 1
    lm.weight(f"{names[1]}.weight").data.copy_(torch.ones(8, 16))
    assert torch.equal(maps.weights[0][16:24], torch.ones(8, 16))  # 16 rows of queries, then 8 of keys
    # whoever replaces a parameter has products of their own again
    owner = lm.part(names[1])
    owner.weight = nn.Parameter(owner.weight.detach().clone(), requires_grad=False)
    assert len(Maps.of(lm, names).weights) == 3
    assert joined([torch.zeros(2, 3), torch.zeros(2, 3)]) is None
    whole = torch.zeros(4, 3)
    assert joined([whole[2:], whole[:2]]) is None
