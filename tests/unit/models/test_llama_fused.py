"""The short way through the upper blocks is the model's own, forward and backward, and gives way to whatever else is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raysweep.models import hooks, ledger
from raysweep.models.forward import blocks, llama_fused, matmul, prefix_tree, resume
from raysweep.models.forward.given import Given
from raysweep.models.layout import layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement
from raysweep.testing.layout_contract import tiny_model

FAMILIES = ("llama", "mistral", "qwen2")
ROWS = ([5, 6, 7, 8, 9, 10], [11, 12, 13], [5, 6, 7, 20, 21, 22, 23, 24])


@pytest.fixture(params=["all padding left out", "as many as products like"])
def padding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param.startswith("all"):
        monkeypatch.setattr(matmul, "best_rows", lambda n, device=None: n)


def small(family: str, **changes: Any) -> LanguageModel:
    module = tiny_model(family, **changes)
    return LanguageModel(module=module, tokenizer=None, layout=layout_of(module.config))  # type: ignore[arg-type]


def packed(family: str, width: int) -> tuple[LanguageModel, prefix_tree.PackedRows]:
    lm = small(family)
    return lm, prefix_tree.pack_rows(lm, ROWS, width=width)


def prepared(lm: LanguageModel, first: int, start: int) -> resume.Remainder:
    """Two packs of unequal size; tokens from *start* on may change."""
    packs = prefix_tree.pack_rows(lm, ROWS, width=9)
    with torch.no_grad():
        return resume.remainder_after(lm, packs, packs.positions >= start, first=first)


@pytest.mark.usefixtures("padding")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [0, 2])
def test_states_and_gradients_are_those_of_the_modules(family: str, start: int) -> None:
    lm = small(family, **({"attention_bias": True, "mlp_bias": True} if family == "llama" else {}))
    rest = prepared(lm, 1, start)
    upper = rest.upper
    assert upper.fused is not None
    real = torch.ones(rest.states.shape[:2], dtype=torch.bool)
    if upper.fused.all_tokens.slots is not None:  # padding is left out
        real = upper.fused.all_tokens.slots.occupied.bool().view(real.shape)
    weights = torch.randn(rest.states.shape, generator=torch.Generator().manual_seed(0)) * real[..., None]
    found = []
    for way in (upper.hidden, resume.UpperBlocks(1, upper.positions, upper.mask, upper.cache, None).hidden):
        leaf = rest.states.clone().requires_grad_(True)
        hidden = way(lm, leaf)
        (gradient,) = torch.autograd.grad((hidden * weights).sum(), leaf)
        found.append((hidden.detach() * real[..., None], gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    assert float(found[0][1].norm()) > 0.1


@pytest.mark.usefixtures("padding")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("start", [0, 2])
def test_what_is_read_at_some_places_is_what_all_of_them_hold(threads: int, start: int) -> None:
    """The last block computes only what is asked; a place may be asked twice, and a pack not at all."""
    lm = small("llama")
    rest = prepared(lm, 1, start)
    upper = rest.upper
    assert upper.fused is not None
    slots = upper.fused.all_tokens.slots
    places = (torch.arange(rest.states[..., 0].numel()) if slots is None else slots.slot_of_token)[[0, 1, -1, 0]]
    rows, columns = places // rest.states.shape[1], places % rest.states.shape[1]
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for way in (lambda s: upper.read_at(rows, columns).hidden(lm, s), lambda s: upper.hidden(lm, s)[rows, columns]):
            leaf = rest.states.clone().requires_grad_(True)
            read = way(leaf)
            (gradient,) = torch.autograd.grad((read * torch.arange(1, 5)[:, None]).square().sum(), leaf)
            found.append((read.detach(), gradient))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    assert float(found[0][1].norm()) > 0.1


@pytest.mark.usefixtures("padding")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [9, 64])
def test_what_is_read_once_goes_pack_by_pack_and_is_what_the_modules_say(family: str, width: int) -> None:
    lm, packs = packed(family, width)
    asked = [(packs.row_positions[i][0], packs.row_positions[i][1][-1]) for i in (2, 0, 2)]
    rows, columns = (torch.tensor(c) for c in zip(*asked, strict=True))
    with torch.no_grad():
        fused = (
            resume.UpperBlocks.prepare(lm, 0, packs.positions, packs.visible, real=packs.real)
            .read_at(rows, columns, without_gradient=True)
            .upper.fused
        )
        found, wished = resume.packed_hidden_at(lm, packs, rows, columns), blocks.run_packs(lm, packs)[rows, columns]
    assert fused is not None
    assert bool(fused.final_queries.packs) == (len(packs.ids) > 1)
    torch.testing.assert_close(found, wished, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("padding")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [9, 64])
def test_blocks_below_the_last_that_is_asked_go_the_short_way(family: str, width: int) -> None:
    lm, packs = packed(family, width)
    name = lm.layout.block.format(2)
    entering: list[torch.Tensor] = []
    with torch.no_grad(), hooks.capture(lm, [(name, "input")]) as seen:
        blocks.run_packs(lm, packs, last=2)
        entering.append(seen[name, "input"][packs.real])
        with hooks.capture(lm, [(lm.layout.block.format(0), "output")]) as below:  # somebody looks: the ordinary way
            blocks.run_packs(lm, packs, last=2)
        entering.append(seen[name, "input"][packs.real])
    assert below
    torch.testing.assert_close(*entering, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "best_rows", lambda n, device=None: n)
    lm = small("llama")
    rest = prepared(lm, 2, 2)
    upper = rest.upper
    assert upper.fused is not None
    assert upper.cache is not None
    lm.module.double()
    past = [(layer.keys.double(), layer.values.double()) for layer in upper.cache.layers[2:]]
    least = torch.finfo(torch.float32).min
    mask = torch.where(upper.mask == least, -1e30, 0.0).double()
    real = torch.ones(rest.states.shape[:2], dtype=torch.bool)
    real[-1, -1] = False
    exact = llama_fused.FusedLlamaBlocks.prepare(lm, Given(2, upper.positions, mask, past, real))
    made = torch.Generator().manual_seed(0)
    states = torch.randn(rest.states.shape, generator=made, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exact, (states,), atol=1e-6, rtol=1e-4, fast_mode=True)
    slots = exact.all_tokens.slots
    assert slots is not None, "no padding"
    chosen = torch.tensor([0, 1, len(slots.slot_of_token) - 1])
    flags = torch.zeros(states.shape[:2], dtype=torch.bool)
    flags.view(-1)[slots.slot_of_token[chosen]] = True
    some = exact.read_at(flags)
    assert torch.autograd.gradcheck(some, (states,), atol=1e-6, rtol=1e-4, fast_mode=True)
    torch.testing.assert_close(some(states), exact(states)[chosen])


def test_models_it_does_not_know_go_the_ordinary_way() -> None:
    assert not llama_fused.supports(small("gpt2"), 1)
    assert not llama_fused.supports(small("qwen3"), 1)  # norms of queries and keys
    assert not llama_fused.supports(small("llama", hidden_act="gelu"), 1)
    lm = small("llama")
    assert llama_fused.supports(lm, 1)
    assert not llama_fused.supports(lm, lm.n_blocks)
    lm.module.to(torch.bfloat16)
    assert not llama_fused.supports(lm, 1)


def test_what_is_hooked_replaced_or_trained_is_seen() -> None:
    lm = small("llama")
    name = lm.layout.mlp_out.format(2)
    rest = prepared(lm, 1, 2)
    with torch.no_grad():
        plain = rest.hidden(lm, rest.states)
    with hooks.capture(lm, [(name, "input")]) as seen:
        assert not llama_fused.supports(lm, 1)
        rest.hidden(lm, rest.states)
    assert seen
    with replacement.modules_replaced(lm, {name: Silent(lm.part(name))}):
        assert not llama_fused.supports(lm, 1)
        with torch.no_grad():
            assert not torch.allclose(rest.hidden(lm, rest.states), plain)
    weight = {f"{name}.weight": torch.zeros_like(lm.weight(f"{name}.weight"))}
    with ledger.substituted(lm, weight) as live:
        with torch.no_grad():
            assert not torch.allclose(rest.hidden(lm, rest.states), plain)
        (parameter,) = (p.requires_grad_(True) for p in live.values())
        assert not llama_fused.supports(lm, 1)
        torch.autograd.grad(rest.hidden(lm, rest.states).sum(), [parameter])
    with torch.no_grad():
        torch.testing.assert_close(rest.hidden(lm, rest.states), plain)


class Silent(replacement.ReplacementModule):
    """Returns nothing but zeros."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(self.inner(states))
