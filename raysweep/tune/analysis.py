"""A sweep as Ray Tune logged it, over all its sessions, checked against our tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from raysweep.config.schema import TrialSpec
from raysweep.results.ray_logs import TRIAL_KEY, Rounds, logged_rounds, sessions
from raysweep.results.store import ResultStore
from raysweep.results.tables import trial_columns
from raysweep.studies import phases
from raysweep.summarize import PHASES, summary

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Analysis:
    """What Ray logged, by trial and step (the latest session counts), and how it compares with our tables.

    ``best`` is the best trial over all sessions among those whose last logged round is the highest one and whose metric is a
    finite number there: values of different rounds are not ranked together.
    """

    sessions: tuple[str, ...]
    rounds: Mapping[str, Rounds]
    best: tuple[str, float] | None
    compared: int
    disagreements: tuple[str, ...]


def analyse(store: ResultStore, keys: Collection[str], *, metric: str, mode: str, trust: bool = False) -> Analysis:
    """Compare each round of *keys* that Ray logged with our rows, and name the best trial.

    Args:
        store: the sweep's results.
        keys: the trials to look at.
        metric: the summary value to rank by.
        mode: ``max`` or ``min``.
        trust: let ``ray.tune.ExperimentAnalysis`` name the best trial. It opens Ray's experiment state, which holds pickles:
            code of whoever made the results is run.

    Raises:
        StoreError: the sweep has no Ray sessions.
    """
    rounds = logged_rounds(store, keys)
    best = _best_by_ray(store, keys, metric, mode) if trust else _best(rounds, metric, mode)
    compared, wrong = _compare(store, rounds)
    return Analysis(sessions(store), rounds, best, compared, tuple(wrong))


def _best(rounds: Mapping[str, Rounds], metric: str, mode: str) -> tuple[str, float] | None:
    """Return the trial with the best *metric* in its last logged round, and that value; None where none can be ranked."""
    values = _ranked({key: (max(steps), steps[max(steps)]) for key, steps in rounds.items() if steps}, metric)
    if not values:
        return None
    best = (max if mode == "max" else min)(values, key=lambda key: values[key])
    return best, values[best]


def _best_by_ray(store: ResultStore, keys: Collection[str], metric: str, mode: str) -> tuple[str, float] | None:
    """Return what ``ExperimentAnalysis.get_best_trial`` chooses over the latest session of every trial."""
    from ray.tune import ExperimentAnalysis
    from ray.tune.experiment import Trial

    latest: dict[str, Trial] = {}
    opened = ""
    for name in sessions(store):
        if not any("experiment_state-" in f for f in store.folder.files(name)):
            continue  # killed before Ray wrote its state
        analysis = ExperimentAnalysis(store.folder.path(name), storage_filesystem=store.folder.filesystem)
        opened = store.folder.path(name)
        for trial in analysis.trials:
            key = str(trial.config[TRIAL_KEY])
            if key in keys and "step" in trial.last_result:  # not so where a process died before its first round
                latest[key] = trial
    last = {key: (int(trial.last_result["step"]), trial.last_result) for key, trial in latest.items()}
    able = [latest[key] for key in _ranked(last, metric)]
    if not able:
        return None
    whole = ExperimentAnalysis(opened, storage_filesystem=store.folder.filesystem, trials=able)
    winner = whole.get_best_trial(metric, mode, scope="last")
    return None if winner is None else (str(winner.config[TRIAL_KEY]), float(winner.last_result[metric]))


def _ranked(last: Mapping[str, tuple[int, Mapping[str, object]]], metric: str) -> dict[str, float]:
    """Return the *metric* of the trials whose last logged round is the highest one, where it is a finite number there.

    *last* has the step of each trial's last round, and what Ray was told of it.
    """
    # Values of different rounds are not ranked together: a trial that died early would look best.
    highest = max((step for step, _ in last.values()), default=0)
    logged = {key: row.get(metric) for key, (step, row) in last.items() if step == highest}
    return {key: float(value) for key, value in logged.items() if is_number(value)}


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether *value* is a finite number: a metric that is undefined is missing from what Ray logged, or NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def _compare(store: ResultStore, rounds: Mapping[str, Rounds]) -> tuple[int, list[str]]:
    """Compare every logged summary value with the one our rows give."""
    compared, wrong = 0, []
    known = set(store.keys())
    for key, steps in rounds.items():
        if key not in known:
            wrong.append(f"{key}: Ray logged it, our tables do not have it")
            continue
        columns, trial = trial_columns(store, key), TrialSpec.read_back(store.about(key).trial)
        batch = trial.protocol.batch_size
        for step, row in steps.items():
            # A failed trial's last line has no values.
            if isinstance(row.get("failure"), str):
                continue
            stored = summary(columns, step, batch, phases=phases(trial.study))
            logged = {n for n, v in row.items() if n.partition("/")[0] in (*PHASES, "pristine") and is_number(v)}
            # Of both sides: a value that only one of them has is a disagreement too.
            for name in sorted(stored.keys() | logged):
                ours, theirs = stored.get(name), row.get(name)
                compared += 1
                if ours is None or not isinstance(theirs, int | float) or not _same(ours, float(theirs)):
                    wrong.append(f"{key} at {step}: {name} is {theirs} for Ray, {_printed(ours)} in our tables")
    return compared, wrong


def _printed(value: float | None) -> str:
    return "undefined" if value is None else str(value)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= TOLERANCE * max(1.0, abs(a))
