"""The back end of one process: trials one after another, here, without Ray. It needs no start-up time, and one can debug it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raysweep.config.planned_trial import PlannedTrial
from raysweep.results.runner import RoundReport, replay, run_trial
from raysweep.results.state import ENDS, TrialStatus
from raysweep.tune.deps import Heartbeat, LoadedInputs, make_deps
from raysweep.tune.pending import pending
from raysweep.tune.sweep_run import SweepRun


def run_inline(run: SweepRun, states: Mapping[str, TrialStatus]) -> bool:
    """Run what is not done by *states*, in the plan's order; Ctrl-C is an exception, so this returns False: not interrupted."""
    chosen = set(pending(states, retry=run.options.retry, repair=run.options.repair))
    for key in chosen:
        run.store.reopen(key)
    gpus = run.plan.sweep.resources.gpu
    loaded = LoadedInputs(run.workspace, None if gpus == "auto" else gpus)
    run.watcher.begin()
    try:
        # In the plan's order, though `pending` puts begun trials first: nothing runs beside it that they would hold up.
        for planned in (t for key, t in run.table.items() if key in chosen):
            run.watcher.started(planned.key)
            for result in _rounds(run, planned, loaded):
                run.watcher.round(planned.key, result)
            run.watcher.stopped(planned.key)
    finally:
        run.watcher.end()
    return False


def _rounds(run: SweepRun, planned: PlannedTrial, loaded: LoadedInputs) -> Iterator[dict[str, object]]:
    """Run *planned*, or tell its rounds where an earlier trial of its group made them; yield what Ray would report."""
    status = run.store.status(planned.key, planned.trial.protocol.rounds)
    # The members of an edit group are run with its first one; when their turn comes, they are only told.
    ended = status.state in ENDS
    for report in replay(planned.trial, run.store) if ended else _run(run, planned, loaded):
        result: dict[str, object] = {**report.summary, "step": report.step, "done": report.done, "replayed": ended}
        result |= {"non_finite_step": report.non_finite_step}
        result |= {"failure": report.error} if report.error else {}
        yield {**result, "stopped": report.stopped} if report.stopped else result


def _run(run: SweepRun, planned: PlannedTrial, loaded: LoadedInputs) -> Iterator[RoundReport]:
    local = run.store.folder.local
    heartbeat = Heartbeat(local / planned.key if local is not None else None)
    deps = make_deps(run.workspace, heartbeat, loaded=loaded)
    members = [
        t for t in run.table.values() if planned.edit_key and t.edit_key == planned.edit_key and t is not planned
    ]
    return run_trial(planned, deps, run.store, members)
