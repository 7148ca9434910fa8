"""The loop's three named properties, and what a round measures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.artifacts import ArtifactStore
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.records import EditRecord
from raysweep.results.finite import first_non_finite
from raysweep.rows import NON_FINITE_STAT, EvalRound
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.studies.measuring import superseded_steps
from raysweep.summarize import summary
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records
from tests.tokenizers.models import loaded

VALUE = {"steps": 4, "lr": 0.5}
EDITORS = {
    "ft": EditorSpec(name="ft", config={"layers": [1], "steps": 3, "lr": 1e-2}),
    "memit": EditorSpec(name="memit", config={"layers": [0, 1], "value": VALUE, "moment_weight": 1.0}),
    "memit+simie": EditorSpec(
        name="memit",
        config={"layers": [0, 1], "value": VALUE, "moment_weight": 1.0},
        wrap=(WrapSpec(name="simie", config={"lam": 0.1, "mode": "init"}),),
    ),
    "memit+closed simie": EditorSpec(
        name="memit",
        config={"layers": [0, 1], "value": VALUE, "moment_weight": 1.0},
        wrap=(WrapSpec(name="simie", config={"lam": {"energy": 0.01}, "mode": "init", "backend": "closed64"}),),
    ),
    "memit+closed simie, by threes": EditorSpec(
        name="memit",
        config={"layers": [0, 1], "value": {**VALUE, "batch": 3}, "moment_weight": 1.0},
        wrap=(WrapSpec(name="simie", config={"lam": {"energy": 0.01}, "mode": "init", "backend": "closed64"}),),
    ),
    "lora+closed simie, by threes": EditorSpec(
        name="lora",
        config={"steps": 3, "lr": 1e-2, "batch": 3},
        wrap=(WrapSpec(name="simie", config={"lam": {"energy": 0.01}, "mode": "init", "backend": "closed64"}),),
    ),
    "oracle": EditorSpec(name="oracle"),
    "grace": EditorSpec(name="grace", config={"layer": 1, "steps": 3, "radius": 2.0}),
    "grace, by threes": EditorSpec(name="grace", config={"layer": 1, "steps": 3, "radius": 2.0, "batch": 3}),
    "wise": EditorSpec(
        name="wise",
        config={
            "layer": 1,
            "steps": 3,
            "shard": 1,
            "merge_every": 3,
            "contexts": {"lengths": [[2, 1]]},
            "act_ratio": 0.5,
        },
    ),
    "wise-merged": EditorSpec(
        name="wise",
        config={
            "layer": 1,
            "steps": 3,
            "shard": 2,
            "merge_every": 4,
            "retrieve": False,
            "act_ratio": 0.5,
            "merge": {"algorithm": "dare_ties"},
            "contexts": {"templates": []},
        },
    ),
    "alphaedit": EditorSpec(
        name="alphaedit", config={"layers": [0, 1], "value": VALUE, "threshold": 0.01, "ridge": 0.01, "pre": 1}
    ),
    "rome+prune": EditorSpec(
        name="rome",
        config={"layers": [1], "value": VALUE, "moments": {"damping": 1e-3}},
        wrap=(WrapSpec(name="prune", config={"base": "linear"}),),
    ),
}
PERSISTENT = EDITORS["rome+prune"].model_copy(
    update={"wrap": (WrapSpec(name="prune", config={"base": "linear", "persist": True}),)}
)


def deps(root: Path, lm: Any, records: Sequence[EditRecord] | None = None) -> Deps:
    chosen = toy_records(8) if records is None else records

    def texts(*_: object) -> Iterator[str]:
        return (f"{p.prompt} {p.target}" for r in toy_records(12) for p in r.probes)

    return Deps(load_model=lambda _: lm, open_dataset=lambda _: chosen, artifacts=ArtifactStore(root), texts=texts)


def trial(editor: str, **protocol: Any) -> TrialSpec:
    return TrialSpec(
        study="lifelong",
        model=ModelSpec(name="tiny"),
        data=DataSpec(name="toy", order="file"),
        editor=EDITORS[editor],
        protocol=ProtocolSpec(**({"rounds": (0, 2, 4, 6)} | protocol)),
        seed=0,
    )


def facts(rounds: Sequence[EvalRound]) -> list[Any]:
    """Everything of a round that is not a time."""
    return [(r.step, r.rows, r.stats, dict(r.summary), dict(r.snapshot.tensors) if r.snapshot else {}) for r in rounds]


@pytest.mark.parametrize("editor", sorted(EDITORS))
def test_resume_equals_straight_run(editor: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    before = fingerprint(lm)
    t = trial(editor)
    straight = list(Lifelong().execute(t, deps(tmp_path, lm), None))
    assert same(before, fingerprint(lm)), "the model must be pristine again"
    resumed = list(Lifelong().execute(t, deps(tmp_path, tiny_lm("llama")), straight[2].snapshot))
    assert [r.step for r in resumed] == [6]
    assert same(facts(resumed), facts(straight[3:]))


@pytest.mark.parametrize("editor", sorted(EDITORS))
def test_measuring_changes_nothing(editor: str, tmp_path: Path) -> None:
    """Adding rounds, or turning the immediate measurement off, alters no other row."""
    lm = tiny_lm("gpt2")
    few = list(Lifelong().execute(trial(editor, rounds=(6,), immediate=False), deps(tmp_path, lm), None))
    many = list(Lifelong().execute(trial(editor, rounds=(0, 1, 2, 3, 4, 5, 6)), deps(tmp_path, lm), None))

    def last(rounds: Sequence[EvalRound]) -> list[Any]:
        return [replace(r, trial_key="") for r in rounds[-1].rows if r.step == 6]

    assert last(few) == last(many)
    assert few[-1].snapshot is not None
    assert many[-1].snapshot is not None
    assert same(dict(few[-1].snapshot.tensors), dict(many[-1].snapshot.tensors))


def pruned(rounds: Sequence[EvalRound]) -> list[tuple[int, float]]:
    """Step and count of restrained singular values of each view."""
    return [(s.step, s.value) for r in rounds for s in r.stats if s.name.startswith("pruned/")]


def test_a_view_is_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement after an edit sees the view, also the immediate ones; the weights of the run never do."""
    lm = tiny_lm("llama")
    monkeypatch.setitem(EDITORS, "rome", EDITORS["rome+prune"].model_copy(update={"wrap": ()}))
    plain = list(Lifelong().execute(trial("rome"), deps(tmp_path, lm), None))
    viewed = list(Lifelong().execute(trial("rome+prune"), deps(tmp_path, lm), None))
    counts = pruned(viewed)
    assert [step for step, _ in counts] == [1, 2, 3, 4, 5, 6]
    assert min(value for _, value in counts) >= 1
    for bare, ours in zip(plain[1:], viewed[1:], strict=True):
        assert bare.snapshot is not None
        assert ours.snapshot is not None
        for name, tensor in bare.snapshot.tensors.items():
            assert torch.equal(tensor, ours.snapshot.tensors[name])
        for row, other in zip(bare.rows, ours.rows, strict=True):
            if row.metric == "ppl" and row.probe_kind == "efficacy":
                assert (row.record_id, row.step) == (other.record_id, other.step)
                assert row.value != other.value, f"the row of step {row.step} did not see the view"


