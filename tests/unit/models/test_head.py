"""Log-probabilities taken part by part are those of all logits, forward and backward; other heads go the ordinary way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raysweep.models.forward import blocks
from raysweep.models.forward import head as lm_head
from raysweep.models.layout import layout_of
from raysweep.models.lm import LanguageModel
from raysweep.testing.layout_contract import tiny_model

WHICH, WANTED = torch.tensor([0, 2, 2, 1]), torch.tensor([3, 0, 39, 7])


def small(family: str = "llama") -> LanguageModel:
    module = tiny_model(family)
    return LanguageModel(module=module, tokenizer=None, layout=layout_of(module.config))  # type: ignore[arg-type]


def hidden(lm: LanguageModel, scale: float) -> Tensor:
    width = lm.module.config.hidden_size
    return (scale * torch.randn(3, width, generator=torch.Generator().manual_seed(0))).requires_grad_(True)


def ordinary(lm: LanguageModel, states: Tensor) -> Tensor:
    return blocks.logits(lm, states).log_softmax(-1)[WHICH, WANTED]


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("part", [1, 700, 2**20])
def test_values_and_gradients_are_those_of_all_logits(scale: float, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, weight = small(), torch.tensor([0.3, 1.0, 2.0, -1.0])
    states, found = hidden(lm, scale), []
    monkeypatch.setattr(lm_head, "WEIGHTS_PER_PART", part)
    for way in (lambda: lm_head.target_logprobs(lm, states, WHICH, WANTED), lambda: ordinary(lm, states)):
        values = way()
        found.append((values.detach(), *torch.autograd.grad((values * weight).sum(), states)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
    assert float(found[0][1].norm()) > 0.01


def test_a_head_that_is_hooked_biased_trained_or_in_another_precision_goes_the_ordinary_way() -> None:
    lm = small()
    head = lm.part(lm.layout.head)
    assert lm_head._is_bare(head)
    with torch.no_grad():
        handle = head.register_forward_hook(lambda module, arguments, output: 2 * output)
        assert not lm_head._is_bare(head)
        states = hidden(lm, 1.0)
        assert torch.equal(lm_head.target_logprobs(lm, states, WHICH, WANTED), ordinary(lm, states))
        handle.remove()
    assert not lm_head._is_bare(nn.Linear(4, 5).requires_grad_(False))
    assert not lm_head._is_bare(nn.Linear(4, 5, bias=False))
    assert not lm_head._is_bare(nn.Linear(4, 5, bias=False).double().requires_grad_(False))


def test_nothing_cancels_where_a_token_is_almost_certain() -> None:
    lm = small()
    weight = lm.part(lm.layout.head).weight
    states = (16 * weight[5] / weight[5].norm() ** 2)[None].detach().requires_grad_(True)
    which, wanted, exact = torch.tensor([0]), torch.tensor([5]), states.detach().double().requires_grad_(True)
    value, true = (
        lm_head.target_logprobs(lm, states, which, wanted),
        (exact @ weight.double().T).log_softmax(-1)[which, wanted],
    )
    assert -1e-3 < float(true.detach()) < -1e-9
    torch.testing.assert_close(value.double(), true, rtol=1e-3, atol=0)
    (found,), (wished,) = torch.autograd.grad(value.sum(), states), torch.autograd.grad(true.sum(), exact)
    assert float((found - wished).norm()) < 1e-2 * float(wished.norm())


def test_without_gradient_no_mean_is_formed() -> None:
    lm = small()
    states = hidden(lm, 1.0).detach()
    found = lm_head.target_logprobs(lm, states, WHICH, WANTED)
    assert not found.requires_grad
    torch.testing.assert_close(found, ordinary(lm, states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("part", [700, 2**20])
@pytest.mark.parametrize("asked", [0, 2, 30])
def test_what_is_told_is_that_of_all_logits(
    threads: int, scale: float, part: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities, arg-maxes and divergences of two distributions, with the gradients of all of them."""
    lm, made = small(), torch.Generator().manual_seed(1)
    width, vocabulary = lm.module.config.hidden_size, lm.module.config.vocab_size
    states = (scale * torch.randn(asked + 2, width, generator=made)).requires_grad_(True)
    wanted = torch.randint(0, vocabulary, (asked,), generator=made)
    base = torch.randn(2, vocabulary, generator=made).log_softmax(-1)
    weight = torch.rand(asked + 2, generator=made)
    monkeypatch.setattr(lm_head, "WEIGHTS_PER_PART", part)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for given in (base, None):
            short = lm_head.logprobs_and_kl(lm, states, wanted, given)
            with monkeypatch.context() as patched:
                patched.setattr(lm_head, "_is_bare", lambda head: False)
                ordinary = lm_head.logprobs_and_kl(lm, states, wanted, given)
            assert torch.equal(short.is_argmax, ordinary.is_argmax)
            torch.testing.assert_close(short.base, ordinary.base, rtol=1e-5, atol=1e-5)
            found = []
            for told in (short, ordinary):
                value = (torch.cat([told.logp, told.kl]) * weight).sum()
                found.append((told.logp.detach(), told.kl.detach(), *torch.autograd.grad(value, states)))
            for mine, theirs in zip(*found, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * scale)
    finally:
        torch.set_num_threads(before)


def test_a_distribution_compared_with_itself_moves_nothing() -> None:
    lm = small()
    states = hidden(lm, 1.0)
    base = lm_head.logprobs_and_kl(lm, states, WANTED[:2], None).base
    told = lm_head.logprobs_and_kl(lm, states, WANTED[:2], base)
    (gradient,) = torch.autograd.grad(told.kl.sum(), states)
    assert float(told.kl.detach().abs().max()) < 1e-6
    assert float(gradient.abs().max()) < 1e-6


def test_the_ordinary_way_moves_nothing_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small()
    states = hidden(lm, 1.0)
    monkeypatch.setattr(lm_head, "_is_bare", lambda head: False)
    base = None
    for _ in range(2):
        told = lm_head.logprobs_and_kl(lm, states, WANTED[:2], base)
        (gradient,) = torch.autograd.grad(told.kl.sum(), states)
        assert not gradient.count_nonzero()
        base = told.base


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", [1, 700, 2**20])
def test_answers_taken_part_by_part_are_those_of_all_logits(
    threads: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, before = small(), torch.get_num_threads()
    states = hidden(lm, 3.0).detach()[[0, 1, 2, 1, 0]]
    logits = blocks.logits(lm, states)
    labels = torch.cat([logits.argmax(-1)[:2], torch.tensor([0, 7, logits.shape[1] - 1])])
    monkeypatch.setattr(lm_head, "WEIGHTS_PER_PART", part)
    torch.set_num_threads(threads)
    try:
        best, told = lm_head.argmax_and_logprob(lm, states, labels)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(best, logits.argmax(-1))
    torch.testing.assert_close(told, logits.log_softmax(-1).gather(1, labels[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_answers_of_other_heads_and_equal_tokens_are_the_first_best() -> None:
    lm = small()
    weight = lm.part(lm.layout.head).weight.detach()
    weight[30] = weight[4]  # two tokens that always weigh the same
    states = (8 * weight[4] / weight[4].norm())[None]
    best, told = lm_head.argmax_and_logprob(lm, states, torch.tensor([30]))
    assert best.tolist() == [4]
    handle = lm.part(lm.layout.head).register_forward_hook(lambda module, arguments, output: -output)
    assert lm_head.argmax_and_logprob(lm, states, torch.tensor([30]))[0].tolist() != [4]
    handle.remove()
    assert float(told) < 0
