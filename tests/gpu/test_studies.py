"""A trial on a device: every editor and wrapper through the lifelong study, every dataset, the belief study, and going on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from raysweep.artifacts import ArtifactStore
from raysweep.config.schema import EditorSpec, TrialSpec
from raysweep.data import DATASETS
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord
from raysweep.rows import EvalRound, Snapshot
from raysweep.runtime import repeatable
from raysweep.studies.base import Deps
from raysweep.studies.lifelong import Lifelong
from raysweep.testing.fixtures import fingerprint, same, toy_records
from raysweep.testing.sham_device import ShamDevice, device
from tests.contracts.test_datasets import SAMPLES, sample_path
from tests.contracts.test_stops import label, specs, trial_of
from tests.gpu.agree import agree, models

TOLERANCE = 5e-5  # of two edits, one on top of the other


def trial(spec: EditorSpec, rounds: tuple[int, ...] = (0, 1, 2)) -> TrialSpec:
    return trial_of(spec, rounds)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, ArtifactStore]:
    """What is computed once on the pristine model: on the CPU, and on the sham device."""
    return ArtifactStore(tmp_path_factory.mktemp("cpu")), ArtifactStore(tmp_path_factory.mktemp("sham"))


def deps(artifacts: ArtifactStore, lm: LanguageModel, records: Sequence[EditRecord]) -> Deps:
    def texts(*_: object) -> Iterator[str]:
        return (f"{p.prompt} {p.target}" for r in toy_records(12) for p in r.probes)

    return Deps(load_model=lambda _: lm, open_dataset=lambda _: records, artifacts=artifacts, texts=texts)


def facts(rounds: Sequence[EvalRound]) -> list[object]:
    """Everything of a round that is not a time."""
    return [(r.step, r.rows, r.stats, dict(r.summary), dict(r.snapshot.tensors) if r.snapshot else {}) for r in rounds]


def stored(snapshot: Snapshot | None) -> Snapshot:
    """Return *snapshot* as the store gives it back: on the CPU."""
    assert snapshot is not None
    return replace(snapshot, tensors={n: t.detach().cpu() for n, t in snapshot.tensors.items()})


@pytest.mark.parametrize("spec", specs(), ids=label)
def test_a_trial_is_the_cpu_s_and_goes_on(spec: EditorSpec, stores: tuple[ArtifactStore, ArtifactStore]) -> None:
    """Its artifacts are computed there too; a snapshot, which is on the CPU, is enough to go on bit for bit.

    Nothing is done whose bits do not repeat on a GPU.
    """
    ours, theirs = models("llama")
    records = toy_records(3)
    expected = list(Lifelong().execute(trial(spec), deps(stores[0], ours, records), None))
    with ShamDevice(), repeatable(device()):
        before = fingerprint(theirs)
        have = deps(stores[1], theirs, records)
        found = list(Lifelong().execute(trial(spec), have, None))
        assert same(before, fingerprint(theirs))
        resumed = list(Lifelong().execute(trial(spec), have, stored(found[1].snapshot)))
        assert same(facts(resumed), facts(found[2:]))
    agree(facts(expected), facts(found), TOLERANCE)


@pytest.mark.parametrize(("name", "sample"), [(n, s[0]) for n, s in SAMPLES.items()])
def test_every_dataset_is_asked_on_the_device(
    name: str, sample: str | None, stores: tuple[ArtifactStore, ArtifactStore]
) -> None:
    loaded = DATASETS.get(name)().load(sample_path(sample))
    records = [replace(r, id=f"toy/{i}") for i, r in enumerate(loaded)][:2]
    ours, theirs = models("gpt2")
    spec = EditorSpec(name="ft", config={"layers": [1], "steps": 1, "lr": 1e-3})
    expected = list(Lifelong().execute(trial(spec, (0, 2)), deps(stores[0], ours, records), None))
    with ShamDevice(), repeatable(device()):
        found = list(Lifelong().execute(trial(spec, (0, 2)), deps(stores[1], theirs, records), None))
    agree(facts(expected), facts(found), TOLERANCE)
