"""How a run of a sweep ended, as our store has it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from raysweep.errors import StoreError
from raysweep.results.indexing import index_finished
from raysweep.results.outcome import SweepOutcome
from raysweep.results.proposals import PROPOSALS, ProposalFolder
from raysweep.results.snapshots import GROUP_SNAPSHOTS
from raysweep.results.state import State, TrialStatus
from raysweep.results.tables import Sweep
from raysweep.tune.pending import trial_states
from raysweep.tune.sweep_run import SweepRun


def conclude(run: SweepRun, altered: Mapping[str, TrialStatus], *, interrupted: bool) -> SweepOutcome:
    """Remove what only unfinished trials need, rebuild the table of trials, and return how *run* ended.

    Args:
        run: a run that holds its lock no more.
        altered: finished trials whose tables were found to be altered, and which were left alone.
        interrupted: whether a signal ended the run.
    """
    store, lost = run.store, run.lock.lost
    # Bytes were compared when the run began; reading all of them again would double the time of a small sweep.
    states = {**trial_states(store, run.table, verify=False), **altered}
    if not lost or store.folder.exists():
        if run.lock.keys is None:  # else others may be at work in the same folder
            _remove_shared(run, states)
        with suppress(StoreError):  # a disk that is full now has everything but this table, which is rebuilt each time
            # The folder was removed and made anew while the sweep ran, or plan.json was damaged.
            if store.plan() is None:
                store.write_plan(run.plan.as_json(), run.plan.sweep.source.text)
            sweep = Sweep(store)
            index_finished(sweep)
            sweep.write_trials()
    unfinished = {k: s for k, s in states.items() if s.state not in (State.DONE, State.FAILED)}
    return SweepOutcome(
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


def _remove_shared(run: SweepRun, states: Mapping[str, TrialStatus]) -> None:
    """Remove the proposals of trials that are all done, and folders in which nothing is."""
    trials = run.table.values()
    for cache_key in {t.proposal_cache_key for t in trials if t.proposal_cache_key}:
        if all(states[t.key].state is State.DONE for t in trials if t.proposal_cache_key == cache_key):
            ProposalFolder(run.store.folder, cache_key).forget()
    for name in (PROPOSALS, GROUP_SNAPSHOTS):
        run.store.folder.drop_if_empty(name)
