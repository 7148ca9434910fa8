"""From a plan to finished trials: those that our store does not call DONE, through Ray or in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.errors import RunFailedError, UnwritableError
from raysweep.lazy import lazy
from raysweep.reports.standing import trial_labels
from raysweep.results.drivers import DriverLock
from raysweep.results.outcome import INCOMPLETE, SweepOutcome
from raysweep.results.proposals import PROPOSALS
from raysweep.results.ray_logs import RAY_FOLDER
from raysweep.results.snapshots import GROUP_SNAPSHOTS
from raysweep.results.state import State, TrialStatus
from raysweep.results.store import ResultStore
from raysweep.tune import cluster, hang_watch
from raysweep.tune.control_watch import watched
from raysweep.tune.local_ray import first_line, running_ray
from raysweep.tune.outcome import conclude
from raysweep.tune.pending import pending, trial_states
from raysweep.tune.stop_signals import noted_signals
from raysweep.tune.sweep_run import RunOptions, SweepRun
from raysweep.tune.watcher import Watcher
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from ray.tune import Callback

log = logging.getLogger(__name__)

RESTARTS = 1  # how often the driver starts over after Ray itself gave up (an out-of-memory kill, a lost node)
Backend = Literal["ray", "inline"]


def run_sweep(
    plan: Plan, workspace: Workspace, *, options: RunOptions = RunOptions(), watcher: Watcher | None = None,
    backend: Backend = "ray",
) -> SweepOutcome:  # fmt: skip
    """Run what is not done yet of *plan*.

    Args:
        plan: the trials, and the sweep they belong to.
        workspace: where results go.
        options: see :class:`RunOptions`.
        watcher: told about every round; None = nothing is shown.
        backend: ``ray`` runs as many trials at once as fit, in processes that may die and be replaced; ``inline`` runs one after
            another in this process, where Ctrl-C is an exception. The numbers do not depend on it.

    Raises:
        BusyError: somebody else runs this sweep; nothing was changed.
        StoreError: the storage cannot be written; nothing was started.
        SpecError: no node can give a trial what it asks for, ``options.address`` is malformed, or hung trials cannot be found.
        NodeError: a node of the cluster lacks a package, a file, or the storage; nothing was started.
        RunFailedError: no cluster answers at ``options.address``, or Ray itself gave up twice.
    """
    inline = backend == "inline"
    if not inline:
        # Resolved once: whatever is done later, `address` is a cluster's, or None for a Ray of our own.
        options = replace(options, address=cluster.choose(options.address).address)
        cluster.check(options.address)
    store = ResultStore(workspace.results(plan.sweep.name))
    if not inline:
        hang_watch.check(plan.sweep.resources, store.folder.location, local=store.folder.local is not None)
    store.folder.check_writable()
    part = options.part
    table = {t.key: t for t in (plan.trials if part is None else part.trials_of(plan))}
    # Parts of a sweep, and runs in one process (`raysweep edit`, twice), share a folder of results as long as their trials differ.
    beside_others = inline or part is not None
    lock = DriverLock(store.folder, keys=tuple(table) if beside_others else None, anyway=options.anyway)
    run = SweepRun(
        plan=plan, table=table, workspace=workspace, store=store, lock=lock,
        options=options, watcher=watcher or Watcher(),
    )  # fmt: skip
    with noted_signals() as signals, lock:
        states = _prepare(run)
        run.watcher.prepared()
        # Decided before anything runs: what is left alone now must be reported as altered at the end.
        altered = {k: s for k, s in states.items() if s.altered and not options.repair}
        interrupted = bool(
            lazy("raysweep.tune.inline").run_inline(run, states) if inline else _run_with_ray(run, states)
        )
    return conclude(run, altered, interrupted=interrupted, time_up=signals.time_is_up)


def _run_with_ray(run: SweepRun, states: Mapping[str, TrialStatus]) -> bool:
    """Run what is not done by *states*; return whether that was interrupted.

    Once more, in a new Ray, where Ray gave up, or where trials have no end: Tune drops one whose process died while it took that
    over from another trial.
    """
    for attempt in range(RESTARTS + 1):
        first = attempt == 0
        if not first:
            states = trial_states(run.store, run.table, verify=False)
        # What failed in the first attempt stays failed: its error is the trial's own, not Ray's.
        todo = pending(states, retry=run.options.retry and first, repair=run.options.repair and first)
        # A lock that is gone means that the folder was removed or replaced under us: nothing is written there any more.
        if not todo or not run.lock.check() or not (first or _is_writable(run.store)):
            return False
        if not first:
            log.warning("%d trials have no end; running them once more", len(todo))
        for key in todo:
            run.store.reopen(key)
        run.watcher.connecting(run.options.address)
        try:
            if _run_in_ray(run, todo):
                return True
        except RuntimeError as error:
            if not run.lock.check():
                return False
            # RuntimeError is what Ray raises when it itself gives up; an error of a trial never gets here.
            if attempt == RESTARTS:
                raise RunFailedError(f"Ray gave up: {first_line(error)}", hint="run the same command again") from error
            log.warning("Ray gave up (%s)", first_line(error))
        # Between two sessions no Tuner catches the signal, so Ctrl-C arrives here as an exception.
        except KeyboardInterrupt:
            return True
    return False


def _run_in_ray(run: SweepRun, todo: Sequence[str]) -> bool:
    """Start or join a Ray, whose nodes are then examined, and run the trials *todo*; return whether that was interrupted."""
    with running_ray(run.options.address):
        if run.options.address is not None:
            lazy("raysweep.tune.nodes").check(run.plan, run.workspace, run.watcher.joined)
        service = cluster.parse(lazy("ray").get_runtime_context().gcs_address)
        with (
            _logging(run) as callbacks,
            watched(service.host, service.port, partial(_end_without_cluster, run, str(service))),
        ):
            sessions = lazy("raysweep.tune.sessions").Sessions(
                run.store,
                run.table,
                run.plan.sweep,
                run.workspace,
                run.options,
                run.watcher,
                lambda: run.lock.lost,
                callbacks,
            )
            run.watcher.begin()
            try:
                interrupted = bool(sessions.run(todo))
                if run.options.address is not None and run.lock.check():
                    for key in todo:
                        if run.store.status(key).state is State.DONE:
                            run.store.drop_leftovers(key)
                return interrupted
            finally:
                run.watcher.end()


@contextmanager
def _logging(run: SweepRun) -> Iterator[list[Callback]]:
    """Start the loggers that were asked for; return what tells them of Ray's news."""
    names = run.options.log
    if not names:
        yield []
        return
    sweep = run.plan.sweep.name
    with lazy("raysweep.tune.loggers.process").opened(names, sweep, run.workspace.logs(sweep)) as processes:
        yield [lazy("raysweep.tune.loggers.callback").LoggerCallback(processes, trial_labels(run.plan.names))]


