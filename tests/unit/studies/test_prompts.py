"""Prompts as turns of a chat: what is written, asked, refused, and what a key holds of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.config.plan import plan
from raysweep.config.schema import DataSpec, TrialSpec
from raysweep.config.sweep import parse_search_space
from raysweep.editors import rome
from raysweep.editors.locate import keys, target_value
from raysweep.editors.wise import padded_rows
from raysweep.errors import ModelError, ProblemsError
from raysweep.models import chat, tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord, Fact, Probe, ProbeKind, RecordError
from raysweep.studies.lifelong import Lifelong
from raysweep.studies.prompts import prompted
from raysweep.studies.refusals import check_records
from raysweep.testing.fixtures import load_folder, same, tiny_lm, toy_records
from raysweep.workspace import Workspace
from tests.unit.models.conftest import save_tiny
from tests.unit.studies.test_lifelong import deps, facts
from tests.unit.studies.test_lifelong import trial as lifelong_trial

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[model]\n{% endif %}"
)
DATED = "Today is {{ strftime_now('%Y-%m-%d') }}, {{ strftime_now('%A, %-d %B') }}, {{ date_string }}.\n" + TEMPLATE
HEAD, TAIL = "[user] ", "\n[model]\n"
CHAT = DataSpec(prompt="chat")


def model(*, bos: bool = True, template: str = TEMPLATE) -> LanguageModel:
    lm = tiny_lm("llama", bos=bos)
    lm.tokenizer.chat_template = template
    return lm


def test_every_prompt_becomes_a_turn_and_nothing_else_does() -> None:
    one = replace(
        toy_records(1)[0],
        further=(Fact(subject="Bo", prompt="The hat of Bo is", target="red"),),
        probes=(
            Probe(
                kind=ProbeKind.PORTABILITY, prompt="p", target="t", alternatives=(("q", "u"),), known=((("r", "v"),),)
            ),
        ),
    )
    lm, (found,) = prompted(model(), [one], CHAT, "tiny")
    wrapped = lambda text: f"{HEAD}{text}{TAIL}"  # noqa: E731
    assert (found.prompt, found.target, found.unrelated) == (wrapped(one.prompt), one.target, one.unrelated)
    assert found.further[0].prompt == wrapped("The hat of Bo is")
    assert found.probes[0].prompt == wrapped("p")
    assert (found.probes[0].alternatives, found.probes[0].known) == (((wrapped("q"), "u"),), (((wrapped("r"), "v"),),))
    assert lm.turn == HEAD
    assert prompted(model(), [one], DataSpec(), "tiny")[1] == [one]


@pytest.mark.parametrize("bos", [False, True])
def test_a_text_begins_with_one_bos(bos: bool) -> None:
    """The template writes one; so does the tokenizer, where it is made to."""
    lm, (found,) = prompted(model(bos=bos), toy_records(1), CHAT, "tiny")
    ids, first = tokens.encode(lm, found.prompt), lm.tokenizer.bos_token_id
    assert ids[0] == first
    assert first not in ids[1:]
    by_hand = replace(tiny_lm("llama"), bos=(first,))
    by_hand.tokenizer.chat_template = TEMPLATE
    _, (found,) = prompted(by_hand, toy_records(1), CHAT, "tiny")
    assert tokens.encode(by_hand, found.prompt).count(first) == 1


def test_the_subject_is_found_and_contexts_stand_inside_the_turn() -> None:
    plain = toy_records(1)[0]
    lm, (one,) = prompted(model(), [plain], CHAT, "tiny")
    texts = ("{}", "So it was. {}")
    target = tokens.target(lm, one.prompt, tokens.with_added_space(one.target))
    task = target_value.value_task(lm, one.template, one.subject, target, texts)
    for row, lookup, context in zip(task.rows, task.lookups, texts, strict=False):
        said = f"{HEAD}{context.replace('{}', plain.prompt)}{TAIL} {one.target}"
        assert tokens.decode(lm, row[1:]) == said[:-1], "all but the last byte of the target"
        # a token is a byte
        assert tokens.decode(lm, row[1 : lookup + 1]).endswith(f"of {one.subject}")
    rows = keys.context_rows(lm, one, texts)
    assert [tokens.decode(lm, row[1:]) for row in rows] == [
        f"{HEAD}{c.partition('{')[0]}The pet of {one.subject}" for c in texts
    ]
    wise = padded_rows.right_rows(lm, texts, (one.prompt, one.target), [])
    (first, end), row = wise.answers[1], wise.ids[1]
    assert tokens.decode(lm, row[1:first]) == f"{HEAD}So it was. {plain.prompt}{TAIL}"
    assert tokens.decode(lm, row[first:end]) == f" {one.target}"


def test_the_clock_stands_still() -> None:
    lm = model(template=DATED)
    _, (found,) = prompted(lm, toy_records(1), CHAT, "tiny")
    assert found.prompt.startswith("Today is 2024-07-26, Friday, 26 July, 26 Jul 2024.\n<s>[user] ")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the tokenizer of model 'tiny' has no chat template"),
        ("{{ raise_exception('no users here') }}", "the chat template of model 'tiny' fails: no users here"),
        ("{{ strftime_now('%Q') }}", "fails: unknown date format %Q"),
        (
            "{% if 'Ana' in messages[0]['content'] %}! {% endif %}" + TEMPLATE,
            "begins otherwise for 'The pet of Ana is'",
        ),
        ("hello", "holds the user's text 0 times"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(template: str | None, said: str) -> None:
    lm = tiny_lm("llama")
    lm.tokenizer.chat_template = template
    with pytest.raises(ModelError, match=said):
        prompted(lm, toy_records(1), CHAT, "tiny")


def test_another_template_than_planned_is_refused() -> None:
    lm = model()
    digest = chat.ChatTemplate.of(lm.tokenizer, lm.bos, "tiny").digest
    assert prompted(lm, toy_records(1), DataSpec(prompt="chat", template=digest), "tiny")
    with pytest.raises(ModelError, match="is another than the plan saw"):
        prompted(model(template=DATED), toy_records(1), DataSpec(prompt="chat", template=digest), "tiny")


def test_a_subject_that_the_template_says_too_is_refused_before_the_first_edit() -> None:
    lm, records = prompted(model(template=f"I am Ana. {TEMPLATE}"), toy_records(1), CHAT, "tiny")
    writer = rome.Rome(rome.RomeConfig.model_validate({"layers": [1]}))
    with pytest.raises(RecordError, match="subject 'Ana' occurs 2 times"):
        check_records(lm, writer, records)


def test_a_trial_writes_and_asks_turns(tmp_path: Path) -> None:
    """What it yields is what plain prompts yield that are such turns already."""
    asked = lifelong_trial("ft", rounds=(0, 2))
    turns = asked.model_copy(update={"data": asked.data.model_copy(update={"prompt": "chat"})})
    lm, records = prompted(model(), toy_records(2), CHAT, "tiny")

    def run(spec: TrialSpec, lm: LanguageModel, records: Sequence[EditRecord]) -> list[Any]:
        rounds = Lifelong().execute(spec, deps(tmp_path, lm, records), None)
        # But for the keys, which tell the two ways apart.
        return [
            (step, [replace(r, trial_key="") for r in rows], [replace(s, trial_key="") for s in stats], *rest)
            for step, rows, stats, *rest in facts(list(rounds))
        ]

    found = run(turns, model(), toy_records(2))
    assert same(found, run(asked, lm, records))
    assert not same(found, run(asked, model(), toy_records(2)))


def trial(folder: Path, workspace: Workspace, **data: object) -> Any:
    base = {"model": {"name": "tiny", "path": str(folder)}, "data": {"name": "world", "size": 1, **data}}
    tree = {"sweep": "s", "base": base, "arms": {"one": {"editor": "null"}}}
    (planned,) = plan(parse_search_space(tree, file="flags"), workspace).trials
    return planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = save_tiny(tmp_path / "tiny", "llama", adds_bos=True)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    return made


def test_the_key_holds_what_the_template_does(folder: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, share=tmp_path / "share")
    with pytest.raises(ProblemsError) as caught:
        trial(folder, workspace, prompt="chat")
    assert [p.message for p in caught.value.problems] == [
        "data.prompt: chat, but the tokenizer of model 'tiny' has no chat template"
    ]
    plain = trial(folder, workspace)
    assert plain.key == trial(folder, workspace, prompt="plain").key
    found = []
    for template in (TEMPLATE, DATED):
        (folder / "chat_template.jinja").write_text(template)
        planned = trial(folder, workspace, prompt="chat")
        lm = load_folder(folder)
        assert planned.trial.data.template == chat.ChatTemplate.of(lm.tokenizer, lm.bos, "tiny").digest
        found.append(planned)
    assert len({plain.key, *(p.key for p in found)}) == 3
    assert len({p.trial.data.template for p in found}) == 2


def test_a_study_with_prompts_of_its_own_takes_none(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tree = {
        "sweep": "s",
        "study": "belief",
        "base": {
            "model": {"name": "tiny", "path": str(folder)},
            "data": {"name": "world", "size": 1, "prompt": "chat"},
        },
        "arms": {"one": {"editor": "null"}},
    }
    with pytest.raises(ProblemsError) as caught:
        plan(parse_search_space(tree, file="flags"), Workspace(tmp_path, share=tmp_path / "share"))
    assert any("data.prompt: chat, but the study 'belief" in p.message for p in caught.value.problems)
