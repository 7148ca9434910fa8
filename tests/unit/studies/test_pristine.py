"""The pristine model is asked once, and its answers do not depend on who asked first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.artifacts import ArtifactStore
from raysweep.evals import scoring
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe, ProbeKind
from raysweep.studies import baseline
from raysweep.testing.fixtures import embedded_lm, toy_records


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return embedded_lm()


def test_asked_once_in_any_order(lm: LanguageModel, tmp_path: Path) -> None:
    probes = [p for r in toy_records()[:4] for p in r.probes]
    probes += [replace(probes[0], kind=ProbeKind.PORTABILITY), probes[3]]
    asked: list[int] = []

    def ask(some: Sequence[Probe]) -> list[scoring.Scores]:
        asked.append(len(some))
        return scoring.score(lm, some, batch=8)

    def answered(some: Sequence[Probe], batch: int = 8) -> list[scoring.Scores]:
        return baseline.answers(lm, some, ask, ArtifactStore(tmp_path), asking="teacher_forced", batch=batch, threads=1)

    first = answered(probes)
    assert asked == [len({(p.prompt, p.target) for p in probes})]
    assert answered(probes[::-1])[::-1] == first
    assert len(asked) == 1
    straight = scoring.score(lm, probes, batch=8)
    assert [(s.labels, s.answers, s.text) for s in first] == [(s.labels, s.answers, s.text) for s in straight]
    assert [s.logprob for s in first] == pytest.approx([s.logprob for s in straight], abs=1e-4)
    answered(probes[:2])
    answered(probes, batch=4)
    assert len(asked) == 3, "other questions, or asked otherwise: another artifact"
    assert answered([]) == []


def test_a_model_without_a_fingerprint_keeps_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    nobody = replace(lm, digest="")
    probes = toy_records()[0].probes
    store = ArtifactStore(tmp_path)
    ask = lambda some: scoring.score(nobody, some)  # noqa: E731
    assert baseline.answers(nobody, probes, ask, store, asking="teacher_forced", batch=8, threads=1)
    assert list(tmp_path.iterdir()) == []
