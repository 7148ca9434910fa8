"""Which trials of a plan are still to be run: those that our store does not call ended."""

from __future__ import annotations

from collections.abc import Mapping

from raysweep.config.planned_trial import PlannedTrial
from raysweep.results.folder import each
from raysweep.results.index import finished
from raysweep.results.state import State, TrialStatus, trial_state
from raysweep.results.store import ResultStore


def pending(states: Mapping[str, TrialStatus], *, retry: bool = False, repair: bool = False) -> list[str]:
    """Return the keys of the trials to run, by where they stand; those already begun come first.

    What is done, stopped or of a newer raysweep is not; what failed only with *retry*; a finished trial whose tables were altered
    only with *repair*. A trial that lacks a file, or whose state files are damaged, is run as if it had not ended.
    """

    def is_pending(status: TrialStatus) -> bool:
        if status.state is State.FAILED:
            return retry
        return repair if status.altered else not status.ended

    todo = [key for key, status in states.items() if is_pending(status)]
    # Begun ones first; sorting is stable, so within both halves the plan's order stays.
    return sorted(todo, key=lambda key: states[key].state is State.ABSENT)


def trial_states(
    store: ResultStore, trials: Mapping[str, PlannedTrial], *, verify: bool = True, trust_index: bool = True
) -> dict[str, TrialStatus]:
    """Return where each of *trials* stands; with *verify*, every file of those that are done is compared with what was written.

    With *trust_index*, a trial whose folder looks as it did when that was last done counts as compared
    (:mod:`raysweep.results.index`). A disk that altered bytes and no time of any file is found without it only.
    """
    known = finished(store.folder, trials) if trust_index else {}

    def ask(key: str) -> TrialStatus:
        rounds = trials[key].trial.protocol.rounds
        return trial_state(store.folder, key, rounds, verify=verify, drivers=())

    read = each(store.folder, [key for key in trials if key not in known], ask)
    return {key: read[key] if key in read else known[key] for key in trials}
