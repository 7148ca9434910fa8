"""A sweep as Ray Tune's own tools see it, over all its sessions, checked against our tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.errors import StoreError
from raysweep.results.store import ResultStore
from raysweep.results.tables import trial_columns
from raysweep.studies import phases
from raysweep.summarize import PHASES, summary
from raysweep.tune.launch import RAY_FOLDER

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Analysis:
    """What Ray logged, by trial and step (the latest session counts), and how it compares with our tables.

    ``best`` is the trial that ``ExperimentAnalysis.get_best_trial`` chose, over all sessions, among those whose last logged
    round is the highest one and whose metric is a finite number there: values of different rounds are not ranked together.
    """

    sessions: tuple[str, ...]
    rounds: Mapping[str, Mapping[int, Mapping[str, Any]]]
    best: tuple[str, float] | None
    compared: int
    disagreements: tuple[str, ...]


def analyse(store: ResultStore, keys: Collection[str], *, metric: str, mode: str) -> Analysis:
    """Open every session with ``ray.tune.ExperimentAnalysis``; compare each logged round of *keys* with our rows.

    Raises:
        StoreError: the sweep has no Ray sessions.
    """
    from ray.tune import ExperimentAnalysis

    rounds: dict[str, dict[int, dict[str, Any]]] = {}
    latest: dict[str, Any] = {}
    opened: list[str] = []
    for name in store.folder.folders(RAY_FOLDER):
        if not any("experiment_state-" in f for f in store.folder.files(name)):
            continue  # killed before Ray wrote anything
        analysis = ExperimentAnalysis(store.folder.path(name), storage_filesystem=store.folder.filesystem)
        opened.append(name)
        for trial in analysis.trials:
            key = str(trial.config["trial"])
            if key not in keys:
                continue
            logged = rounds.setdefault(key, {})
            logged.update(
                {int(row["step"]): row for row in analysis.trial_dataframes[trial.trial_id].to_dict("records")}
            )
            if "step" in trial.last_result:  # not so where a process died before its first round
                latest[key] = trial
    if not opened:
        raise StoreError(f"no Ray session lies in {store.folder.path(RAY_FOLDER)}", hint="run the sweep first")
    last_step = max((int(trial.last_result["step"]) for trial in latest.values()), default=0)
    able = [
        trial
        for trial in latest.values()
        if int(trial.last_result["step"]) == last_step and is_number(trial.last_result.get(metric))
    ]
    best = None
    if able:
        last = store.folder.path(opened[-1])
        whole = ExperimentAnalysis(last, storage_filesystem=store.folder.filesystem, trials=able)
        winner = whole.get_best_trial(metric, mode, scope="last")
        if winner is not None:
            best = (str(winner.config["trial"]), float(winner.last_result[metric]))
    compared, wrong = _compare(store, rounds)
    return Analysis(tuple(opened), rounds, best, compared, tuple(wrong))


def is_number(value: object) -> bool:
    """Tell whether *value* is a finite number: a metric that is undefined is missing from what Ray logged, or NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def _compare(store: ResultStore, rounds: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> tuple[int, list[str]]:
    """Compare every logged summary value with the one our rows give."""
    compared, wrong = 0, []
    known = set(store.keys())
    for key, steps in rounds.items():
        if key not in known:
            wrong.append(f"{key}: Ray logged it, our tables do not have it")
            continue
        columns, trial = trial_columns(store, key), store.about(key)["trial"]
        batch = int(trial["protocol"]["batch_size"])
        for step, row in steps.items():
            if isinstance(row.get("failure"), str):
                continue
            own = summary(columns, step, batch, phases=phases(trial["study"]))
            logged = {n for n, v in row.items() if n.partition("/")[0] in (*PHASES, "pristine") and is_number(v)}
            for name in sorted(own.keys() | logged):
                ours, theirs = own.get(name), row.get(name)
                compared += 1
                if ours is None or theirs is None or not _same(ours, float(theirs)):
                    wrong.append(f"{key} at {step}: {name} is {theirs} for Ray, {_told(ours)} in our tables")
    return compared, wrong


def _told(value: float | None) -> str:
    return "undefined" if value is None else str(value)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= TOLERANCE * max(1.0, abs(a))
