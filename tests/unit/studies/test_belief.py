"""The belief studies: what is edited apart, what piles up, what the agent expects of either, and where the points come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raysweep.belief.lm import pretrain
from raysweep.belief.points.expected import agents_after_edits
from raysweep.belief.points.jsonl import from_line
from raysweep.belief.points.types import MODAL, REQUESTED, SAME_OTHER, SAME_SAME
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.data.belief_points import BeliefPoints as BeliefData
from raysweep.data.belief_points import edit_record, open_testbed, record_id
from raysweep.editors import ft, lora
from raysweep.editors.build import build_editor
from raysweep.errors import DataError, ModelError, ProblemsError, RecordError
from raysweep.models import tokens
from raysweep.models.sources import catalogue
from raysweep.models.sources.load import load
from raysweep.records import EditRecord, ProbeKind
from raysweep.rows import BeliefRow, EvalRound
from raysweep.seeds import derive
from raysweep.studies import belief_points
from raysweep.studies.base import Deps
from raysweep.studies.belief import Belief, BeliefLifelong
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same
from raysweep.tune.deps import make_deps
from raysweep.workspace import Workspace
from tests.unit.studies.test_lifelong import facts

SETTING = """\
source: a test
generative: {min_true_prob: 0.8, samples: 2}
corpus: {num_atomic_facts: 60, true_false: true, negations: true, disjunctions: true, conjunctions: true}
points: {size: 12}
pretrain:
  model: {hidden: 16, mlp: 32, heads: 2, layers: 2, positions: 128}
  tokens: 6000
  batch: 16
  lr: 1e-2
  optimiser: muon
  extension: 0
  bucketed: true
  evals: 2
  eval_points: 6
