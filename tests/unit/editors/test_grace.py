"""GRACE: radii by hand, exact locality, generated targets, one key position per row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raysweep.editors.grace import Grace, GraceConfig
from raysweep.editors.grace_entries import EVENTS, place
from raysweep.evals.generation import generate, score_generated
from raysweep.evals.scoring import score
from raysweep.models import tokens
from raysweep.models.forward import blocks
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import codebook
from raysweep.models.modules import replacement as replacement_module
from raysweep.pytree import flatten
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.testing.fixtures import embedded_lm, fingerprint, same, tiny_lm, toy_records
from raysweep.world import WorldSpec, build_world, edit_records
from tests.golden.recorded import model

CONFIG = GraceConfig(layer=1, steps=60)


def book(radius: float = 1.0) -> dict[str, Any]:
    return {
        "keys": torch.zeros(1, 2),
        "values": torch.zeros(1, 3),
        "radii": torch.tensor([radius]),
        "labels": [[5]],
        "masked": [4],
    }


def at(distance: float, target: tuple[list[int], int], **changes: Any) -> tuple[list[float], int, str]:
    config = CONFIG.model_copy(update=changes)
    new, i, event = place(book(), torch.tensor([distance, 0.0]), torch.ones(3), target, config)
    return [round(r, 6) for r in new["radii"].tolist()], i, event


def test_radii_of_the_fixture() -> None:
    """ε_init = 1, one entry with ε = 1."""
    assert at(1.6, ([6], 4)) == ([0.79999, 0.8], 1, "split")
    assert at(1.6, ([5], 4)) == ([1.6], 0, "expanded")
    assert at(2.1, ([6], 4)) == ([1.0, 1.0], 1, "added")
    assert at(0.5, ([5], 4)) == ([1.0], 0, "reused")


def test_moving_average_moves_the_key() -> None:
    config = CONFIG.model_copy(update={"expand": "moving_average"})
    new, _, event = place(book(), torch.tensor([1.6, 0.0]), torch.ones(3), ([5], 4), config)
    assert event == "expanded"
    torch.testing.assert_close(new["keys"], torch.tensor([[0.8, 0.0]]))


def test_a_known_key_with_another_target_is_taken_over() -> None:
    near = {**book(), "keys": torch.ones(1, 2)}
    new, i, event = place(near, torch.ones(2), torch.full((3,), 7.0), ([6], 4), CONFIG)
    assert (i, event, new["labels"]) == (0, "taken_over", [[6]])
    assert new["values"].tolist() == [[7.0] * 3]
    ref = CONFIG.model_copy(update={"ref": True})
    assert place(near, torch.ones(2), torch.ones(3), ([6], 4), ref)[2] == "split"


@pytest.mark.parametrize("expand", ["coverage", "moving_average"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("radius", [1e-9, 0.3, 5.0])
def test_an_entry_reaches_the_query_it_was_written_for(size: float, radius: float, expand: Any) -> None:
    """Whatever came before: prompts told apart by little, told again, with their own or another target, and rounded anew."""
    rng, lm = torch.Generator().manual_seed(0), tiny_lm("llama")
    config = CONFIG.model_copy(update={"radius": radius, "expand": expand})
    state = {
        "keys": torch.zeros(0, 24),
        "values": torch.zeros(0, 3),
        "radii": torch.zeros(0),
        "labels": [],
        "masked": [],
    }
    centres, events = torch.randn(5, 24, generator=rng) * size, set()
    for step in range(300):
        near = torch.randn(24, generator=rng) * size * 10.0 ** -float(torch.randint(0, 9, (1,), generator=rng))
        query = centres[step % 5] + near * (step % 3 != 0)
        target = ([int(torch.randint(0, 3, (1,), generator=rng))], 4)
        state, chosen, event = place(state, query, torch.ones(3), target, config)
        events.add(event)
        noise = torch.randn(24, generator=rng)
        again = query + noise / noise.norm() * 1e-6 * query.norm()  # as another batch may round it
        module = Grace(config)._module(lm, *(state[part] for part in ("keys", "values", "radii")))
        module.values = torch.arange(float(len(state["keys"])))[:, None]
        assert int(module(again[None, None])[0, 0, 0]) == chosen, (step, event)
        assert state["labels"][chosen] == target[0]
        assert bool((state["radii"] > 0).all()), (step, event)
        if expand == "coverage":  # a key is the query that its entry began with: later ones never shut it out
            found = module(state["keys"][:, None])[:, 0, 0]
            assert torch.equal(found, module.values[:, 0]), (step, event)
    assert {"taken_over", "reused", *(["split"] if radius > 1e-3 * size else [])} <= events


def test_as_published_an_entry_may_miss_its_own_query() -> None:
    """``ref``: a second target for the same query leaves the older key a radius below zero."""
    ref = CONFIG.model_copy(update={"ref": True})
    new, i, event = place(book(), torch.zeros(2), torch.ones(3), ([6], 4), ref)
    assert (event, i) == ("split", 1)
    assert float(new["radii"][0]) == pytest.approx(-1e-5)
    assert float(new["radii"][1]) == 0.0


def test_the_published_label_rule_compares_means_and_mirrors_the_table() -> None:
    ref = CONFIG.model_copy(update={"ref": True})
    assert at(1.6, ([5], 5), ref=True)[2] == "split"  # the same target after a longer prompt
    assert at(1.6, ([5], 5))[2] == "expanded"
    two = {
        "keys": torch.tensor([[0.0, 0.0], [9.0, 0.0]]),
        "values": torch.zeros(2, 3),
        "radii": torch.ones(2),
        "labels": [[5], [6]],
        "masked": [4, 4],
    }
    query, value = torch.tensor([1.6, 0.0]), torch.ones(3)
    assert place(two, query, value, ([6], 4), ref)[2] == "expanded"  # key 0 meets label 1
    assert place(two, query, value, ([5], 4), CONFIG)[2] == "expanded"


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "embedded"])
def test_other_prompts_are_untouched_and_the_edited_one_generates_its_target(name: str) -> None:
    """random models can be steered at one token only, so their target is a single one."""
    lm = embedded_lm() if name == "embedded" else model(name)
    target = world_record().target if name == "embedded" else "the"
    record = replace(world_record(), target=target)
    others = [p.prompt for p in record.probes if p.kind is ProbeKind.LOCALITY]
    before = [logits(lm, text) for text in others]
    editor, ledger = Grace(CONFIG), Ledger(lm)
    step = editor.edit(lm, [record], editor.begin(lm, {}), artifacts={}, rng=torch.Generator().manual_seed(0))
    ledger.apply(step.patch)
    asked = tokens.labelled_ids(lm, record.prompt, tokens.join(record.prompt, record.target))
    probe = Probe(kind=ProbeKind.EFFICACY, prompt=record.prompt, target=target)
    try:
        assert generate(lm, [record.prompt], [len(asked.labels)]) == [list(asked.labels)]
        assert score_generated(lm, [probe])[0].answers == asked.labels
        assert all(torch.equal(logits(lm, text), b) for text, b in zip(others, before, strict=True))
    finally:
        ledger.restore()
    assert others


def world_record() -> EditRecord:
    return edit_records(build_world(WorldSpec()))[-1]


def logits(lm: LanguageModel, text: str) -> Tensor:
    ids, mask = tokens.pad([tokens.encode(lm, text)], lm.device)
    with torch.no_grad():
        return blocks.logits(lm, blocks.run(lm, ids=ids, mask=mask))


@pytest.mark.parametrize("replacement", ["last", "prompt", "all"])
def test_each_row_has_its_own_key_position(replacement: Any) -> None:
    """Padded to one width, asked at different places: each row gets what it gets alone."""
    torch.manual_seed(0)
    inner = torch.nn.Linear(4, 3)
    states, last = torch.randn(3, 6, 4), [2, 4, 3]
    keys = torch.stack([states[0, 2], states[1, 4]])
    module = codebook.Codebook(inner, keys, torch.full((2, 3), 9.0), torch.full((2,), 0.1), replace=replacement)
    lm = tiny_lm("llama")
    name = lm.layout.mlp_out.format(1)
    with (
        replacement_module.modules_replaced(lm, {name: module}),
        replacement_module.row_context(lm, last, torch.ones(3, 6)),
    ):
        out = module(states)
    plain = inner(states)
    for row, q in enumerate(last):
        for t in range(6):
            inside = {"last": t == q, "prompt": t < q, "all": True}[replacement] and row < 2
            wanted = torch.full((3,), 9.0) if inside else plain[row, t]
            assert torch.equal(out[row, t], wanted), (row, t)
    assert module.context is None
    assert lm.part(name) is not module


def test_teacher_forced_scores_do_not_depend_on_the_batch() -> None:
    lm, records = tiny_lm("llama", bos=True), toy_records(4)
    editor, ledger = Grace(CONFIG.model_copy(update={"radius": 3.0, "steps": 10})), Ledger(lm)
    step = editor.edit(lm, records, editor.begin(lm, {}), artifacts={}, rng=torch.Generator())
    long = [Probe(kind=ProbeKind.EFFICACY, prompt=p.prompt + " now" * i, target=p.target)
            for r in records for i, p in enumerate(r.probes)]  # fmt: skip
    probes = [p for r in records for p in r.probes] + long
    ledger.apply(step.patch)
    try:
        together, alone = score(lm, probes), [score(lm, [p])[0] for p in probes]
    finally:
        ledger.restore()
    assert [s.answers for s in together] == [s.answers for s in alone]
    assert [s.logprob for s in together] == pytest.approx([s.logprob for s in alone], abs=1e-4)


def test_a_second_edit_of_a_prompt_wins() -> None:
    lm, record = model("tiny-gpt2"), replace(toy_records(1)[0], target="of")
    other = replace(record, target="the")
    editor, ledger = Grace(CONFIG), Ledger(lm)
    state = editor.begin(lm, {})
    for r in (record, other):
        step = editor.edit(lm, [r], state, artifacts={}, rng=torch.Generator().manual_seed(1))
        state = step.state
    ledger.apply(step.patch)
    try:
        found = score(lm, [Probe(kind=ProbeKind.EFFICACY, prompt=record.prompt, target="the")])[0]
    finally:
        ledger.restore()
    assert found.answers == found.labels
    assert len(state["keys"]) == 1


def test_the_published_comparison_takes_the_last_ids_of_everything() -> None:
    """Quirk Q7: ids without a joining space against the end of prompt and continuation; what is not there never matches."""
    lm = embedded_lm()
    (probe,) = (p for p in world_record().probes if p.kind is ProbeKind.EFFICACY)
    ours, theirs = score_generated(lm, [probe])[0], score_generated(lm, [probe], published=True)[0]
    assert ours.labels == tokens.labelled_ids(lm, probe.prompt, tokens.join(probe.prompt, probe.target)).labels
    assert theirs.labels == tuple(tokens.encode_alone(lm, probe.target))
    written = generate(lm, [probe.prompt], [len(theirs.labels)])[0]
    assert theirs.answers == (*tokens.encode(lm, probe.prompt), *written)[-len(theirs.labels) :]
    assert math.isnan(theirs.logprob)
    byte = tiny_lm("llama")
    short = Probe(kind=ProbeKind.EFFICACY, prompt="A", target="x" * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysweep.evals.generation._continue", lambda lm, rows: [[1] for _ in rows])  # the end at once
        found = score_generated(byte, [short], published=True)[0]
    assert found.answers == (*[-1] * 38, *tokens.encode(byte, "A"), 1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("replaced", ["last", "prompt", "all"])
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_an_edit_is_its_proposal_absorbed_bit_for_bit(family: str, replaced: Any, start: Any) -> None:
    """Whatever happens to the codebook: an entry added or taken over, and a neighbour's own that is trained on."""
    lm, editor = (
        tiny_lm(family),
        Grace(CONFIG.model_copy(update={"steps": 5, "replace": replaced, "start": start, "radius": 2.0})),
    )
    records = toy_records(4)
    records = [*records, records[0], replace(records[1], target=records[2].target), records[3]]
    rngs = [torch.Generator().manual_seed(i) for i in range(len(records))]
    # proposed before any of them is written, and from the last to the first
    proposals = [editor.propose(lm, [r], artifacts={}, rng=g) for r, g in zip(records[::-1], rngs[::-1], strict=True)]
    state, absorbed, seen = editor.begin(lm, {}), editor.begin(lm, {}), set()
    ledger = Ledger(lm)
    for i, (record, proposal) in enumerate(zip(records, proposals[::-1], strict=True)):
        rng = torch.Generator().manual_seed(i)
        step = editor.edit(lm, [record], state, artifacts={}, rng=rng)
        other = editor.absorb(lm, absorbed, proposal)
        assert same(flatten("state", step.state), flatten("state", other.state)), i
        assert step.stats == other.stats
        seen |= {event for event in EVENTS if step.stats[event]}
        ledger.apply(step.patch)
        state, absorbed = step.state, other.state
    ledger.restore()
    assert {"added", "reused", "taken_over"} <= seen


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("replaced", ["last", "prompt", "all"])
def test_values_trained_together_are_those_trained_alone(family: str, replaced: Any) -> None:
    lm, editor = tiny_lm(family), Grace(CONFIG.model_copy(update={"steps": 6, "replace": replaced, "batch": 5}))
    records = toy_records(5)
    rngs = [torch.Generator().manual_seed(i) for i in range(5)]
    before = fingerprint(lm)
    together = editor.propose_many(lm, [[r] for r in records], artifacts={}, rngs=rngs)
    assert same(before, fingerprint(lm))
    for i, record in enumerate(records):
        rng = torch.Generator().manual_seed(i)
        alone = editor.propose(lm, [record], artifacts={}, rng=rng)
        first, second = (flatten("proposal", one) for one in (together[i], alone))
        assert first[0].keys() == second[0].keys()
        for name, tensor in first[0].items():
            torch.testing.assert_close(tensor, second[0][name], rtol=1e-3, atol=1e-4)


def test_what_a_first_map_reads_depends_on_the_radius_so_it_proposes_nothing() -> None:
    editor = Grace(CONFIG.model_copy(update={"matrix": "in", "batch": 4}))
    assert not editor.can_propose()
    assert editor.group_size == 1
