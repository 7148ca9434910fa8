from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from results_helpers import make_round, make_trial

from raysweep import runtime
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.schema import TrialSpec
from raysweep.results import runner
from raysweep.results.runner import TrialRun, replay, run_trial
from raysweep.results.store import ResultStore, State
from raysweep.rows import EvalRound, Snapshot
from raysweep.studies.base import GroupMemberError

DEPS: Any = None


def job(trial: TrialSpec, share: str = "") -> PlannedTrial:
    return PlannedTrial("a", {}, trial, share)


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
    for report in run_trial(job(trial), DEPS, store):
        assert store.folder.exists(f"{trial.key}/probes-{report.step:06d}.parquet")
        assert (store.status(trial.key).state is State.DONE) == report.done == (report.step == 4)
        assert report.summary == {"x": float(report.step)}
    assert Study.open == 0
    assert list(run_trial(job(trial), DEPS, store)) == []  # done: nothing is run


def test_failure_is_stored_and_reported_and_a_retry_goes_on(store: ResultStore) -> None:
    trial = make_trial()
    Study.fail_at = 4
    *_, last = run_trial(job(trial), DEPS, store)
    assert (last.step, last.done, last.error) == (2, True, "ValueError: no\nmore")
    assert (Study.open, store.status(trial.key).state) == (0, State.FAILED)
    Study.fail_at = -1
    assert [r.step for r in run_trial(job(trial), DEPS, store)] == [4]
    assert store.status(trial.key).state is State.DONE


def test_a_study_that_ends_too_early_has_failed(store: ResultStore) -> None:
    Study.last = 2
    *_, last = run_trial(job(make_trial()), DEPS, store)
    assert last.error == "RaysweepError: the study ended at step 2, before its last round at 4"


def test_a_crash_after_the_last_round_only_marks_it_done(store: ResultStore) -> None:
    trial = make_trial()
    list(run_trial(job(trial), DEPS, store))
    store.folder.delete(f"{trial.key}/DONE.json")
    store.write_snapshot(trial.key, make_round(trial, 4).snapshot)  # type: ignore[arg-type]
    (report,) = run_trial(job(trial), DEPS, store)
    assert (report.step, report.done) == (4, True)
    assert "retained/rel" in report.summary  # from the rows in the store
    assert store.status(trial.key).state is State.DONE