"""
LORA = {"lr": 2e-2, "steps": 4, "eval_every": 2, "at_once": 3}
EDITORS = {
    "ft": EditorSpec(name="ft", config={"layers": [1], "steps": 3, "lr": 1e-2}),
    "lora": EditorSpec(name="lora", config=LORA),
    "memit+simie": EditorSpec(
        name="memit",
        config={"layers": [0, 1], "value": {"steps": 3}, "moment_weight": 1.0},
        wrap=(WrapSpec(name="simie", config={"lam": 0.1}),),
    ),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny_workspace(tmp_path_factory.mktemp("belief"))


def tiny_workspace(root: Path) -> Workspace:
    """Make *root* a workspace with the small setting."""
    (root / "hparams/belief").mkdir(parents=True)
    (root / "hparams/belief/tiny.yaml").write_text(SETTING)
    return Workspace(root)


def trial(workspace: Workspace, editor: str, rounds: tuple[int, ...] = (0, 2, 5), study: str = "belief") -> TrialSpec:
    model = catalogue.resolve(ModelSpec(name="tiny"), workspace)
    data = DataSpec(name="belief", path="hparams/belief/tiny.yaml", size=rounds[-1])
    protocol = ProtocolSpec(batch_size=1, rounds=rounds)
    return TrialSpec(study=study, model=model, data=data, editor=EDITORS[editor], protocol=protocol, seed=1)


def beliefs(rounds: list[EvalRound]) -> list[BeliefRow]:
    return [row for found in rounds for row in found.beliefs]


def deps(workspace: Workspace) -> Deps:
    return make_deps(workspace)


@pytest.mark.parametrize("editor", ["ft", "memit+simie"])
def test_each_point_is_edited_from_the_pristine_model(editor: str, workspace: Workspace) -> None:
    own, have = trial(workspace, editor), deps(workspace)
    lm = have.load_model(own.model)
    before = fingerprint(lm)
    straight = list(Belief().execute(own, have, None))
    assert same(before, fingerprint(lm))
    assert [r.step for r in straight] == [0, 2, 5]
    rows = [row for r in straight[1:] for row in r.rows]
    assert {(r.step, r.edit_step) for r in rows} == {(i, i) for i in range(1, 6)}
    records = {r.id: r for r in have.open_dataset(own.data)}
    order = {r.edit_step: r.record_id for r in straight[0].points}
    for i in range(1, 6):
        alone = own.model_copy(
            update={
                "protocol": ProtocolSpec(batch_size=1, rounds=(1,), immediate=False),
                "data": own.data.model_copy(update={"order": "file"}),
            }
        )
        theirs = replace(have, open_dataset=lambda spec, i=i: [records[order[i]]])
        (found,) = Lifelong().execute(alone, theirs, None)
        expected = [replace(r, trial_key=own.key, step=i, edit_step=i) for r in found.rows]
        assert [r for r in rows if r.step == i] == expected
    answers = beliefs(straight)
    assert {(r.step, r.inner_step, r.last_step) for r in answers} == {
        (0, 0, False),
        *((i, 1, True) for i in range(1, 6)),
    }
    point = from_line(straight[0].points[0].point)
    target = next(r for r in answers if r.step == 1 and r.question == f"editing_{SAME_SAME}_{REQUESTED}")
    assert point.watched is not None
    assert target.expected == point.watched[SAME_SAME].targets["target"][REQUESTED].posterior_prob_o_given_s_r
    assert target.expected > 0.94
    assert {r.name for r in straight[0].training} > {"train_loss", "eval_loss", "eval_acc", "negation_loss"}
    resumed = list(Belief().execute(own, have, straight[1].snapshot))
    assert same(facts(resumed), facts(straight[2:]))
    assert beliefs(resumed) == list(straight[2].beliefs)


def test_points_edited_together_are_points_edited_apart(workspace: Workspace) -> None:
    have, own = deps(workspace), trial(workspace, "lora")
    lm = have.load_model(own.model)
    before = fingerprint(lm)
    single = own.model_copy(update={"editor": EditorSpec(name="lora", config={**LORA, "at_once": 1})})
    together, apart = (list(Belief().execute(t, have, None)) for t in (own, single))
    assert same(before, fingerprint(lm))
    one, two = ({(r.edit_step, r.inner_step, r.question): r for r in beliefs(found)} for found in (together, apart))
    assert one.keys() == two.keys()
    assert {inner for _, inner, _ in one} == {0, 2, 4}
    for at, row in one.items():
        assert row.probability == pytest.approx(two[at].probability, rel=2e-3, abs=1e-6), at
        assert row.last_step == (row.inner_step == 4)
    rise = [one[i, 4, "new_fact_case"].probability - one[i, 0, "new_fact_case"].probability for i in range(1, 6)]
    assert min(rise) > 0
    assert {(r.step, r.probe_kind) for r in together[-1].rows} >= {(5, "efficacy"), (5, "locality")}
    assert together[1].summary["immediate/rel"] == apart[1].summary["immediate/rel"]


def test_one_record_edited_along_is_the_record_edited(workspace: Workspace) -> None:
    have, own = deps(workspace), trial(workspace, "lora")
    lm, records = have.load_model(own.model), have.open_dataset(own.data)[:1]
    editor = build_editor(own.editor)
    done = editor.edit(lm, records, None, artifacts={}, rng=torch.Generator().manual_seed(3))
    drawn = int(torch.randint(2**31 - 1, (1,), generator=torch.Generator().manual_seed(3)))
    along = list(editor.edit_with_checkpoints(lm, records, seeds=[derive(drawn, "adapter")]))
    assert [(a.step, a.last) for a in along] == [(2, False), (4, True)]
    assert along[-1].losses == [done.stats["loss"]]


def test_lifelong_edits_are_judged_by_the_agent_given_all_of_them(workspace: Workspace) -> None:
    own, have = trial(workspace, "ft", study="belief_lifelong"), deps(workspace)
    straight = list(BeliefLifelong().execute(own, have, None))
    plain = list(Lifelong().execute(own, have, None))
    assert [r.rows for r in straight] == [r.rows for r in plain]
    answers = beliefs(straight)
    assert {(r.step, r.edit_step) for r in answers} == {
        *((0, i) for i in range(1, 6)),
        *((2, i) for i in range(1, 3)),
        *((5, i) for i in range(1, 6)),
    }
    testbed = open_testbed(own.data, Workspace(workspace.root))
    points = [from_line(r.point) for r in straight[0].points]
    agents = list(agents_after_edits(testbed.parts.agent, points, 0.95))
    names = testbed.parts.graph.objects
    for row in answers:
        if row.question == "new_fact_case":
            fact = points[row.edit_step - 1].fact
            edited = row.edit_step <= row.step
            agent = agents[row.step]
            belief = agent.pair(*fact[:2]) if edited else agent.marginal(*fact[:2])
            wanted = torch.tensor([names.index(row.target)]).numpy()
            assert row.expected == float(belief.at(wanted)[0])
            assert row.last_step == edited
            if edited and row.step == row.edit_step:
                assert row.expected >= 0.95
        if row.question == f"editing_{SAME_OTHER}_{MODAL}":
            watch = points[row.edit_step - 1].watched
            assert watch is not None
            assert row.target == names[agents[row.step].belief(*watch[SAME_OTHER].fact[:2]).mode()]
    resumed = list(BeliefLifelong().execute(own, have, straight[1].snapshot))
    assert beliefs(resumed) == list(straight[2].beliefs)


def test_what_does_not_fit_is_said(workspace: Workspace) -> None:
    own = trial(workspace, "ft")
    assert not Belief().check(own, 12)
    assert [p.code for p in Belief().check(own, 3)] == ["E-DATA"]
    batched = own.model_copy(update={"protocol": ProtocolSpec(batch_size=2, rounds=(0, 2))})
    assert [p.code for p in Belief().check(batched, 12)] == ["E-PROTOCOL"]
    assert not BeliefLifelong().check(batched, 12)
    kept = own.model_copy(update={"protocol": own.protocol.model_copy(update={"keep": "edited"})})
    assert ["none at the end" in p.message for p in Belief().check(kept, 12)] == [True]
    assert not BeliefLifelong().check(kept, 12)
    other = own.model_copy(update={"data": DataSpec(name="world", size=5)})
    assert [p.message for p in BeliefLifelong().check(other, 12)] == [
        "the belief study asks about the points of a testbed; 'world' has none"
    ]
    with pytest.raises(DataError, match="no belief testbed"):
        open_testbed(DataSpec(name="world"), workspace)


def test_records_ask_for_the_update_and_what_follows(workspace: Workspace) -> None:
    testbed = open_testbed(DataSpec(name="belief", path="hparams/belief/tiny.yaml"), workspace)
    for point in testbed.points:
        record = edit_record(point)
        assert point.request is not None
        assert point.flags is not None
        assert record.target == testbed.parts.graph.objects[point.request.object]
        assert record.prompt == f"{point.names[0]} {point.names[1]}"
        kinds = [p.kind for p in record.probes]
        assert (ProbeKind.PORTABILITY in kinds) == point.flags.downstream_answer_changes
        assert kinds.count(ProbeKind.EFFICACY) == 1
    with pytest.raises(DataError, match="nothing to edit"):
        edit_record(replace(testbed.points[0], request=None))


def test_a_setting_is_checked_and_trained_once(workspace: Workspace, tmp_path: Path) -> None:
    data = BeliefData(Workspace(tmp_path))
    with pytest.raises(DataError, match=r"nowhere\.yaml' does not exist"):
        data.locate(DataSpec(name="belief", path="nowhere.yaml"), Workspace(tmp_path))
    bad = tmp_path / "bad.yaml"
    bad.write_text("generative: {min_true_prob: 7}\npoints: {sise: 3}\n")
    with pytest.raises(ProblemsError) as told:
        data.count(bad)
    assert [(p.line, p.column) for p in told.value.problems] == [(1, 29), (2, 10)]
    bad.write_text("graph: {source: wikidata5m}\n")
    with pytest.raises(DataError, match="wikidata5m"):
        data.count(bad)
    bad.write_text("corpus: {num_atomic_facts: 60}\n")
    assert data.locate(DataSpec(name="belief", path="bad.yaml"), Workspace(tmp_path)) == bad
    with pytest.raises(ModelError, match=r"nowhere\.yaml' does not exist"):
        catalogue.resolve(ModelSpec(name="x", path="nowhere.yaml"), workspace)
    spec = catalogue.resolve(ModelSpec(name="tiny"), workspace)
    lm = load(spec, workspace)
    assert lm.digest == spec.digest
    assert (workspace.artifacts / "belief_model" / spec.digest).is_dir()
    edits = workspace.root / "hparams/belief/edits.yaml"
    edits.write_text(SETTING.replace("{size: 12}", "{size: 7}"))
    assert catalogue.resolve(ModelSpec(name="edits"), workspace).digest == spec.digest, (
        "points are no part of the model"
    )
    edits.write_text(SETTING.replace("lr: 1e-2", "lr: 2e-2"))
    assert catalogue.resolve(ModelSpec(name="edits"), workspace).digest != spec.digest
    assert pretrain.VERSION == 1


def test_the_published_loss_is_divided_by_prompt_and_target(workspace: Workspace) -> None:
    have, own = deps(workspace), trial(workspace, "lora")
    lm, records = have.load_model(own.model), have.open_dataset(own.data)[:4]
    losses = [
        next(
            build_editor(
                EditorSpec(name="lora", config={**LORA, "steps": 1, "published_divisor": published})
            ).edit_with_checkpoints(lm, records, seeds=[0] * 4)
        ).losses
        for published in (False, True)
    ]
    for record, ours, theirs in zip(records, *losses, strict=True):
        prompt, target = (
            len(lm.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (record.prompt, record.target)
        )
        assert theirs * (prompt + target) == pytest.approx(ours * target, rel=1e-5)


# ------------------------------------------------------------------------------------ records that cannot be edited


def refuse(monkeypatch: pytest.MonkeyPatch, refused: set[str]) -> None:
    """Let every editor of these tests refuse some records, as one may that needs what they do not bring."""

    def choosy(records: Sequence[EditRecord]) -> None:
        for record in records:
            if record.id in refused:
                raise RecordError(f"{record.id}: not this one")

    def edit(self, lm, batch, state, *, artifacts, rng, plain=ft.FineTune.edit):  # type: ignore[no-untyped-def]
        choosy(batch)
        return plain(self, lm, batch, state, artifacts=artifacts, rng=rng)

    def edit_with_checkpoints(self, lm, records, *, seeds, plain=lora.Lora.edit_with_checkpoints):  # type: ignore[no-untyped-def]
        choosy(records)
        return plain(self, lm, records, seeds=seeds)

    monkeypatch.setattr(ft.FineTune, "edit", edit)
    monkeypatch.setattr(lora.Lora, "edit_with_checkpoints", edit_with_checkpoints)


@pytest.mark.parametrize(
    ("editor", "study", "batch"),
    [("ft", "belief", 1), ("lora", "belief", 1), ("ft", "belief_lifelong", 1), ("ft", "belief_lifelong", 2)],
)
def test_as_many_points_are_edited_as_planned(
    editor: str, study: str, batch: int, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind: the planned number of edits is the number made, whoever refuses whatever; the same each time, also resumed."""
    own, have = trial(workspace, editor, rounds=(0, 2, 6), study=study), deps(workspace)
    own = own.model_copy(update={"protocol": own.protocol.model_copy(update={"batch_size": batch})})
    run = {"belief": Belief, "belief_lifelong": BeliefLifelong}[study]()
    plain = list(run.execute(own, have, None))
    planned = [row.record_id for row in plain[0].points]
    spares = open_testbed(own.data, workspace).point_set.spares
    refused = {planned[0], planned[3], record_id(spares[1])}
    refuse(monkeypatch, refused)
    found = list(run.execute(own, have, None))
    assert [r.step for r in found] == [0, 2, 6]
    assert [row.record_id for row in found[0].points] == planned
    new = [row for r in found[1:] for row in r.points]
    assert [(row.replaces, row.record_id) for row in new] == [
        (planned[0], record_id(spares[0])),
        (planned[3], record_id(spares[2])),
    ]
    assert all("not this one" in str(row.refusal) for row in new)
    edited = {row.edit_step: row.record_id for row in beliefs(found) if row.last_step and row.step}
    wanted = [record_id(spares[0]), planned[1], planned[2], record_id(spares[2]), *planned[4:]]
    assert [edited[i] for i in range(1, 7)] == wanted
    pristine = {(row.edit_step, row.record_id) for row in beliefs(found) if row.step == 0}
    assert pristine >= {(i + 1, record) for i, record in enumerate(wanted)}
    probed = {(row.edit_step, row.record_id) for r in found for row in r.rows if row.step == 0}
    assert probed >= {(i + 1, record) for i, record in enumerate(wanted)}
    answered = {(row.edit_step, row.record_id) for r in found for row in r.rows if row.step == (6 if batch else 0)}
    assert {record for _, record in answered} <= set(wanted)
    resumed = list(run.execute(own, have, found[1].snapshot))
    assert beliefs(resumed) == list(found[2].beliefs)
    assert same(facts(resumed), facts(found[2:]))
    assert [r.points for r in resumed] == [found[2].points]


