"""Protocols beside the main asking: what they measure, that they disturb nothing, and that a resumed trial measures the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.errors import DataError, ModelError
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.protocols import PROTOCOLS
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.results.schema import ANSWERS
from raysweep.rows import AnswerRow, EvalRound, ProbeRow
from raysweep.studies.further import NEAR_TIES
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import tiny_lm, toy_records
from tests.unit.studies.test_lifelong import deps, trial

ALSO = ("wild-mirage", {"id": "wild-mirage", "prompt": "qa_inst"}, "localft")
TRUE = tuple(replace(r, target_true="red") for r in toy_records(8))


def run(root: Path, editor: str, records: Sequence[EditRecord] | None = None, **protocol: object) -> list[EvalRound]:
    one = trial(editor, **{"rounds": (0, 2, 4), "immediate": False} | protocol)
    return list(Lifelong().execute(one, deps(root, tiny_lm("llama"), records), None))


def main_rows(found: EvalRound) -> list[ProbeRow]:
    return [replace(row, trial_key="") for row in found.rows if "@" not in row.metric]


def test_every_number_carries_protocol_prompt_and_version(tmp_path: Path) -> None:
    rounds = run(tmp_path, "ft", TRUE, also=(*ALSO, "memit_compat"))
    labels = {"wild-mirage:question-only/1", "wild-mirage:qa_inst/1", "localft/1"}
    for found in rounds:
        assert {a.protocol for a in found.answers} == labels
        marked = {row.metric for row in found.rows if "@" in row.metric}
        asked = {f"{s}@{label}" for label in labels for s in ("normalised_match", "whole_match", "same_answer")}
        assert marked == asked | {f"{s.name}@memit_compat/1" for s in PROTOCOLS["memit_compat"].scorers}
        assert {s.name for s in found.stats if s.name.startswith(NEAR_TIES)} == {f"{NEAR_TIES}{n}" for n in labels}
        assert ANSWERS.build(found.answers).num_rows == len(found.answers)
    sent = {a.protocol: a.prompt for a in rounds[0].answers if a.edit_step == 1 and a.probe_kind == "efficacy"}
    assert sent["localft/1"] == "The pet of Ana is"
    assert sent["wild-mirage:qa_inst/1"] == "Please answer the question:\n\nQ: The pet of Ana is\nA:"


@pytest.mark.parametrize("editor", ["ft", "grace", "memit+closed simie"])
def test_the_main_asking_is_left_alone_and_a_resumed_trial_measures_the_same(editor: str, tmp_path: Path) -> None:
    plain, asked = run(tmp_path, editor), run(tmp_path, editor, also=ALSO)
    assert [main_rows(r) for r in plain] == [main_rows(r) for r in asked]
    assert [dict(r.summary) for r in plain] == [dict(r.summary) for r in asked]
    assert not any(r.answers for r in plain)
    one = trial(editor, rounds=(0, 2, 4), immediate=False, also=ALSO)
    # Another folder for artifacts: what the unedited model wrote is written again, not found.
    (last,) = Lifelong().execute(one, deps(tmp_path / "b", tiny_lm("llama")), asked[1].snapshot)
    assert last.rows == asked[2].rows
    assert last.answers == asked[2].answers
    assert last.stats == asked[2].stats


def test_locality_is_what_the_unedited_model_wrote(tmp_path: Path) -> None:
    pristine, *edited = run(tmp_path, "oracle", also=("localft",))
    same = [a.same_answer for a in pristine.answers if a.probe_kind == "locality"]
    assert set(same) == {1.0}
    for found in edited:
        for answer in found.answers:
            assert (answer.same_answer is None) == (answer.probe_kind != "locality")
            assert (answer.normalised_match is None) == (answer.probe_kind == "locality")


def test_the_trials_of_a_group_have_answers_of_their_own(tmp_path: Path) -> None:
    trials = [trial("memit+closed simie", rounds=(0, 2), also=("localft",)) for _ in range(2)]
    wrap = trials[1].editor.wrap[0]
    other = wrap.model_copy(update={"config": wrap.config.model_copy(update={"lam": 5.0})})
    trials[1] = trials[1].model_copy(update={"editor": trials[1].editor.model_copy(update={"wrap": (other,)})})
    found = list(Lifelong().execute_group(trials, deps(tmp_path, tiny_lm("llama")), {}))
    assert len(found) == 4
    for key, measured in found:
        assert {a.trial_key for a in measured.answers} == {key}
        alone = next(t for t in trials if t.key == key)
        rounds = {r.step: r for r in Lifelong().execute(alone, deps(tmp_path, tiny_lm("llama")), None)}
        assert measured.answers == rounds[measured.step].answers


def test_answers_to_targets_with_an_inner_full_stop_are_marked(tmp_path: Path) -> None:
    record = toy_records(1)[0]
    probe = Probe(kind=ProbeKind.EFFICACY, prompt=record.prompt, target="C. Newton")
    records = [replace(record, target="C. Newton", probes=(probe,)), toy_records(2)[1]]
    rounds = run(tmp_path, "ft", records, rounds=(2,), also=("localft",))
    affected = {a.record_id: a.affected for a in rounds[0].answers if a.probe_kind == "efficacy"}
    assert affected == {"toy/000000": True, "toy/000001": False}


def test_memit_compat_by_hand(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "ft", TRUE[:1], rounds=(0,), also=("memit_compat",))
    lm = tiny_lm("llama")
    for kind, prompt, right, wrong in (
        ("efficacy", TRUE[0].prompt, TRUE[0].target, "red"),
        ("locality", "The hat of Zed0 is", "red", TRUE[0].target),
    ):
        values = {r.metric: r.value for r in found.rows if r.probe_kind == kind and "@" in r.metric}
        p, q = (probability(lm, prompt, target) for target in (right, wrong))
        assert values["prob_margin@memit_compat/1"] == pytest.approx(p - q, abs=1e-6)
        assert values["prob_success@memit_compat/1"] == float(p > q)
        assert 0.0 <= (values["token_accuracy@memit_compat/1"] or 0.0) <= 1.0


def probability(lm: LanguageModel, prompt: str, target: str) -> float:
    import torch

    ids, begin = tokens.encode(lm, f"{prompt} {target}"), len(tokens.encode(lm, prompt))
    logp = lm.module(torch.tensor([ids])).logits[0].log_softmax(-1)
    each = [float(logp[j - 1, ids[j]]) for j in range(begin, len(ids))]
    return math.exp(sum(each) / len(each))


def test_what_cannot_be_asked_is_refused_before_the_first_edit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"which dataset 'toy' does not give for toy/000000 and 3 more"):
        run(tmp_path, "ft", also=("memit_compat",))
    with pytest.raises(ModelError, match="has no chat template"):
        run(tmp_path, "ft", also=({"id": "wild-mirage", "prompt": "chat"},))
    long = replace(toy_records(1)[0], probes=(Probe(kind=ProbeKind.EFFICACY, prompt="x" * 220, target="y"),))
    with pytest.raises(ModelError, match=r"asks toy/000000 with 220 tokens and lets the model write 50; it has 256"):
        run(tmp_path, "ft", [long], rounds=(1,), also=("wild-mirage",))


def test_a_chat_template_is_sent_as_the_tokenizer_writes_it(tmp_path: Path) -> None:
    lm = tiny_lm("llama", bos=True)
    lm.tokenizer.chat_template = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [answer]"
    one = trial("ft", rounds=(0,), also=({"id": "wild-mirage", "prompt": "chat"},))
    (found,) = Lifelong().execute(one, deps(tmp_path, lm), None)
    answer: AnswerRow = found.answers[0]
    assert answer.prompt == "<s>[user] The pet of Ana is [answer]"
    assert tokens.encode_alone(lm, answer.prompt)[:2] == [0, tokens.encode_alone(lm, "[")[0]], "one BOS, not two"


def test_a_chat_does_not_depend_on_the_day() -> None:
    lm = tiny_lm("llama")
    lm.tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}|{{ date_string }}|{{ messages[0].content }}|{{ enable_thinking }}"
    )
    assert tokens.as_chat(lm, "Who?") == "26 Jul 2024|26 Jul 2024|Who?|False"


def test_logits_that_are_no_numbers_are_undefined_not_wrong(tmp_path: Path) -> None:
    from tests.unit.studies.test_lifelong import WILD

    one = trial("ft", rounds=(0, 2), immediate=False, also=("localft",)).model_copy(update={"editor": WILD})
    *_, last = Lifelong().execute(one, deps(tmp_path, tiny_lm("llama")), None)
    assert {a.stop for a in last.answers} == {"non_finite"}
    assert {a.normalised_match for a in last.answers} | {a.same_answer for a in last.answers} == {None}
    assert all(math.isnan(row.value or 0.0) for row in last.rows if "@localft" in row.metric)
