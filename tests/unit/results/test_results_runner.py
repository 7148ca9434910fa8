from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from results_helpers import make_round, make_trial

from raysweep.config.schema import TrialSpec
from raysweep.results import runner
from raysweep.results.runner import TrialRun, run_trial
from raysweep.results.store import ResultStore, State
from raysweep.rows import EvalRound, Snapshot

DEPS: Any = None


class Study:
    """Yields the rounds of the helpers; fails, or ends too early, where told."""

    fail_at = -1
    last = 4
    open = 0

    def execute(self, trial: TrialSpec, deps: Any, resume: Snapshot | None) -> Iterator[EvalRound]:
        Study.open += 1
        try:
            for step in (0, 2, 4):
                if step > Study.last:
                    return
                if step == Study.fail_at:
                    raise ValueError("no\nmore")
                if resume is None or step > resume.step:
                    found = make_round(trial, step)
                    yield EvalRound(step=step, rows=found.rows, summary={"x": float(step)}, snapshot=found.snapshot)
        finally:
            Study.open -= 1


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultStore:
    monkeypatch.setattr(runner, "STUDIES", SimpleNamespace(get=lambda name: Study))
    monkeypatch.setattr(Study, "fail_at", -1)
    monkeypatch.setattr(Study, "last", 4)
    return ResultStore(tmp_path)


def test_rounds_are_stored_before_they_are_reported(store: ResultStore) -> None:
    trial = make_trial()
    for report in run_trial(trial, DEPS, store, arm="a"):
        assert store.folder.exists(f"{trial.key}/probes-{report.step:06d}.parquet")
        assert (store.status(trial.key).state is State.DONE) == report.done == (report.step == 4)
        assert report.summary == {"x": float(report.step)}
    assert Study.open == 0
    assert list(run_trial(trial, DEPS, store)) == []  # done: nothing is run


def test_failure_is_stored_and_reported_and_a_retry_goes_on(store: ResultStore) -> None:
    trial = make_trial()
    Study.fail_at = 4
    *_, last = run_trial(trial, DEPS, store)
    assert (last.step, last.done, last.error) == (2, True, "ValueError: no\nmore")
    assert (Study.open, store.status(trial.key).state) == (0, State.FAILED)
    Study.fail_at = -1
    assert [r.step for r in run_trial(trial, DEPS, store)] == [4]
    assert store.status(trial.key).state is State.DONE


def test_a_study_that_ends_too_early_has_failed(store: ResultStore) -> None:
    Study.last = 2
    *_, last = run_trial(make_trial(), DEPS, store)
    assert last.error == "RaysweepError: the study ended at step 2, before its last round at 4"


def test_a_crash_after_the_last_round_only_marks_it_done(store: ResultStore) -> None:
    trial = make_trial()
    list(run_trial(trial, DEPS, store))
    store.folder.delete(f"{trial.key}/DONE.json")
    store.write_snapshot(trial.key, make_round(trial, 4).snapshot)  # type: ignore[arg-type]
    (report,) = run_trial(trial, DEPS, store)
    assert (report.step, report.done) == (4, True)
    assert "retained/rel" in report.summary  # from the rows in the store
    assert store.status(trial.key).state is State.DONE


def test_closing_ends_the_study(store: ResultStore) -> None:
    run = TrialRun(make_trial(), DEPS, store)
    run.advance()
    assert Study.open == 1
    run.close()
    assert Study.open == 0