def test_one_refusal_moves_no_other_point(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    own, have = trial(workspace, "ft"), deps(workspace)
    plain = list(Belief().execute(own, have, None))
    refuse(monkeypatch, {plain[0].points[1].record_id})
    found = list(Belief().execute(own, have, None))
    rows = [[b for b in beliefs(r) if b.edit_step != 2] for r in (plain, found)]
    assert rows[0] == rows[1]


def test_where_no_other_point_is_left_that_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    own, have = trial(workspace, "ft"), deps(workspace)
    testbed = open_testbed(own.data, workspace)
    refuse(monkeypatch, {record_id(p) for p in (*testbed.points, *testbed.point_set.spares)})
    for run in (Belief(), BeliefLifelong()):
        with pytest.raises(RecordError, match=r"11 points of .*tiny.yaml cannot be edited, .*not this one"):
            list(run.execute(own, have, None))


def test_answers_without_a_token_are_replaced_before_any_work(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, have = trial(workspace, "ft"), deps(workspace)
    planned = [row.record_id for row in next(iter(Belief().execute(own, have, None))).points]
    plain = belief_points._unanswerable
    monkeypatch.setattr(
        belief_points, "_unanswerable", lambda lm, p: "no token" if record_id(p) == planned[2] else plain(lm, p)
    )
    first = next(iter(Belief().execute(own, have, None)))
    new = {row.edit_step: row for row in first.points if row.replaces}
    assert {i: row.replaces for i, row in new.items()} == {3: planned[2]}
    assert {row.record_id for row in first.beliefs} == {row.record_id for row in first.points}
    lm = have.load_model(own.model)
    point = open_testbed(own.data, workspace).points[0]
    blank = replace(point.questions["new_fact_case"], target="\u200b\u200b")
    assert not plain(lm, point)
    assert "no token" in plain(lm, replace(point, questions={**point.questions, "new_fact_case": blank})) or (
        tokens.encode_alone(lm, "\u200b\u200b") != []
    )
