"""Any of several answers counts, a probe may depend on what the unedited model knows, and a record may hold several facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from raysweep.artifacts import ArtifactStore
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.evals.scoring import Scores
from raysweep.hashing import digest
from raysweep.metrics import METRICS, Answer
from raysweep.records import EditRecord, Fact, Probe, ProbeKind
from raysweep.rows import EvalRound
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.studies.measuring import Questionnaire, superseded_steps
from raysweep.testing.fixtures import tiny_lm, toy_records

PAIR = ("Where does Bo live?", "Dell")
OTHER = ("In which town is Bo?", "Dell")
KNOWN = (("Who is Bo?", "a smith"),)
PROBE = Probe(
    kind=ProbeKind.PORTABILITY, prompt=PAIR[0], target=PAIR[1], name="x", alternatives=(OTHER,), known=(KNOWN, (PAIR,))
)


def trial(*records: EditRecord, **protocol: object) -> TrialSpec:
    return TrialSpec(
        study="lifelong",
        model=ModelSpec(name="tiny"),
        data=DataSpec(name="toy", order="file"),
        editor=EditorSpec(name="ft", config={"layers": [1], "steps": 3, "lr": 1e-2}),
        protocol=ProtocolSpec(**({"rounds": (0, 1), "metrics": ("exact_match", "any_match")} | protocol)),
        seed=0,
    )


@dataclass(slots=True)
class Told(Questionnaire):
    """Answers what it is told to."""

    right: Sequence[tuple[str, str]] = ()
    asked: int = 0

    def ask(self, probes: Sequence[Probe]) -> list[Scores]:
        self.asked += len(probes)
        return [Scores((1, 2), (1, 2 if (p.prompt, p.target) in self.right else 3), -1.0, "") for p in probes]


def values(
    root: Path, before: Sequence[tuple[str, str]], after: Sequence[tuple[str, str]], **protocol: object
) -> tuple[dict[str, float | None], int]:
    """Return what the metrics say of the probe, and how many questions were asked after the edit."""
    record = replace(toy_records(1)[0], probes=(PROBE,))
    told = Told(trial(record, **protocol), tiny_lm("gpt2"), [record], right=before)
    told.ask_baseline(told.baseline_questions(), ArtifactStore(root))
    told.right, told.asked = after, 0
    rows = told.rows("key", told.questions([0]), 1)
    return {row.metric: row.value for row in rows}, told.asked


def test_an_alternative_counts_where_all_that_must_be_known_is(tmp_path: Path) -> None:
    knows = [*KNOWN, PAIR]
    assert values(tmp_path / "a", knows, [PAIR])[0] == {"exact_match": 1.0, "any_match": 1.0}
    assert values(tmp_path / "b", knows, [OTHER])[0] == {"exact_match": 0.0, "any_match": 1.0}
    assert values(tmp_path / "c", knows, [])[0] == {"exact_match": 0.0, "any_match": 0.0}
    assert values(tmp_path / "d", KNOWN, [PAIR])[0] == {"exact_match": 1.0, "any_match": None}, "one of two is unknown"


def test_nothing_more_is_asked_unless_the_metric_is(tmp_path: Path) -> None:
    assert values(tmp_path / "a", [], [])[1] == 2
    assert values(tmp_path / "b", [], [], metrics=("exact_match",))[1] == 1


def test_the_metric_by_hand() -> None:
    metric = METRICS["any_match"]
    assert metric(Answer((1, 2), (1, 3), (), -1.0)) == 0.0
    assert metric(Answer((1, 2), (1, 3), (), -1.0, matched=True)) == 1.0
    assert metric(Answer((1, 2), (1, 2), (), -1.0, counts=False)) is None
    undefined = metric(Answer((1, 2), (1, -2), (), -1.0, matched=True))
    assert undefined is not None
    assert math.isnan(undefined), "logits that are not finite say nothing, whatever else was answered"


def test_what_was_added_moves_no_hash_until_it_is_used() -> None:
    record = toy_records(1)[0]
    assert "further" not in str(digest_input(record))
    assert digest(record) != digest(replace(record, further=(Fact(subject="", prompt="Who?", target="Bo"),)))
    assert digest(PROBE) != digest(replace(PROBE, alternatives=()))


def digest_input(record: EditRecord) -> object:
    from raysweep.hashing import canonical

    return canonical(record)


def run(root: Path, records: Sequence[EditRecord], **protocol: object) -> EvalRound:
    deps = Deps(
        load_model=lambda _: tiny_lm("gpt2"),
        open_dataset=lambda _: tuple(records),
        artifacts=ArtifactStore(root),
        texts=lambda *_: iter(()),
    )
    return list(Lifelong().execute(trial(*records, metrics=("target_logprob",), **protocol), deps, None))[-1]


def test_the_facts_of_a_record_are_written_together(tmp_path: Path) -> None:
    """As two records in one call of the editor are."""
    one, two = toy_records(2)
    both = replace(one, further=(Fact(subject=two.subject, prompt=two.prompt, target=two.target),))
    together = {r.probe_index: r.value for r in run(tmp_path / "a", [both], rounds=(1,)).rows}
    as_two = run(tmp_path / "b", [one, two], rounds=(2,), batch_size=2)
    apart = {r.probe_index: r.value for r in as_two.rows if r.record_id == one.id}
    alone = {r.probe_index: r.value for r in run(tmp_path / "c", [one], rounds=(1,)).rows}
    assert together
    assert together == pytest.approx(apart, abs=1e-5)
    assert together != pytest.approx(alone, abs=1e-3)


def test_a_record_is_superseded_by_the_first_of_its_facts_that_is() -> None:
    a, b, c = toy_records(3)
    both = replace(a, further=(Fact(subject=b.subject, prompt=b.prompt, target=b.target),))
    assert superseded_steps([both, c, replace(b, target="zz"), replace(a, target="zz")]) == {0: 3}
    assert superseded_steps([replace(b, target="zz"), c, both]) == {0: 3}
