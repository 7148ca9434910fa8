"""WISE: routing by hand, masks, mergers, what it refuses, rows of a batch that decide for themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raysweep.artifacts import Artifact
from raysweep.editors.locate import contexts
from raysweep.editors.specs import ContextSpec
from raysweep.editors.wise import padded_rows, training
from raysweep.editors.wise.config import MarginSpec, MergeSpec, WiseConfig
from raysweep.editors.wise.editor import Wise
from raysweep.errors import RecordError
from raysweep.evals.scoring import score
from raysweep.models.ledger import Ledger
from raysweep.models.modules import replacement, side_memory
from raysweep.testing.fixtures import FAMILIES, tiny_lm, toy_records

SMALL: dict[str, Any] = {
    "layer": 1,
    "steps": 3,
    "lr": 0.5,
    "margins": MarginSpec(alpha=0.5, beta=2.0, gamma=1.0),
    "contexts": ContextSpec(templates=("So, {}",)),
}


def run(editor: Wise, lm: Any, n: int = 1) -> tuple[list[dict[str, Any]], Any]:
    states, state = [], editor.begin(lm, {})
    ledger = Ledger(lm)
    for i, record in enumerate(toy_records(n)):
        step = editor.edit(lm, [record], state, artifacts={}, rng=torch.Generator().manual_seed(i))
        ledger.apply(step.patch)
        state = step.state
        states.append(state)
    ledger.restore()
    return states, step


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_a_statistic_the_frozen_map_answers(family: str) -> None:
    """A = 1e9, so nothing reaches the threshold."""
    lm, probes = tiny_lm(family), [p for r in toy_records(3) for p in r.probes]
    editor = Wise(WiseConfig(**SMALL, matrix="in"))
    states, _ = run(editor, lm)
    before = score(lm, probes)
    ledger = Ledger(lm)
    answers = {}
    for act in (1e9, 0.0):
        ledger.apply(editor.module_patch(lm, {**states[0], "act": act}))
        answers[act] = score(lm, probes)
        ledger.restore()
    assert [s.answers for s in answers[1e9]] == [s.answers for s in before]
    assert [s.logprob for s in answers[1e9]] == pytest.approx([s.logprob for s in before], abs=1e-5)
    assert [s.logprob for s in answers[0.0]] != [s.logprob for s in before]


@pytest.mark.parametrize("masked", [True, False])
def test_the_gradient_respects_the_mask_and_decay_only_if_asked(masked: bool) -> None:
    """outside the mask only decay acts (quirk Q29), or nothing."""
    lm = tiny_lm("llama")
    config = WiseConfig(**SMALL, weight_decay=1e-3, mask_weight_decay=masked)
    editor = Wise(config)
    frozen = editor.begin(lm, {})["side"]
    states, step = run(editor, lm)
    outside = ~states[0]["mask"]
    decayed = frozen if masked else frozen * (1 - config.lr * config.weight_decay) ** step.stats["steps"]
    torch.testing.assert_close(states[0]["side"][outside], decayed[outside])
    assert not torch.allclose(states[0]["side"][~outside], frozen[~outside])
    assert float(states[0]["mask"].float().mean()) == pytest.approx(0.2, abs=0.02)


def test_shards_and_mergers_in_retrieve_mode() -> None:
    lm = tiny_lm("gpt2")
    editor = Wise(WiseConfig(**SMALL, shard=1, merge_every=2, matrix="in"))
    states, _ = run(editor, lm, 5)
    assert [len(s["memories"]) for s in states] == [1, 1, 2, 2, 3]
    assert [s["mergers"] for s in states] == [0, 1, 1, 2, 2]
    assert [s["act"] for s in states] == [training.NO_DISTANCE] * 5
    assert states[1]["acts"] == [min(states[0]["acts"][0], states[1]["acts"][0])]
    assert all(torch.equal(s["side"], states[0]["side"]) for s in states)


def test_merge_mode_keeps_one_weight_and_measures_what_is_pending() -> None:
    lm = tiny_lm("llama")
    editor = Wise(WiseConfig(**SMALL, shard=1, merge_every=2, retrieve=False, merge=MergeSpec(algorithm="linear")))
    states, _ = run(editor, lm, 3)
    assert [len(s["memories"]) for s in states] == [1, 0, 1]
    assert states[0]["merged"] is None
    assert states[2]["act"] <= states[0]["act"] < training.NO_DISTANCE  # merge mode has one statistic
    frozen, merged, memory = states[0]["side"], states[1]["merged"], states[2]["memories"][0]
    torch.testing.assert_close(
        editor.merge_mode_weight(lm, states[2]), frozen + 0.4 * (memory - frozen) + 0.6 * (merged - frozen)
    )
    assert torch.equal(states[2]["merged"], merged)  # asking merges for the occasion only


@pytest.mark.parametrize("replay", [True, False])
def test_replay_goes_round_the_merged_groups(replay: bool) -> None:
    lm = tiny_lm("llama")
    editor = Wise(WiseConfig(**SMALL, shard=1, merge_every=2, replay=replay))
    states, _ = run(editor, lm, 3)
    last = states[-1]
    if replay:
        assert [len(g) for g in last["groups"]] == [2]
        assert last["group"] == [[toy_records(3)[2].prompt, toy_records(3)[2].target]]
        assert last["cursors"] == [1]  # three steps over a group of two
    else:
        assert (last["groups"], last["group"]) == ([], [])


def test_routing_by_hand() -> None:
    """Rows choose by the activations of their real tokens; the largest movement above its threshold wins."""
    inner = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(inner.weight).requires_grad_(False)
    eye = torch.eye(2)
    module = side_memory.SideMemory(inner, lambda x: x, lambda: (eye, 3 * eye), (1.0, 4.0))
    states = torch.zeros(3, 4, 2)
    states[:, :, 0] = torch.tensor([0.5, 1.1, 2.0])[:, None]  # moved by 0.5, 1.1, 2.0 and three times that
    assert module(states)[:, 0, 0].tolist() == pytest.approx([0.0, 1.1, 6.0])
    short = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    states[2, 1:] = 100.0  # padding must not count
    states[2, 0, 0] = 0.5
    module.context = replacement.RowContext(torch.zeros(3, dtype=torch.int64), short)
    assert module(states)[:, 0, 0].tolist() == pytest.approx([0.0, 1.1, 0.0])
    long = torch.zeros(1, side_memory.LONG_ROW + 1, 2)
    long[0, 7, 0] = 1.5  # long rows are judged by their largest token
    module.context = None
    assert float(module(long)[0, 7, 0]) == pytest.approx(4.5)


def test_scores_do_not_depend_on_the_batch() -> None:
    lm, probes = tiny_lm("qwen2"), [p for r in toy_records(6) for p in r.probes]
    editor = Wise(WiseConfig(**SMALL, shard=1, merge_every=2, matrix="in"))
    _, step = run(editor, lm, 3)
    ledger = Ledger(lm)
    ledger.apply(step.patch)
    together, alone = score(lm, probes), [score(lm, [p])[0] for p in probes]
    ledger.restore()
    assert [s.answers for s in together] == [s.answers for s in alone]
    assert [s.logprob for s in together] == pytest.approx([s.logprob for s in alone], abs=1e-4)


def test_a_record_without_unrelated_text_is_refused_unless_there_is_one_for_all() -> None:
    lm, bare = tiny_lm("llama"), replace(toy_records(1)[0], unrelated="")
    editor = Wise(WiseConfig(**SMALL))
    with pytest.raises(RecordError, match="no unrelated text"):
        editor.edit(lm, [bare], editor.begin(lm, {}), artifacts={}, rng=torch.Generator())
    given = Wise(WiseConfig(**SMALL, unrelated="The sea is wide"))
    assert given.edit(lm, [bare], given.begin(lm, {}), artifacts={}, rng=torch.Generator()).stats["steps"] == 3


def test_published_rows_pad_left_and_may_ask_too_much() -> None:
    """Quirk Q28: an unrelated text that is the longest row turns prompt tokens into labels; ours never does."""
    lm = tiny_lm("llama", bos=True)
    record, long = ("The pet of Bo is", "cat"), "x" * 60
    ours = padded_rows.right_rows(lm, ["{}", "So, {}"], record, [long])
    assert [end - first for first, end in ours.answers] == [4, 4]  # " cat"
    correct = padded_rows.left_rows(lm, ["{}", "So, {}"], record, [long], ref_labels=False)
    published = padded_rows.left_rows(lm, ["{}", "So, {}"], record, [long], ref_labels=True)
    assert [end - first for first, end in correct.answers] == [4, 4]
    assert all(end - first > 4 for first, end in published.answers)
    assert bool(published.counted.all())
    fits = padded_rows.left_rows(lm, ["{}", "So, {}"], record, ["x"], ref_labels=True)
    assert [end - first for first, end in fits.answers] == [4, 4]


def test_margins_by_hand() -> None:
    margins = MarginSpec(alpha=5, beta=20, gamma=10)
    edits, other = torch.tensor([0.0, 30.0]), torch.tensor([6.0])
    # (6 - 0 + 10), (6 - 30 + 10 < 0) -> 16; 6 - 5 = 1; 20 - 0 = 20 (20 - 30 < 0)
    assert float(training.activation_loss(edits, other, margins)) == pytest.approx(16 + 1 + 20)
    assert float(training.positive_mean(torch.tensor([-1.0]))) == 0.0


def test_mergers_must_fall_on_shards() -> None:
    with pytest.raises(ValidationError, match="must be a multiple of shard"):
        WiseConfig(layer=0, shard=500, merge_every=700)
    with pytest.raises(ValidationError, match="set ref_padding too"):
        WiseConfig(layer=0, ref_labels=True)


def test_templates_continue_the_openings() -> None:
    lm = tiny_lm("llama", bos=True)
    editor = Wise(WiseConfig(layer=1))
    request = editor.artifact_requests(lm)["contexts"]
    assert request != contexts.request(lm, editor.config.contexts)
    ((tensors, meta),) = contexts.build_continuations(lm, [request], iter(()))
    found = contexts.templates(editor.config.contexts, Artifact("x", tensors, meta))
    assert found[0] == "{}"
    assert len(found) == 11
    assert all(t.endswith(" {}") and t.count("{}") == 1 for t in found[1:])
    assert [t.startswith(o.strip()) for t, o in zip(found[1:6], contexts.OPENINGS, strict=True)] == [True] * 5
