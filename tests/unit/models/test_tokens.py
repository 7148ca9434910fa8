"""Ids: BOS, joins, spans, the subject's last token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysweep.models import tokens
from raysweep.testing.fixtures import tiny_lm
from tests.golden.recorded import Variant, model


def test_bos_comes_from_the_tokenizer_or_from_the_policy() -> None:
    assert tokens.encode(tiny_lm("llama", bos=True), "ab")[0] == 0
    plain = tiny_lm("llama")
    assert len(tokens.encode(plain, "ab")) == 2
    assert tokens.encode(replace(plain, bos=(0,)), "ab")[0] == 0


@pytest.mark.parametrize("bos", [False, True])
def test_the_answer_begins_after_the_prompt(bos: bool) -> None:
    lm = tiny_lm("llama", bos=bos)
    s = tokens.labelled_ids(lm, "A is", tokens.join("A is", " b"))  # a target with its own space gets a second one
    assert tokens.decode(lm, s.labels) == "  b"
    assert s.start == 4 + bos


def test_a_policy_bos_whose_id_is_the_pad_still_counts() -> None:
    lm = replace(tiny_lm("llama"), bos=(1,))  # id 1 is </s>, also the pad
    assert tokens.labelled_ids(lm, "A is", "A is b").start == 5


@pytest.mark.parametrize("template", ["{} is", "The pet of {} is", "Yes. The pet of {} is"])
@pytest.mark.parametrize("subject", ["Ana", "Bo Li"])
def test_subject_last_is_where_the_subject_ends(template: str, subject: str) -> None:
    lm = tiny_lm("llama", bos=True)
    last = tokens.subject_last(lm, template, subject)
    ids = tokens.encode(lm, template.replace("{}", subject))
    assert tokens.decode(lm, ids[1 : last + 1]) == template.split("{}")[0] + subject


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_subject_last_is_what_a_search_by_offsets_finds(name: str) -> None:
    """§17.2.2 with a BPE vocabulary: at the start, in the middle, after a context; the rule itself looks at no offset."""
    lm, checked = model(name), 0
    variant = Variant(f"{name}/rome")
    for record in variant.records:
        for context in ("{}", "{} It is.", *variant.data["context_templates"]):
            for template in (context.replace("{}", record.template), f"{{}} is {record.prompt.lower()[:9]}"):
                found = lm.tokenizer(template.replace("{}", record.subject), return_offsets_mapping=True)
                end = template.index("{}") + len(record.subject)
                inside = [i for i, (a, b) in enumerate(found["offset_mapping"]) if a < end <= b]
                assert [tokens.subject_last(lm, template, record.subject)] == inside
                checked += 1
    assert checked > 80


def test_a_template_needs_one_slot() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        tokens.subject_last(tiny_lm("llama"), "no slot", "Ana")


def test_rows_are_padded_on_the_right() -> None:
    ids, mask = tokens.pad([[3, 4], [5]], tiny_lm("llama").device)
    assert ids.tolist() == [[3, 4], [5, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]