def test_a_persistent_view_is_written_at_rounds_only_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds change the trajectory, immediate measurements do not, and a snapshot holds the pruned weights."""
    lm = tiny_lm("llama")
    monkeypatch.setitem(EDITORS, "persistent", PERSISTENT)
    before = fingerprint(lm)
    straight = list(Lifelong().execute(trial("persistent"), deps(tmp_path, lm), None))
    assert same(before, fingerprint(lm)), "the model must be pristine again"
    resumed = list(Lifelong().execute(trial("persistent"), deps(tmp_path, tiny_lm("llama")), straight[2].snapshot))
    assert same(facts(resumed), facts(straight[3:]))

    def last(editor: str, **protocol: Any) -> Any:
        found = list(Lifelong().execute(trial(editor, **protocol), deps(tmp_path, lm), None))[-1].snapshot
        assert found is not None
        return {name: tensor for name, tensor in found.tensors.items() if name.startswith("weights/")}

    assert straight[-1].snapshot is not None
    end = {n: t for n, t in straight[-1].snapshot.tensors.items() if n.startswith("weights/")}
    assert same(last("persistent", immediate=False), end)
    assert not same(last("persistent", rounds=(0, 6)), end)
    assert not same(last("rome+prune"), end)


def test_a_batch_is_written_at_once(tmp_path: Path) -> None:
    rounds = list(Lifelong().execute(trial("memit", batch_size=2), deps(tmp_path, tiny_lm("llama")), None))
    assert [r.step for r in rounds] == [0, 2, 4, 6]
    immediate = {(r.record_id, r.step) for r in rounds[1].rows if r.step - r.edit_step < 2}
    assert immediate == {("toy/000000", 2), ("toy/000001", 2)}


def test_a_round_measures_what_is_in_scope(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    seen = list(Lifelong().execute(trial("ft"), deps(tmp_path, lm), None))
    assert {r.record_id for r in seen[1].rows if r.step == 2} == {"toy/000000", "toy/000001"}
    assert len({r.record_id for r in seen[0].rows}) == 6  # the floor: all records of the run, unedited
    every = list(Lifelong().execute(trial("ft", scope="all"), deps(tmp_path, lm), None))
    assert len({r.record_id for r in every[1].rows if r.step == 2}) == 6


def test_summaries_are_derivable_from_rows(tmp_path: Path) -> None:
    rounds = list(Lifelong().execute(trial("ft"), deps(tmp_path, tiny_lm("llama")), None))
    rows = [r for e in rounds for r in e.rows]
    columns = {name: [getattr(r, name) for r in rows] for name in type(rows[0]).__dataclass_fields__}
    for e in rounds:
        assert dict(e.summary) == summary(columns, e.step, 1)
    assert rounds[-1].summary["immediate/rel"] == pytest.approx(
        sum(r.value for r in rows if r.step == r.edit_step and r.metric == "token_match" and r.probe_kind == "efficacy")
        / 6
    )


def test_the_oracle_is_the_ceiling_and_null_the_floor(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    best = list(Lifelong().execute(trial("oracle"), deps(tmp_path, lm), None))[-1].summary
    assert best["retained/rel"] == best["retained/gen"] == best["retained/loc"] == 1.0
    EDITORS["null"] = EditorSpec(name="null")
    try:
        rounds = list(Lifelong().execute(trial("null", scope="all"), deps(tmp_path, lm), None))
    finally:
        del EDITORS["null"]
    assert rounds[-1].summary["retained/rel"] == rounds[0].summary["pristine/rel"]
    assert rounds[-1].summary["retained/loc"] == 1.0


def test_a_contradicted_record_is_superseded() -> None:
    a, b, c = toy_records(3)
    again = replace(a, id="toy/9", target="zz")
    same_again = replace(a, id="toy/8")
    assert superseded_steps([a, b, again, c]) == {0: 3}
    assert superseded_steps([a, b, same_again, again]) == {0: 4, 2: 4}
    assert superseded_steps([a, b, same_again]) == {}


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    list(Lifelong().execute(trial("memit"), deps(tmp_path, tiny_lm("llama")), None))
    assert torch.equal(before, torch.random.get_rng_state())


def test_check_says_what_does_not_fit() -> None:
    t = trial("ft", rounds=(0, 50)).model_copy(update={"data": DataSpec(name="toy", size=20)})
    found = [str(p) for p in Lifelong().check(t, 10)]
    assert "data.size = 20, but 'toy' has 10 records" in found[0]
    assert "rounds beyond the data: [50]" in found[1]


@pytest.mark.parametrize("editor", ["oracle", "grace"])
def test_generation_is_another_way_to_ask_and_leaves_the_edits_alone(editor: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama", bos=True)
    forced = list(Lifelong().execute(trial(editor, rounds=(0, 3)), deps(tmp_path, lm), None))
    written = list(Lifelong().execute(trial(editor, rounds=(0, 3), asking="generation"), deps(tmp_path, lm), None))
    assert same(dict(forced[-1].snapshot.tensors), dict(written[-1].snapshot.tensors))  # type: ignore[union-attr]
    pairs = list(zip(forced[-1].rows, written[-1].rows, strict=True))
    assert all(a.n_tokens == b.n_tokens and a.prompt_digest == b.prompt_digest for a, b in pairs)
    assert all(a.value == b.value for a, b in pairs if a.metric in ("target_logprob", "ppl"))
    if editor == "oracle":  # knows its answers either way
        assert all(b.value == 1.0 for _, b in pairs if b.metric in ("token_match", "exact_match"))
    else:  # one byte wrong and what follows is another story
        assert any(a.answer != b.answer for a, b in pairs)


def test_the_published_comparison_of_generated_answers_has_no_probabilities(tmp_path: Path) -> None:
    """Quirk Q7: ``asking: generation_ref``; what is not asked for is missing, and locality compares its own two answers."""
    lm = tiny_lm("llama", bos=True)
    rounds = list(Lifelong().execute(trial("grace", rounds=(0, 3), asking="generation_ref"), deps(tmp_path, lm), None))
    rows = [r for found in rounds for r in found.rows]
    assert {r.metric for r in rows if r.value is None} == {"target_logprob", "ppl"}
    assert all(
        r.n_tokens == 2 for r in rows if r.probe_kind == "efficacy"
    )  # the target's two letters, without its space
    assert rounds[0].summary["pristine/loc"] == 1.0
    assert "pristine/ppl" not in rounds[0].summary


def test_what_a_tokenizer_splits_elsewhere_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Quirk Q3."""
    lm = loaded("llama-2", tmp_path / "llama-2")
    list(Lifelong().execute(trial("oracle"), deps(tmp_path, lm), None))
    assert "inside a token" not in caplog.text
    glued = [replace(r, subject="Quess", prompt=f"The pet of Quessel is {i}") for i, r in enumerate(toy_records(8))]
    list(Lifelong().execute(trial("oracle"), deps(tmp_path, lm, glued), None))
    assert caplog.text.count("inside a token") == 1
    assert "6 of 6 subjects end inside a token, first: 'The pet of Quess' in 'The pet of Quessel is 0'" in caplog.text


