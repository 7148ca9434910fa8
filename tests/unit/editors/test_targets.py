"""Rows are built from ids, never from decoded text (quirk Q50): what an editor supervises is what the evaluation asks about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.plain import values as plain
from raysweep.editors import EDITORS, rome
from raysweep.editors.locate import contexts, layers, target_value
from raysweep.editors.specs import ValueSpec
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord
from raysweep.testing.fixtures import toy_records
from tests.tokenizers.battery import VARIANTS
from tests.tokenizers.models import folder_of, loaded, opened

PIECES = ("llama-2", "mistral", "unigram")
FOLDERS = (*PIECES, "llama-3", "qwen2", "gpt2")
CUT = (
    "서울",
    "naïve サ",
    "🙂",
    "Zoë's café 🙂",
    "شكرا",
    "Huế",
)  # their last character is several tokens in every folder
TEXTS = ("{}", "So it was. {}", "東京. {}")
ROME = rome.Rome(rome.RomeConfig.model_validate({"layers": [1], "contexts": {"templates": list(TEXTS)}}))


def record(target: str) -> EditRecord:
    return replace(toy_records(1)[0], target=target)


def tasks(lm: LanguageModel, one: EditRecord, spec: ValueSpec) -> list[tuple[str, target_value.ValueTask]]:
    """Return the text of the target and the rows of ROME, then those of MEMIT and AlphaEdit."""
    writer = rome.Rome(ROME.config.model_copy(update={"value": spec}))
    return [
        (tokens.with_added_space(one.target), writer._task(lm, one, {})),
        (tokens.with_space(one.target), layers._task(lm, one, TEXTS, spec)),
    ]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("target", CUT)
def test_every_supervised_row_is_the_row_that_is_asked(folder: str, target: str, tmp_path: Path) -> None:
    lm, one = loaded(folder, tmp_path / "m"), record(target)
    assert "\ufffd" in tokens.decode(lm, tokens.encode_alone(lm, f" {target}")[:-1]), "not a target that is cut"
    for strip in (False, True):
        for text, task in tasks(lm, one, ValueSpec(strip_dummy_piece=strip)):
            for row, template in zip(task.rows[:-1], TEXTS, strict=True):
                prompt = template.replace("{}", one.prompt)
                asked = tokens.labelled_ids(lm, prompt, prompt + text)
                assert row == asked.ids[:-1], (template, text)
                m = len(asked.labels)
                assert row[len(row) - m + 1 :] == asked.labels[:-1], "teacher forcing"
                if strip or folder not in PIECES:
                    assert task.targets == asked.labels
                else:  # by itself a SentencePiece target begins with a space that no sentence has (quirk Q6)
                    assert task.targets[1 - m :] == asked.labels[1:]


@pytest.mark.parametrize("target", CUT)
def test_the_published_rows_hold_a_replacement_character(target: str, tmp_path: Path) -> None:
    lm, one = loaded("gpt2", tmp_path / "m"), record(target)
    for (text, ours), (_, published) in zip(
        tasks(lm, one, ValueSpec()), tasks(lm, one, ValueSpec(ref_decoded_rows=True)), strict=True
    ):
        cut = one.prompt + tokens.decode(lm, tokens.encode_alone(lm, text)[:-1])
        assert published.rows[0] == tuple(tokens.encode(lm, cut)) != ours.rows[0]
        assert "\ufffd" in tokens.decode(lm, published.rows[0])
        assert (published.targets, published.lookups) == (ours.targets, ours.lookups)


@pytest.mark.parametrize("folder", FOLDERS)
def test_for_other_targets_both_ways_are_the_same(folder: str, tmp_path: Path) -> None:
    """Among them targets that begin with a space, which SentencePiece writes as two (quirk Q4)."""
    lm = loaded(folder, tmp_path / "m")
    sample = json.loads(Path("data/ZsRE/sample.json").read_text(encoding="utf-8"))
    targets = [r["alt"] for r in sample] + ["Mars", " Mars hill", "Tomé", "a", " ", "3.50 (100%)", "it's", "line\ntwo"]
    compared = 0
    for target in targets:
        one = record(target)
        if "\ufffd" in tokens.decode(lm, tokens.encode_alone(lm, f" {target}")[:-1]):
            continue
        for strip in (False, True):
            specs = [ValueSpec(strip_dummy_piece=strip, ref_decoded_rows=ref) for ref in (False, True)]
            assert tasks(lm, one, specs[0]) == tasks(lm, one, specs[1]), target
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("folder", ["llama-3", "qwen2", "gpt2"])
def test_text_that_ends_in_spaces_is_encoded_otherwise(folder: str, tmp_path: Path) -> None:
    """Published rows are wrong for ordinary targets too: "x  y" without its y ends in spaces, which then are one token."""
    lm, one = loaded(folder, tmp_path / "m"), record("x  y")
    (_, ours), _ = tasks(lm, one, ValueSpec())
    (_, published), _ = tasks(lm, one, ValueSpec(ref_decoded_rows=True))
    asked = tokens.labelled_ids(lm, one.prompt, f"{one.prompt} x  y")
    assert ours.rows[0] == asked.ids[:-1]
    assert len(published.rows[0]) == len(ours.rows[0]) - 1


def test_a_target_that_shares_a_token_with_its_prompt_keeps_its_own_ids(tmp_path: Path) -> None:
    """With a tokenizer that joins "is" and the space behind it, and one that joins all of "is x"."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("i", "s"), ("is", "Ġ"), ("isĠ", "x")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    for n in (2, 3):
        inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges[:n]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        folder = folder_of(VARIANTS["gpt2"], tmp_path / str(n))
        for file in (*folder.glob("*token*"), folder / "vocab.json", folder / "merges.txt"):
            file.unlink()
        PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="!").save_pretrained(folder)
        lm = opened(folder)
        space, x, y, is_ = (vocabulary[t] for t in ("Ġ", "x", "y", "is"))
        one, two = (tokens.target(lm, "is", text) for text in (" x", " xy"))
        assert (one.alone, two.alone) == ((space, x), (space, x, y))
        if n == 2:
            assert tokens.before_last(lm, "is", two) == [vocabulary["isĠ"], x]
            assert tokens.target(lm, "is", " xy", strip_dummy_piece=True).demanded == (x, y)
        else:
            assert tokens.before_last(lm, "is", one) == [is_, space]
            assert tokens.target(lm, "is", " x", strip_dummy_piece=True).demanded == one.alone


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("target", ["서울", "Mars hill"])
def test_the_plain_implementation_has_the_same_rows(target: str, decoded: bool, tmp_path: Path) -> None:
    lm, one, spec = loaded("llama-2", tmp_path / "m"), record(target), ValueSpec(ref_decoded_rows=decoded)
    wanted = tokens.target(lm, one.prompt, tokens.with_added_space(target))
    ids, mask, labels, spots = plain._rows(lm, one, wanted, TEXTS, spec)
    (_, task), _ = tasks(lm, one, spec)
    assert [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)] == list(task.rows)
    assert tuple(spots) == task.lookups
    assert all(tuple(row[row >= 0].tolist()) == task.targets for row in labels[:-1])


def test_versions_were_raised() -> None:
    raised = ("rome", "memit", "alphaedit", "ft", "grace", "wise", "mend")
    assert all(EDITORS.get(name).version >= 2 for name in raised)


def test_sampled_context_templates_are_whole_characters() -> None:
    """A template is text; a sampled character that was cut at the end is left out, not written as a replacement character."""
    assert contexts._clean("It was 서\ufffd\ufffd ") == "It was \u1109\u1165"  # NFKD, as published
    assert contexts._clean("a \ufffd b\n\nc{d}") == "a  b c d"
