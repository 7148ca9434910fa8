"""A study asks of records what a plan asks, with the model's own tokenizer, before the first edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.artifacts import ArtifactStore
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.editors.locate import second_moments
from raysweep.errors import RecordError
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records

FT = EditorSpec(name="ft", config={"layers": [1], "steps": 1})
ROME = EditorSpec(name="rome", config={"layers": [1], "value": {"steps": 2}, "contexts": {"templates": []}})
WRAPPED = ROME.model_copy(update={"wrap": (WrapSpec(name="simie", config={"lam": 1.0}),)})


def run(editor: EditorSpec, records: list[EditRecord], lm: Any, root: Path) -> list[Any]:
    trial = TrialSpec(
        study="lifelong",
        model=ModelSpec(),
        data=DataSpec(size=len(records), order="file"),
        editor=editor,
        protocol=ProtocolSpec(rounds=(0, len(records))),
        seed=0,
    )
    texts = lambda text, data: iter(["some text to read"] * 9)  # noqa: E731
    deps = Deps(load_model=lambda _: lm, open_dataset=lambda _: records, artifacts=ArtifactStore(root), texts=texts)
    return list(Lifelong().execute(trial, deps, None))


def test_records_without_a_subject_run_where_none_is_needed(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    records = [replace(r, subject="", probes=r.probes[:1]) for r in toy_records()[:2]]
    (_, last) = run(FT, records, lm, tmp_path)
    assert {r.probe_kind for r in last.rows} == {"efficacy"}, "what a record lacks has no rows"


@pytest.mark.parametrize("editor", [ROME, WRAPPED], ids=["bare", "wrapped"])
def test_an_editor_refuses_before_the_first_edit(editor: EditorSpec, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    before = fingerprint(lm)
    records = [*toy_records()[:2], replace(toy_records()[2], subject="")]
    with pytest.raises(RecordError, match=f"rome cannot write {records[2].id}: there is no subject"):
        run(editor, records, lm, tmp_path)
    assert same(fingerprint(lm), before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_record_beyond_the_positions_is_named(family: str, tmp_path: Path) -> None:
    """An IndexError without the record where positions are learnt; numbers without meaning where they are rotary."""
    lm = tiny_lm(family)
    long = Probe(kind=ProbeKind.LOCALITY, prompt="x" * 300, target="y", against="base")
    record = toy_records()[1]
    records = [toy_records()[0], replace(record, probes=(*record.probes, long))]
    with pytest.raises(
        RecordError, match=f"{record.id}: its locality probe is 30. tokens long, the model has 256 positions"
    ):
        run(FT, records, lm, tmp_path)


def test_second_moments_end_where_learnt_positions_do() -> None:
    batches = list(second_moments._batches(tiny_lm("gpt2"), iter(["x" * 600]), width=512, budget=0))
    assert [len(row) for batch in batches for row in batch] == [256]
    batches = list(second_moments._batches(tiny_lm("llama"), iter(["x" * 600]), width=512, budget=0))
    assert [len(row) for batch in batches for row in batch] == [512], "rotary positions are cut where they always were"
