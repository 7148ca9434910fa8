"""How a run of a sweep ended, as our store has it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from raysweep.errors import StoreError
from raysweep.results.indexing import index_finished
from raysweep.results.outcome import SweepOutcome
from raysweep.results.proposals import PROPOSALS, ProposalFolder
from raysweep.results.snapshots import GROUP_SNAPSHOTS
from raysweep.results.state import ENDS, State, TrialStatus
from raysweep.results.tables import Sweep
from raysweep.tune.pending import trial_states
from raysweep.tune.sweep_run import SweepRun

_REBUILDS = 5  # tries to write a table of trials that no other part has outdated meanwhile


def conclude(
    run: SweepRun, altered: Mapping[str, TrialStatus], *, interrupted: bool, time_up: bool = False
) -> SweepOutcome:
    """Remove what only unfinished trials need, rebuild the table of trials, and return how *run* ended.

    Args:
        run: a run that holds its lock no more.
        altered: finished trials whose tables were found to be altered, and which were left alone.
        interrupted: whether a signal ended the run.
        time_up: whether that signal was a scheduler's warning before its time limit.
    """
    store, lost = run.store, run.lock.lost
    # Bytes were compared when the run began; reading all of them again would double the time of a small sweep.
    states = {**trial_states(store, run.table, verify=False), **altered}
    if not lost or store.folder.exists():
        if run.lock.keys is None:  # else others may be at work in the same folder
            _remove_shared(run, states)
        elif run.options.part is not None:
            _remove_shared(run, _of_whole_plan(run))
        with suppress(StoreError):  # a disk that is full now has everything but this table, which is rebuilt each time
            # The folder was removed and made anew while the sweep ran, or plan.json was damaged.
            if store.plan() is None:
                store.write_plan(run.plan.as_json(), run.plan.sweep.source.text)
            _write_trials(run)
    unfinished = {k: s for k, s in states.items() if s.state not in ENDS}
    return SweepOutcome(
        done=tuple(k for k, s in states.items() if s.state is State.DONE),
        failed={k: s.error for k, s in states.items() if s.state is State.FAILED},
        stopped={k: s.error for k, s in states.items() if s.state is State.STOPPED},
        unfinished=tuple(unfinished),
        interrupted=interrupted and bool(unfinished),
        time_up=time_up and bool(unfinished),
        results=store.folder.location,
        absent=tuple(k for k, s in unfinished.items() if s.state is State.ABSENT),
        damaged={k: s.reason for k, s in unfinished.items() if s.reason},
        altered=tuple(k for k, s in unfinished.items() if s.altered),
        lost=lost,
    )


def _of_whole_plan(run: SweepRun) -> Mapping[str, TrialStatus]:
    """Return where the trials of all parts stand that share proposals with one of this part's."""
    shared = {t.proposal_cache_key for t in run.table.values() if t.proposal_cache_key}
    trials = {t.key: t for t in run.plan.trials if t.proposal_cache_key in shared}
    return trial_states(run.store, trials, verify=False)


def _write_trials(run: SweepRun) -> None:
    """Rebuild the table of trials, again where another part ended a trial while it was being written.

    Whoever writes last has looked after everybody's last trial, so nobody's is left out.
    """
    store = run.store
    ended = _ended(run)
    for _ in range(_REBUILDS):
        sweep = Sweep(store)
        index_finished(sweep)
        sweep.write_trials()
        before, ended = ended, _ended(run)
        if before == ended:
            return


def _ended(run: SweepRun) -> frozenset[str]:
    """Return the trials of the plan that have ended, where other parts may end some at any time."""
    if run.options.part is None:
        return frozenset()
    return frozenset(t.key for t in run.plan.trials if run.store.status(t.key, t.trial.protocol.rounds).ended)


def _remove_shared(run: SweepRun, states: Mapping[str, TrialStatus]) -> None:
    """Remove the proposals of trials that are all done by *states*, and folders in which nothing is."""
    trials = [t for t in run.plan.trials if t.proposal_cache_key and t.key in states]
    for cache_key in {t.proposal_cache_key for t in trials}:
        if all(states[t.key].state is State.DONE for t in trials if t.proposal_cache_key == cache_key):
            with suppress(FileNotFoundError):  # another part that ended now was quicker
                ProposalFolder(run.store.folder, cache_key).forget()
    for name in (PROPOSALS, GROUP_SNAPSHOTS):
        run.store.folder.drop_if_empty(name)
