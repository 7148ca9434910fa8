"""One trial, round by round: the study computes, the store remembers. Shared by the Ray shell and ``raysweep edit``."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from raysweep.config.schema import TrialSpec
from raysweep.config.space import Scalar
from raysweep.errors import RaysweepError
from raysweep.results.provenance import provenance
from raysweep.results.store import ResultStore, State
from raysweep.results.tables import trial_columns
from raysweep.rows import EvalRound
from raysweep.studies import STUDIES
from raysweep.studies.base import Deps
from raysweep.summarize import summary


@dataclass(frozen=True, slots=True)
class Report:
    """What one round came to: the step, its summary, whether the trial is done, and the error that ended it."""

    step: int
    summary: Mapping[str, float]
    done: bool
    error: str = ""


class TrialRun:
    """A trial in progress.

    Promises: a round is in the store before it is reported; a failure is stored as FAILED and reported, not raised (the
    process may serve the next trial); a trial whose rounds are all there is marked DONE before that is reported.
    """

    def __init__(
        self,
        trial: TrialSpec,
        deps: Deps,
        store: ResultStore,
        *,
        arm: str = "",
        point: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.trial, self.deps, self.store = trial, deps, store
        self.arm, self.point = arm, point or {}
        self.step = 0
        self._rounds: Iterator[EvalRound] | None = None

    def advance(self) -> Report:
        """Run to the next round and store it."""
        try:
            return self._advance()
        except Exception as error:
            self.close()
            kind, message = type(error).__name__, str(error)
            trace = traceback.format_exc()
            self.store.fail(self.trial.key, step=self.step, error=kind, message=message, trace=trace)
            return Report(self.step, {}, True, f"{kind}: {message}")

    def close(self) -> None:
        """End the study's generator, so that nothing of the trial lives on."""
        rounds, self._rounds = self._rounds, None
        if rounds is not None and hasattr(rounds, "close"):
            rounds.close()

    def _advance(self) -> Report:
        if self._rounds is None:
            self._rounds = self._begin()
        last = self.trial.protocol.rounds[-1]
        found = next(self._rounds, None)
        if found is not None:
            if found.step >= last:
                found = replace(found, snapshot=None)  # DONE follows at once; nobody would go on from here
            self.store.write_round(self.trial.key, found)
            self.step = found.step
        elif self.step != last:
            raise RaysweepError(f"the study ended at step {self.step}, before its last round at {last}")
        done = self.step >= last
        values = dict(found.summary) if found is not None else self._stored_summary()
        if done:
            self.close()
            self.store.finish(self.trial.key, step=self.step)
        return Report(self.step, values, done)

    def _begin(self) -> Iterator[EvalRound]:
        import torch

        torch.set_num_threads(self.trial.threads)
        about = provenance(self.trial)
        resume = self.store.begin(self.trial, arm=self.arm, point=self.point, provenance=about)
        if resume is not None:
            self.step = resume.step
        study = STUDIES.get(self.trial.study)()
        rounds: Iterator[EvalRound] = iter(study.execute(self.trial, self.deps, resume))
        return rounds

    def _stored_summary(self) -> dict[str, float]:
        """Return the current step's summary from the store (its last round was written just before a crash)."""
        columns = trial_columns(self.store, self.trial.key)
        return summary(columns, self.step, self.trial.protocol.batch_size)


def run_trial(
    trial: TrialSpec, deps: Deps, store: ResultStore, *, arm: str = "", point: Mapping[str, Scalar] | None = None
) -> Iterator[Report]:
    """Run *trial* in this process, yielding a report per round; nothing is done if it is DONE already."""
    status = store.status(trial.key)
    if status.state is State.DONE:
        return
    run = TrialRun(trial, deps, store, arm=arm, point=point)
    try:
        while True:
            report = run.advance()
            yield report
            if report.done:
                return
    finally:
        run.close()