@pytest.mark.parametrize("state", [State.DONE, State.FAILED])
def test_a_session_says_how_much_of_each_gpu_it_took(
    store: ResultStore, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first session fails and the second goes on; each looks anew. Without a GPU nothing is said."""
    begun = [0, 0]
    monkeypatch.setattr(runtime, "visible_gpus", lambda: 2)
    monkeypatch.setattr(
        torch.accelerator, "reset_peak_memory_stats", lambda index: begun.__setitem__(index, begun[index] + 1)
    )
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda index: 10 * begun[index] + index)
    trial = make_trial()
    Study.fail_at = 4
    list(run_trial(job(trial), DEPS, store))
    first = store.about(trial.key)
    assert [s["peak_memory"] for s in first.sessions] == [[10, 11]]
    Study.fail_at = 4 if state is State.FAILED else -1
    list(run_trial(job(trial), DEPS, store))
    assert store.status(trial.key).state is state
    again = store.about(trial.key)
    assert [s["peak_memory"] for s in again.sessions] == [[10, 11], [20, 21]]
    assert again.model_copy(update={"sessions": first.sessions}) == first
    monkeypatch.setattr(runtime, "visible_gpus", lambda: 0)
    other = make_trial(seed=1)
    list(run_trial(job(other), DEPS, store))
    assert "peak_memory" not in store.about(other.key).sessions[0]


def test_closing_ends_the_study(store: ResultStore) -> None:
    run = TrialRun(job(make_trial()), DEPS, store)
    run.advance()
    assert Study.open == 1
    run.close()
    assert Study.open == 0


class Pass(Study):
    """Runs several trials at once; one may fail, and the edits start where all can."""

    fail: tuple[str, int] = ("", -1)
    edits: ClassVar[list[int]] = []

    def execute_group(
        self, trials: Sequence[TrialSpec], deps: Any, resumes: Mapping[str, Snapshot]
    ) -> Iterator[tuple[str, EvalRound]]:
        start = min((s.step for s in resumes.values()), default=0) if len(resumes) == len(trials) else -1
        for step in (0, 2, 4):
            if step <= start:
                continue
            Pass.edits.append(step)
            for trial in trials:
                own = resumes.get(trial.key)
                if own is not None and step <= own.step:
                    continue
                if (trial.key, step) == Pass.fail:
                    raise GroupMemberError(trial.key) from ValueError("mine")
                if step == Study.fail_at:
                    raise RuntimeError("ours")
                found = make_round(trial, step)
                yield (
                    trial.key,
                    EvalRound(
                        step=step,
                        rows=found.rows,
                        summary={"x": float(step)},
                        snapshot=found.snapshot if step else None,
                    ),
                )


@pytest.fixture
def jobs(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> list[PlannedTrial]:
    monkeypatch.setattr(runner, "STUDIES", SimpleNamespace(get=lambda name: Pass))
    monkeypatch.setattr(Pass, "fail", ("", -1))
    monkeypatch.setattr(Pass, "edits", [])
    return [job(make_trial(lam=lam), "p") for lam in (0.1, 1.0, 10.0)]


def content(store: ResultStore, key: str) -> dict[str, bytes]:
    """The bytes of everything of a trial that may not depend on how it was run."""
    return {n: store.folder.read(n) for n in store.folder.files(key) if not n.endswith(("trial.json", ".tmp"))}


def shared(store: ResultStore) -> list[str]:
    return [n.rpartition("/")[2] for n in store.folder.files("_passes", recursive=True)]


def test_a_pass_stores_what_its_members_would_have_stored_alone(
    store: ResultStore, jobs: list[PlannedTrial], tmp_path: Path
) -> None:
    kept = []
    for report in run_trial(jobs[0], DEPS, store, jobs[1:]):
        kept.append(shared(store))
        steps = {store.status(j.key).step for j in jobs}
        assert steps == {report.step}, "the others of the pass are stored before the first one is reported"
    assert kept == [[], ["snapshot-000002.safetensors"], []], "the pass's tensors are written once and go at the end"
    assert Pass.edits == [0, 2, 4]
    assert {store.status(j.key).state for j in jobs} == {State.DONE}
    for one in jobs:
        other = ResultStore(tmp_path / "alone")
        list(run_trial(one, DEPS, other))
        assert content(store, one.key) == content(other, one.key)
    assert list(run_trial(jobs[1], DEPS, store, [jobs[0], jobs[2]])) == []


def test_a_pass_goes_on_from_the_tensors_its_members_share(store: ResultStore, jobs: list[PlannedTrial]) -> None:
    run = TrialRun(jobs[0], DEPS, store, jobs[1:])
    assert [run.advance().step for _ in range(2)] == [0, 2]
    run.close()
    for one in jobs:
        about = json.loads(store.folder.read(f"{one.key}/snapshot.json"))
        assert about is not None
        assert about["file"] == "_passes/p-0/snapshot-000002.safetensors"
    Pass.edits.clear()
    assert [r.step for r in run_trial(jobs[2], DEPS, store, jobs[:2])] == [4]
    assert (Pass.edits, shared(store)) == ([4], [])


def test_an_added_member_gets_its_rounds_and_the_others_keep_theirs(
    store: ResultStore, jobs: list[PlannedTrial]
) -> None:
    run = TrialRun(jobs[0], DEPS, store, jobs[1:2])
    assert [run.advance().step for _ in range(2)] == [0, 2]
    run.close()
    before = content(store, jobs[1].key)
    Pass.edits.clear()
    late = TrialRun(jobs[2], DEPS, store, jobs[:2])
    assert late.advance().step == 0
    assert content(store, jobs[1].key) == before
    late.close()
    assert shared(store) == ["snapshot-000002.safetensors"], "the tensors of those ahead are still needed"
    assert [r.step for r in run_trial(jobs[2], DEPS, store, jobs[:2])] == [0, 2, 4]
    assert Pass.edits == [0, 0, 2, 4]
    assert {store.status(j.key).state for j in jobs} == {State.DONE}


def test_where_one_of_a_pass_fails_the_others_go_on(store: ResultStore, jobs: list[PlannedTrial]) -> None:
    Pass.fail = (jobs[1].key, 4)
    *_, last = run_trial(jobs[0], DEPS, store, jobs[1:])
    assert (last.step, last.done, last.error) == (4, True, "")
    assert [store.status(j.key).state for j in jobs] == [State.DONE, State.FAILED, State.DONE]
    assert store.status(jobs[1].key).error == "ValueError: mine"
    assert "ValueError: mine" in json.loads(store.folder.read(f"{jobs[1].key}/FAILED.json"))["traceback"]
    assert shared(store) == ["snapshot-000002.safetensors"], "a retry of the failed one needs it"
    assert [(r.step, r.done, r.error) for r in replay(jobs[1].trial, store)][-1] == (2, True, "ValueError: mine")
    Pass.fail = ("", -1)
    store.reopen(jobs[1].key)
    assert [r.step for r in run_trial(jobs[1], DEPS, store, [jobs[0], jobs[2]])] == [4]
    assert shared(store) == [], "the last one of the pass leaves nothing, though it ran alone"


@pytest.mark.parametrize("written", [False, True], ids=["before its last round", "before it says DONE"])
def test_the_first_of_a_pass_that_ends_after_all_others_leaves_nothing(
    store: ResultStore, jobs: list[PlannedTrial], written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends between the others' last round and its own, or behind that; a later one goes on."""
    name = "finish" if written else "write_round"
    original = getattr(store, name)

    def until_the_end(key: str, *rest: Any, **more: Any) -> Any:
        ends = written or rest[0].step == 4
        if key == jobs[0].key and ends:
            raise KeyboardInterrupt
        return original(key, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(store, name, until_the_end)
        with pytest.raises(KeyboardInterrupt):
            list(run_trial(jobs[0], DEPS, store, jobs[1:]))
    assert [store.status(j.key).state is State.DONE for j in jobs] == [False, True, True]
    assert shared(store) == ["snapshot-000002.safetensors"]
    assert [r.step for r in run_trial(jobs[0], DEPS, store, jobs[1:])][-1] == 4
    assert shared(store) == []
    assert {store.status(j.key).state for j in jobs} == {State.DONE}


def test_where_the_first_of_a_pass_fails_the_others_wait_for_their_own_turn(
    store: ResultStore, jobs: list[PlannedTrial]
) -> None:
    Pass.fail = (jobs[0].key, 4)
    *_, last = run_trial(jobs[0], DEPS, store, jobs[1:])
    assert (last.step, last.error) == (2, "ValueError: mine")
    assert [store.status(j.key).state for j in jobs] == [State.FAILED, State.DONE, State.DONE]
    assert [r.step for r in replay(jobs[1].trial, store)] == [0, 2, 4]


def test_an_error_of_the_edits_fails_all(store: ResultStore, jobs: list[PlannedTrial]) -> None:
    Study.fail_at = 2
    *_, last = run_trial(jobs[0], DEPS, store, jobs[1:])
    assert last.error == "RuntimeError: ours"
    assert {store.status(j.key).error for j in jobs} == {"RuntimeError: ours"}


def test_replay_reports_what_the_run_did(store: ResultStore) -> None:
    one = job(make_trial())
    reports = [(r.step, r.done) for r in run_trial(one, DEPS, store)]
    told = list(replay(one.trial, store))
    assert [(r.step, r.done) for r in told] == reports
    assert "retained/rel" in told[-1].summary
    assert told[1].seconds == 0.0  # the study of this test takes no time
