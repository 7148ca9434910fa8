"""One trial, round by round: the study computes, the store remembers. Shared by the Ray shell and ``raysweep edit``."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from raysweep import environment
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.schema import TrialSpec
from raysweep.errors import RaysweepError, StorageLostError, StoreError, UnwritableError
from raysweep.lazy import lazy
from raysweep.results.edited import write_edited
from raysweep.results.finite import first_non_finite, non_finite_step
from raysweep.results.provenance import provenance
from raysweep.results.state import COLLAPSED, State
from raysweep.results.store import ResultStore, Tensors
from raysweep.results.tables import seconds_by_step, trial_columns
from raysweep.rows import EvalRound, Snapshot
from raysweep.studies import STUDIES, phases
from raysweep.studies.base import CollapsedError, Deps, GroupMemberError
from raysweep.summarize import summary

runtime = lazy("raysweep.runtime")  # it imports torch


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one round came to: the step, its summary, whether the trial is done, and the error, or the rule, that ended it.

    ``seconds`` is what the round took by the trial's own timing rows (nan = not known yet); ``non_finite_step`` is the first
    step up to this round at which a weight or a logit was not finite (None = none was).
    """

    step: int
    summary: Mapping[str, float]
    done: bool
    error: str = ""
    seconds: float = math.nan
    non_finite_step: int | None = None
    stopped: str = ""


class TrialRun:
    """A trial in progress, and the trials of its edit group, which take their edits from the same run over the records.

    Promises: a round is in the store before it is reported; a failure is stored as FAILED and reported, not raised (the
    process may serve the next trial); a trial whose rounds are all there is marked DONE before that is reported. Only the
    rounds of the trial of *job* are reported; before each, those of its *members* at that step are stored, but for members that
    have ended. Where a member fails, the others go on; where the trial itself does, its members stay as they are, for a run of
    their own. Storage that cannot be written, or was taken away, ends the run but not the trial, which stays unfinished.
    """

    def __init__(self, job: PlannedTrial, deps: Deps, store: ResultStore, members: Sequence[PlannedTrial] = ()) -> None:
        self.job, self.deps, self.store = job, deps, store
        self.members = members
        self.step = 0
        self._running: Sequence[PlannedTrial] = ()
        self._rounds: Iterator[tuple[str, EvalRound]] | None = None
        # The step whose weights a member of the group wrote last, and where they lie; -1 = none yet.
        self._tensors: tuple[int, Tensors | None] = (-1, None)
        self._non_finite: int | None = None

    def advance(self) -> RoundReport:
        """Run to the trial's next round and store it."""
        while True:
            try:
                with runtime.matmul(self.job.trial.model.matmul), runtime.repeatable(runtime.device()):
                    return self._advance()
            # The generator that runs the group is closed by the error. The next turn of this loop begins again, from the snapshots
            # and without the member that failed.
            except GroupMemberError as error:
                self.close()
                cause = error.__cause__ or error
                if error.key == self.job.key:
                    return self._failed(cause)
                self._fail(error.key, self.store.status(error.key).step, cause)
            # No fault of the trial, so it is not FAILED: a run on mended storage goes on.
            except (StorageLostError, UnwritableError) as error:
                self.close()
                return self._ended_by(error)
            # An error that no member is to blame for came from what all of them share, so it is the end of each.
            except Exception as error:
                self.close()
                for job in self._running:
                    self._fail(job.key, self.store.status(job.key).step, error)
                return self._failed(error)

    def close(self) -> None:
        """End the study's generator, so that nothing of the trial lives on."""
        rounds, self._rounds = self._rounds, None
        if rounds is not None and hasattr(rounds, "close"):
            rounds.close()

    def _failed(self, error: BaseException) -> RoundReport:
        self._fail(self.job.key, self.step, error)
        if isinstance(error, CollapsedError):
            return _stop_report(error.step, str(error), self._non_finite)
        return self._ended_by(error)

    def _ended_by(self, error: BaseException) -> RoundReport:
        return RoundReport(self.step, {}, True, f"{type(error).__name__}: {error}", non_finite_step=self._non_finite)

    def _fail(self, key: str, step: int, error: BaseException) -> None:
        """Store the end of a trial by *error*: FAILED, or STOPPED where the editor met a model that is no numbers any more."""
        trace = "".join(traceback.format_exception(error))
        self._note_memory(key)
        with suppress(UnwritableError):  # then it stays unfinished
            if isinstance(error, CollapsedError):
                self.store.stop(key, step=error.step, rule=COLLAPSED, reason=str(error))
                return
            self.store.fail(key, step=step, error=type(error).__name__, message=str(error), trace=trace)

    def _advance(self) -> RoundReport:
        # Beginning is part of the first round: it reads snapshots and may fail like any other part of the trial.
        if self._rounds is None:
            self._rounds = self._begin()
        last = self.job.trial.protocol.rounds[-1]
        report: RoundReport | None = None
        for key, result in self._rounds:
            self._keep(key, result, last)
            if key == self.job.key:
                self.step = result.step
                if self._non_finite is None:
                    self._non_finite = first_non_finite(result.rows, result.stats)
                report = RoundReport(
                    result.step, dict(result.summary), result.step >= last,
                    seconds=_seconds(result), non_finite_step=self._non_finite,
                )  # fmt: skip
                break
        # The process was killed between the last round and the file that says DONE.
        if report is None:
            if self.step != last:
                raise RaysweepError(f"the study ended at step {self.step}, before its last round at {last}")
            self.store.finish(self.job.key, step=self.step)
            self._tidy_group()
            report = RoundReport(self.step, self._stored_summary(), True, non_finite_step=self._non_finite)
        if report.done:
            self.close()
        return report

    def _keep(self, key: str, result: EvalRound, last: int) -> None:
        """Store one round; after the last one its trial is DONE."""
        done = result.step >= last
        if done:
            result = replace(result, snapshot=None)  # nobody would go on from here
        group = self._group if self._running else ""
        # The members of a group reach a step with the same weights: the first one writes them, the others point there.
        written = self._tensors[1] if self._tensors[0] == result.step else None
        self._tensors = (result.step, self.store.write_round(key, result, group=group, tensors=written))
        # Before DONE: whoever sees that may count on what the trial was to keep.
        if result.edited is not None:
            write_edited(self.store.folder, key, result.step, result.edited)
        if done:
            self._note_memory(key)
            self.store.finish(key, step=result.step)
        if key == self.job.key:  # of a step, the trial itself comes last
            self._tidy_group()

    def _note_memory(self, key: str) -> None:
        """Note beside the trial what this session took of each GPU at most: what `raysweep plan` estimates."""
        peak = runtime.peak_memory()
        if not peak:
            return
        with suppress(StoreError):  # a note is never what ends a trial
            self.store.note_session(key, {"peak_memory": list(peak)})

    @property
    def _group(self) -> str:
        """The name under which the group's tensors lie."""
        return f"{self.job.edit_key}-{self.job.trial.seed}"

    def _tidy_group(self) -> None:
        """Delete what no member goes on from: also where all others have ended, since they wrote for all."""
        if self.members:
            self.store.tidy_group(self._group, [self.job.key, *(member.key for member in self.members)])

    def _begin(self) -> Iterator[tuple[str, EvalRound]]:
        import torch

        environment.check(self.job.trial.environment)
        runtime.forget_peak_memory()
        # Threads change the order of sums, so the last bits; a process may have served a trial with other threads before.
        torch.set_num_threads(self.job.trial.threads)
        self._tensors = (-1, None)
        self._running = [job for job in self.members if not self.store.status(job.key).ended]
        resumes: dict[str, Snapshot] = {}
        for job in (*self._running, self.job):
            snapshot = self.store.begin(job.trial, arm=job.arm, point=job.point, provenance=provenance(job.trial))
            if snapshot is None:
                continue
            # Every member has a snapshot of its own step, but the run goes on from the lowest.
            for key, other in resumes.items():  # only the first with the lowest step needs its tensors
                if other.step <= snapshot.step:
                    snapshot = replace(snapshot, tensors={})
                else:
                    resumes[key] = replace(other, tensors={})
            resumes[job.key] = snapshot
        resume = resumes.get(self.job.key)
        self.step = resume.step if resume is not None else 0
        self._non_finite = non_finite_step(self.store, self.job.key) if resume is not None else None
        study = STUDIES.get(self.job.trial.study)()
        if not self._running:
            return ((self.job.key, result) for result in study.execute(self.job.trial, self.deps, resume))
        trials = [job.trial for job in (*self._running, self.job)]
        together: Iterator[tuple[str, EvalRound]] = iter(study.execute_group(trials, self.deps, resumes))
        return together

    def _stored_summary(self) -> dict[str, float]:
        """Return the current step's summary from the store (its last round was written just before a crash)."""
        columns = trial_columns(self.store, self.job.key)
        trial = self.job.trial
        return summary(columns, self.step, trial.protocol.batch_size, phases=phases(trial.study))