def _end_without_cluster(run: SweepRun, address: str) -> None:
    """End this process, whose Ray has lost its control service at *address*: Ray would, a minute later and without a word."""
    try:
        states = trial_states(run.store, run.table, verify=False)
        done = sum(status.state is State.DONE for status in states.values())
        run.watcher.cluster_lost(address, done, len(states))
        run.lock.release()
    finally:
        # No exception could reach the main thread, which waits in Ray's own code.
        os._exit(INCOMPLETE)


def _prepare(run: SweepRun) -> Mapping[str, TrialStatus]:
    """Write the plan into the folder of results and return where each trial stands."""
    if run.lock.keys is None:
        run.store.folder.drop_drafts()
    run.store.plan()  # one of a newer raysweep is an error, not overwritten
    if run.options.fresh:
        _forget(run.store, run.table.values())
    run.store.write_plan(run.plan.as_json(), run.plan.sweep.source.text)
    # Whoever asks for repair suspects the disk, so every byte is read again.
    return trial_states(run.store, run.table, trust_index=not run.options.repair)


def _is_writable(store: ResultStore) -> bool:
    try:
        store.folder.check_writable()
    except UnwritableError as error:
        log.warning("%s", error.message)
        return False
    return True


def _forget(store: ResultStore, trials: Iterable[PlannedTrial]) -> None:
    """Delete what earlier runs left of *trials*, all of it or nothing."""
    trials = tuple(trials)
    snapshots = {f"{GROUP_SNAPSHOTS}/{t.edit_key}-{t.trial.seed}" for t in trials if t.edit_key}
    proposals = {f"{PROPOSALS}/{t.proposal_cache_key}" for t in trials if t.proposal_cache_key}
    store.forget(*(t.key for t in trials), RAY_FOLDER, *snapshots, *proposals)
