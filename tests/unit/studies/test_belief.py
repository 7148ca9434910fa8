"""Each edit of the belief study stands alone: on the pristine model, as a lifelong run of that record would leave it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.belief.spec import BeliefSpec, CorpusSpec, PointSpec
from raysweep.config.schema import DataSpec
from raysweep.data.belief import Belief as BeliefData
from raysweep.data.belief import record_of
from raysweep.errors import DataError
from raysweep.records import ProbeKind
from raysweep.studies.belief import Belief
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records
from raysweep.workspace import Workspace
from tests.unit.studies.test_lifelong import deps, facts, trial


@pytest.mark.parametrize("editor", ["ft", "oracle", "memit+simie"])
def test_each_edit_starts_from_the_pristine_model(editor: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    before = fingerprint(lm)
    own = trial(editor, rounds=(0, 2, 3)).model_copy(update={"study": "belief"})
    straight = list(Belief().execute(own, deps(tmp_path, lm), None))
    assert same(before, fingerprint(lm))
    assert [r.step for r in straight] == [0, 2, 3]
    rows = [row for r in straight[1:] for row in r.rows]
    assert {(r.step, r.edit_step) for r in rows} == {(1, 1), (2, 2), (3, 3)}
    for i, record in enumerate(toy_records(8)[:3]):
        (alone,) = Lifelong().execute(trial(editor, rounds=(1,), immediate=False), deps(tmp_path, lm, [record]), None)
        expected = [replace(r, trial_key=own.key, step=i + 1, edit_step=i + 1) for r in alone.rows]
        assert [r for r in rows if r.step == i + 1] == expected
    assert {r.edit_step for r in straight[0].rows} == {1, 2, 3}
    if editor == "oracle":
        assert straight[-1].summary["immediate/rel"] == 1.0
    resumed = list(Belief().execute(own, deps(tmp_path, tiny_lm("llama")), straight[1].snapshot))
    assert same(facts(resumed), facts(straight[2:]))


def test_batches_are_refused() -> None:
    assert [p.code for p in Belief().check(trial("ft", batch_size=2, rounds=(0, 2)), 8)] == ["E-PROTOCOL"]
    assert not Belief().check(trial("ft"), 8)
    assert [p.code for p in Belief().check(trial("ft"), 3)] == ["E-PROTOCOL"]


def test_records_ask_what_the_points_ask(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("corpus: {num_atomic_facts: 60, true_false: true}\npoints: {size: 12}\n")
    data = BeliefData()
    path = data.locate(DataSpec(name="belief", path=str(spec)), Workspace(tmp_path))
    assert path == spec
    testbed = data.testbed(path)
    wanted = BeliefSpec(corpus=CorpusSpec(num_atomic_facts=60, true_false=True), points=PointSpec(size=12))
    assert testbed.spec == wanted
    records = list(data.load(path))
    assert len(records) == data.count(path) == 12
    for record, point in zip(records, testbed.points, strict=True):
        assert point.request is not None
        asked = {p.name: (p.prompt, p.target) for p in record.probes if p.kind is ProbeKind.BELIEF}
        assert asked == {n: (q.prompt, q.target) for n, q in point.questions.items()}
        assert record.target == testbed.corpus.model.graph.objects[point.request.object]
        assert asked["new_fact_case"] == (record.prompt, record.target)
    spec.write_text("generative: {min_true_prob: 7}\n")
    with pytest.raises(DataError, match="no belief spec"):
        data.spec(spec)
    with pytest.raises(DataError, match="does not exist"):
        data.locate(DataSpec(name="belief", path="nowhere.yaml"), Workspace(tmp_path))
    with pytest.raises(DataError, match="nothing to edit"):
        record_of(0, replace(testbed.points[0], request=None), ())