def _seconds(result: EvalRound) -> float:
    return sum(t.seconds for t in result.timing)


def _stop_report(step: int, reason: str, first: int | None) -> RoundReport:
    """Return the last report of a trial that has collapsed; *first* is the step at which its rounds had something not finite."""
    return RoundReport(step, {}, True, non_finite_step=step if first is None else first, stopped=reason)


def run_trial(
    job: PlannedTrial, deps: Deps, store: ResultStore, members: Sequence[PlannedTrial] = ()
) -> Iterator[RoundReport]:
    """Run the trial of *job*, and with it the *members* of its edit group, in this process; yield a report per round of the first.

    Nothing is done if it is DONE already.
    """
    if store.status(job.key).state is State.DONE:
        return
    run = TrialRun(job, deps, store, members)
    try:
        while True:
            report = run.advance()
            yield report
            if report.done:
                return
    finally:
        run.close()


def replay(trial: TrialSpec, store: ResultStore) -> Iterator[RoundReport]:
    """Yield the reports of a trial that has ended, as its run would have: from what is stored."""
    status = store.status(trial.key)
    columns = trial_columns(store, trial.key)
    timing = seconds_by_step(store, trial.key)
    first = non_finite_step(store, trial.key)
    # A round without timing rows was not finished when its trial ended.
    for step in (s for s in trial.protocol.rounds if s in timing and s <= status.step):
        done = status.state is State.DONE and step == trial.protocol.rounds[-1]
        values = summary(columns, step, trial.protocol.batch_size, phases=phases(trial.study))
        reached = first if first is not None and first <= step else None
        yield RoundReport(step, values, done, seconds=timing[step], non_finite_step=reached)
    if status.state is State.FAILED:
        yield RoundReport(status.step, {}, True, status.error, non_finite_step=first)
    elif status.state is State.STOPPED:
        yield _stop_report(status.step, status.error, first)
