"""What a model writes freely does not depend on the batch, ends where the rules say, and is what a memory editor would write."""

from __future__ import annotations

import math

import pytest
import torch

from raysweep.evals import free
from raysweep.evals.free import Asked, Written, write
from raysweep.evals.generation import generate
from raysweep.models import tokens
from raysweep.models.layout import LAYOUTS
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement
from raysweep.testing.fixtures import embedded_lm, tiny_lm

PROMPTS = [
    *("The pet of Ana is", "The pet of Bo is", "Q", "A much longer prompt, which is about the hat of Zed, is"),
    *("Dee has a pet, a", "The hat of Zed1 is", "The pet of Ana", "Eli", "x y z", "The sky over Yak was"),
]
ENDLESS = 10**6  # full stops that no answer reaches


def rows(lm: LanguageModel, *, inner: int = ENDLESS) -> list[Asked]:
    return [Asked(tuple(tokens.encode(lm, prompt)), inner) for prompt in PROMPTS]


def up_to_newline(lm: LanguageModel, ids: list[int]) -> tuple[int, ...]:
    """Return *ids* as far as the stop rule, which the older generation does not know, lets them go."""
    for n in range(1, len(ids) + 1):
        if "\n" in tokens.decode(lm, ids[:n]):
            return tuple(ids[:n])
    return tuple(ids)


@pytest.mark.parametrize("family", LAYOUTS.names())
def test_the_batch_moves_no_answer_and_reuse_none_either(family: str) -> None:
    """batch 1, 3, 16, and whole rows recomputed at each step, which knows nothing of keys and values."""
    lm = tiny_lm(family, bos=True)
    one, *others = [write(lm, rows(lm), most=8, batch=batch) for batch in (1, 3, 16)]
    for other in others:
        assert [w.ids for w in other] == [w.ids for w in one]
        assert [w.margin for w in other] == pytest.approx([w.margin for w in one], abs=1e-4)
    whole = generate(lm, PROMPTS, [8] * len(PROMPTS))
    assert [w.ids for w in one] == [up_to_newline(lm, ids) for ids in whole]


def test_windows_hold_in_reuse_too() -> None:
    """A token that a window hides must stay hidden once its keys are kept."""
    lm = tiny_lm("mistral")
    lm.module.config.sliding_window = 4
    cached = write(lm, rows(lm), most=8)
    free_of_it = generate(lm, PROMPTS, [8] * len(PROMPTS))
    assert [w.ids for w in cached] == [up_to_newline(lm, ids) for ids in free_of_it]
    lm.module.config.sliding_window = None
    assert [w.ids for w in cached] != [w.ids for w in write(lm, rows(lm), most=8)], "the window did nothing"


def test_the_embedded_model_answers_up_to_a_full_stop() -> None:
    lm = embedded_lm()
    prompts = [
        *("What is the first language of Kaleis Natger? It is", "Zefi Bofman is employed by"),
        "Looking at Lomrford, the dish is",
    ]
    asked = [Asked(tuple(tokens.encode(lm, p))) for p in prompts]
    found = [write(lm, asked, most=50, batch=batch) for batch in (1, 3)]
    assert [w.ids for w in found[0]] == [w.ids for w in found[1]]
    # What moves these moves numbers that trials hold already: raise the versions of the protocols that let a model write.
    assert [tokens.decode(lm, w.ids) for w in found[0]] == [" Sesic.", " Tudix.", " omelettes."]
    for written in found[0]:
        assert written.published == written.whole == free.Extent(len(written.ids), "string")


class Spelling:
    """Stands in for the head: what it answers is spelled out, whatever the model makes of a row."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, text: str, *, gap: float = 5.0) -> None:
        self.ids = [*tokens.encode_alone(lm, text), lm.tokenizer.eos_token_id]
        self.lm, self.gap, self.at = lm, gap, 0
        monkeypatch.setattr(free.blocks, "logits", self.logits)

    def logits(self, lm: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(len(hidden), 258)
        table[:, self.ids[self.at]] = self.gap
        self.at += 1
        return table


def spelled(monkeypatch: pytest.MonkeyPatch, text: str, *, inner: int = 0, most: int = 50, gap: float = 5.0) -> Written:
    lm = tiny_lm("llama")
    Spelling(monkeypatch, lm, text, gap=gap)
    (written,) = write(lm, [Asked((5, 6), inner)], most=most)
    return written


def test_where_the_two_rules_end_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = spelled(monkeypatch, "C. New. X", inner=1)
    assert (cut.published, cut.whole) == (free.Extent(2, "string"), free.Extent(7, "string"))
    assert len(cut.text_ids) == 2
    plain = spelled(monkeypatch, "New. X")
    assert plain.published == plain.whole == free.Extent(4, "string")
    assert spelled(monkeypatch, "New\nX", inner=1).whole == free.Extent(4, "string"), "a newline ends both"
    assert spelled(monkeypatch, "New").published == free.Extent(4, "eos"), "the end-of-text token is kept"
    assert spelled(monkeypatch, "New", most=2).published == free.Extent(2, "length")


def test_a_near_tie_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clear, near = spelled(monkeypatch, "a."), spelled(monkeypatch, "a.", gap=1e-30)
    assert (clear.margin, clear.near_tie) == (5.0, False)
    assert near.near_tie
    assert near.margin < 1e-29


def test_logits_that_are_no_numbers_end_an_answer() -> None:
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.weight(f"{lm.layout.norm}.weight")[0] = math.nan
    (written,) = write(lm, [Asked((5, 6))], most=5)
    assert written.ids == ()
    assert written.published == free.Extent(0, "non_finite")
    assert math.isnan(written.margin)


def test_a_replacement_module_sees_whole_rows() -> None:
    """Its answers are those of the older generation, which has always shown it whole rows."""
    lm = tiny_lm("llama")
    name = lm.layout.mlp_out.format(1)

    class Shift(replacement.ReplacementModule):
        """Acts at the last token of the prompt only, as GRACE does."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            out = self.inner(states).clone()
            out[torch.arange(len(out)), self.last_tokens(states)] += 3.0
            return out

    plain = write(lm, rows(lm), most=6)
    assert free.can_reuse(lm)
    with replacement.modules_replaced(lm, {name: Shift(lm.part(name))}):
        assert not free.can_reuse(lm)
        shifted = write(lm, rows(lm), most=6, batch=3)
        whole = generate(lm, PROMPTS, [6] * len(PROMPTS))
    assert [w.ids for w in shifted] == [up_to_newline(lm, ids) for ids in whole]
    assert [w.ids for w in shifted] != [w.ids for w in plain]
