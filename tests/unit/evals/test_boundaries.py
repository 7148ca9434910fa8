"""Splits that rest on a tokenizer's good manners are counted and logged (quirk Q3)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raysweep.evals import boundaries
from raysweep.evals.scoring import score
from raysweep.metrics import METRICS, Answer
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe, ProbeKind
from raysweep.testing.fixtures import tiny_lm, toy_records
from tests.tokenizers.battery import VARIANTS
from tests.tokenizers.models import folder_of, opened


@pytest.fixture
def merging_lm(tmp_path: Path) -> LanguageModel:
    """A model whose tokenizer joins "is", "Ana" and "yx" with the space behind them; "yx" alone is two tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = [("i", "s"), ("is", "Ġ"), ("n", "a"), ("A", "na"), ("Ana", "Ġ"), ("x", "Ġ"), ("y", "xĠ")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary | {"</s>": len(vocabulary)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    folder = folder_of(VARIANTS["gpt2"], tmp_path / "merging")
    for file in (*folder.glob("*token*"), folder / "vocab.json", folder / "merges.txt"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    return opened(folder)


def test_a_good_tokenizer_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    records = toy_records(4)
    with caplog.at_level(logging.WARNING):
        assert boundaries.report(tiny_lm("llama", bos=True), records, [p for r in records for p in r.probes]) == (0, 0)
    assert not caplog.records


def test_what_is_split_elsewhere_is_counted_and_shown(
    caplog: pytest.LogCaptureFixture, merging_lm: LanguageModel
) -> None:
    lm, records = merging_lm, toy_records(4)
    probes = [p for r in records for p in r.probes]
    with caplog.at_level(logging.WARNING):
        found = boundaries.report(lm, records, probes)
    assert found == (8, 1)  # "… is" + " target" of efficacy and locality probes; "Ana" + " is"
    assert "8 of 12 answers begin inside a token, first: 'The pet of Ana is' in 'The pet of Ana is " in caplog.text
    assert "1 of 4 subjects end inside a token, first: 'The pet of Ana' in 'The pet of Ana is'" in caplog.text


def test_an_answer_that_is_not_there_is_missing_and_moves_no_other(merging_lm: LanguageModel) -> None:
    """A prompt with as many tokens as prompt and target together leaves nothing to score: None, not NaN and not a crash."""
    lm = merging_lm
    asked = [Probe(kind=ProbeKind.EFFICACY, prompt=p, target=t) for p, t in (("yx", ""), ("Ana", ""), ("A pet", "cat"))]
    shrunk, equal, plain = score(lm, asked)
    assert shrunk.labels == equal.labels == shrunk.answers == equal.answers == ()
    assert [m(Answer((), (), (), 0.0)) for m in METRICS.values()] == [None] * len(METRICS)
    assert (plain.answers, plain.labels) == (score(lm, asked[2:])[0].answers, score(lm, asked[2:])[0].labels)
