"""From a plan to finished trials: those that our store does not call DONE, in a Ray of their own or a cluster's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from raysweep.config.plan import Plan, PlannedTrial
from raysweep.errors import RunFailedError, StoreError, UnwritableError
from raysweep.lazy import lazy
from raysweep.results.drivers import DriverLock
from raysweep.results.proposals import PROPOSALS, ProposalFolder
from raysweep.results.ray_logs import RAY_FOLDER
from raysweep.results.state import State, TrialStatus, trial_state
from raysweep.results.store import GROUP_SNAPSHOTS, ResultStore
from raysweep.results.tables import Sweep
from raysweep.tune import cluster
from raysweep.tune.local_ray import first_line, running_ray
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

RESTARTS = 1  # how often the driver starts over after Ray itself gave up (an out-of-memory kill, a lost node)


class Watcher(Protocol):
    """Is told how a sweep goes (``raysweep.cli.display.Display`` is one)."""

    def connecting(self, address: str | None) -> None:
        """Ray is about to be started, or joined at *address*; that takes seconds."""

    def begin(self) -> None:
        """The trials are about to start."""

    def started(self, key: str) -> None:
        """A trial runs."""

    def round(self, key: str, result: Mapping[str, Any]) -> None:
        """A trial reached a round."""

    def lost(self, key: str, retried: bool) -> None:
        """A trial's process died."""

    def stopped(self, key: str) -> None:
        """A trial no longer runs."""

    def end(self) -> None:
        """No trial runs any more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, by our store; each planned trial that is not done stands in one of the others.

    Attributes:
        done: trials that are done.
        failed: errors of failed trials, by key.
        unfinished: trials without an end, whatever the reason: not begun, interrupted, damaged, of a newer raysweep, stopped.
        interrupted: whether a signal ended the run.
        results: where the results are.
        absent: of the unfinished, those that were never begun.
        damaged: of the unfinished, those whose files are damaged or of a newer raysweep, with the reason.
        altered: of the damaged, those that are made again with ``--repair`` only.
        lost: whether the results folder was removed, moved or replaced while the sweep ran.
    """

    done: tuple[str, ...]
    failed: Mapping[str, str]
    unfinished: tuple[str, ...]
    interrupted: bool
    results: str
    absent: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    altered: tuple[str, ...] = ()
    lost: bool = False

    @property
    def exit_code(self) -> int:
        """0 complete, 130 interrupted, 3 incomplete."""
        if self.interrupted:
            return 130
        return 3 if self.failed or self.unfinished else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run a sweep.

    Attributes:
        address: the cluster to join; None = a Ray of our own.
        retry: run failed trials again.
        repair: make finished trials again whose tables are damaged.
        fresh: forget what earlier runs of these trials measured.
        anyway: run although somebody else runs this sweep.
        concurrent: how many trials at once; 0 = as many as fit.
        reuse: let a process serve many trials, which saves seconds per trial and changes no number.
    """

    address: str | None = None
    retry: bool = False
    repair: bool = False
    fresh: bool = False
    anyway: bool = False
    concurrent: int = 0
    reuse: bool = True


def run_sweep(
    plan: Plan, workspace: Workspace, *, options: Options = Options(), watcher: Watcher | None = None
) -> Outcome:
    """Run what is not done yet of *plan*.

    Args:
        plan: the trials, and the sweep they belong to.
        workspace: where results go.
        options: see :class:`Options`.
        watcher: told about every round; None = nothing is shown.

    Raises:
        BusyError: somebody else runs this sweep; nothing was changed.
        StoreError: the storage cannot be written; nothing was started.
        SpecError: no node can give a trial what it asks for, or ``options.address`` is malformed.
        RunFailedError: no cluster answers at ``options.address``, or Ray itself gave up twice.
    """
    cluster.check(options.address)
    store = ResultStore(workspace.results(plan.sweep.name))
    store.folder.check_writable()
    table = {t.key: t for t in plan.trials}
    lock = DriverLock(store.folder, anyway=options.anyway)
    with lock:
        store.folder.drop_drafts()
        store.plan()  # one of a newer raysweep is an error, not overwritten
        if options.fresh:
            _forget(store, table.values())
        store.write_plan(plan.as_json(), plan.sweep.source.text)
        states = trial_states(store, table)
        altered = {k: s for k, s in states.items() if s.altered and not options.repair}
        interrupted = _run(store, table, states, plan, workspace, options, watcher, lock)
    return _outcome(store, table, plan, altered, interrupted=interrupted, lost=lock.lost)


def _run(
    store: ResultStore, table: Mapping[str, PlannedTrial], states: Mapping[str, TrialStatus], plan: Plan,
    workspace: Workspace, options: Options, watcher: Watcher | None, lock: DriverLock,
) -> bool:  # fmt: skip
    """Run what is not done by *states*; return whether that was interrupted.

    Once more, in a new Ray, where Ray gave up, or where trials have no end: Tune drops one whose process died while it took that
    over from another trial.
    """
    for attempt in range(RESTARTS + 1):
        first = attempt == 0
        if not first:
            states = trial_states(store, table, verify=False)
        todo = pending(states, retry=options.retry and first, repair=options.repair and first)
        if not todo or not lock.check() or not (first or _is_writable(store)):
            return False
        if not first:
            log.warning("%d trials have no end; running them once more", len(todo))
        for key in todo:
            store.reopen(key)
        if watcher is not None:
            watcher.connecting(options.address)
        try:
            if _run_in_ray(store, todo, table, plan, workspace, options, watcher, lock):
                return True
        except RuntimeError as error:
            if not lock.check():
                return False
            if attempt == RESTARTS:
                raise RunFailedError(f"Ray gave up: {first_line(error)}", hint="run the same command again") from error
            log.warning("Ray gave up (%s)", first_line(error))
        except KeyboardInterrupt:
            return True
    return False


def _run_in_ray(
    store: ResultStore, todo: Sequence[str], table: Mapping[str, PlannedTrial], plan: Plan, workspace: Workspace,
    options: Options, watcher: Watcher | None, lock: DriverLock,
) -> bool:  # fmt: skip
    """Start or join a Ray and run the trials *todo*; return whether that was interrupted."""
    with running_ray(cluster.wanted(options.address)):
        sessions = lazy("raysweep.tune.sessions").Sessions(
            store, table, plan.sweep, workspace, options, watcher, lambda: lock.lost
        )
        if watcher is not None:
            watcher.begin()
        try:
            return bool(sessions.run(todo))
        finally:
            if watcher is not None:
                watcher.end()


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
    shared = {f"{GROUP_SNAPSHOTS}/{t.share}-{t.trial.seed}" for t in trials if t.share}
    kin = {f"{PROPOSALS}/{t.kin}" for t in trials if t.kin}
    store.forget(*(t.key for t in trials), RAY_FOLDER, *shared, *kin)


def pending(states: Mapping[str, TrialStatus], *, retry: bool = False, repair: bool = False) -> list[str]:
    """Return the keys of the trials to run, by where they stand; those already begun come first.

    What is done, stopped or of a newer raysweep is not; what failed only with *retry*; a finished trial whose tables were altered
    only with *repair*. A trial that lacks a file, or whose state files are damaged, is run as if it had not ended.
    """

    def wanted(status: TrialStatus) -> bool:
        if status.state is State.FAILED:
            return retry
        return repair if status.altered else not status.ended

    todo = [key for key, status in states.items() if wanted(status)]
    return sorted(todo, key=lambda key: states[key].state is State.ABSENT)


def trial_states(
    store: ResultStore, trials: Mapping[str, PlannedTrial], *, verify: bool = True
) -> dict[str, TrialStatus]:
    """Return where each of *trials* stands; with *verify*, every file of those that are done is compared with what was written."""
    return {
        key: trial_state(store.folder, key, planned.trial.protocol.rounds, verify=verify, drivers=())
        for key, planned in trials.items()
    }


def _outcome(
    store: ResultStore, table: Mapping[str, PlannedTrial], plan: Plan, altered: Mapping[str, TrialStatus], *,
    interrupted: bool, lost: bool,
) -> Outcome:  # fmt: skip
    """Return how a run ended; *altered* are trials that were found to be, and left alone."""
    states = {**trial_states(store, table, verify=False), **altered}
    if not lost or store.folder.exists():
        for kin in {t.kin for t in table.values() if t.kin}:
            if all(states[t.key].state is State.DONE for t in table.values() if t.kin == kin):
                ProposalFolder(store.folder, kin).forget()
        for name in (PROPOSALS, GROUP_SNAPSHOTS):
            store.folder.drop_if_empty(name)
        with suppress(StoreError):  # a disk that is full now has everything but this table, which is rebuilt each time
            if store.plan() is None:
                store.write_plan(plan.as_json(), plan.sweep.source.text)
            Sweep(store).write_trials()
    unfinished = {k: s for k, s in states.items() if s.state not in (State.DONE, State.FAILED)}
    return Outcome(
        done=tuple(k for k, s in states.items() if s.state is State.DONE),
        failed={k: s.error for k, s in states.items() if s.state is State.FAILED},
        unfinished=tuple(unfinished),
        interrupted=interrupted and bool(unfinished),
        results=store.folder.location,
        absent=tuple(k for k, s in unfinished.items() if s.state is State.ABSENT),
        damaged={k: s.reason for k, s in unfinished.items() if s.reason},
        altered=tuple(k for k, s in unfinished.items() if s.altered),
        lost=lost,
    )