WILD = EditorSpec(name="ft", config={"layers": [1], "steps": 3, "lr": 1e38})


@pytest.mark.parametrize("immediate", [True, False])
def test_weights_that_are_not_finite_are_noted_at_their_first_step(tmp_path: Path, immediate: bool) -> None:
    """What was measured after them is NaN, not 0; the summary leaves it out; a sound run has no such row."""
    one = trial("ft", rounds=(0, 2, 4), immediate=immediate)
    wild = TrialSpec.model_validate({**one.model_dump(), "editor": WILD.model_dump()})
    rounds = list(Lifelong().execute(wild, deps(tmp_path, tiny_lm("llama")), None))
    assert [first_non_finite(r.rows, r.stats) for r in rounds] == [None, 1 if immediate else 2, 3 if immediate else 4]
    assert all(math.isnan(row.value) for r in rounds[1:] for row in r.rows if row.value is not None)
    assert all(row.value is not None for r in rounds[1:] for row in r.rows if row.n_tokens)
    counts = {(r.step, r.name): r.value for found in rounds for r in found.stats if r.name.startswith(NON_FINITE_STAT)}
    assert {step for step, _ in counts} == {2, 4}
    assert all(value > 0 for value in counts.values())
    assert [bool(r.summary) for r in rounds] == [True, False, False]
    sound = list(Lifelong().execute(one, deps(tmp_path, tiny_lm("llama")), None))
    assert not [row for r in sound for row in r.stats if row.name.startswith(NON_FINITE_STAT)]


def test_a_collapse_survives_a_resume(tmp_path: Path) -> None:
    """The snapshot's rows have NaN in them: they come back as they were."""
    wild = TrialSpec.model_validate({**trial("ft").model_dump(), "editor": WILD.model_dump()})
    lm = tiny_lm("llama")
    straight = list(Lifelong().execute(wild, deps(tmp_path, lm), None))
    snapshot = straight[1].snapshot
    assert snapshot is not None
    kept = replace(snapshot, meta=json.loads(json.dumps(snapshot.meta)))
    resumed = list(Lifelong().execute(wild, deps(tmp_path, lm), kept))
    assert [(r.step, repr(r.rows), dict(r.summary)) for r in resumed] == [
        (r.step, repr(r.rows), dict(r.summary)) for r in straight[2:]
    ]
