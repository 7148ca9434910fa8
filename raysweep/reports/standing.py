"""What a reader is told of trials that no table shows: damaged, of a newer raysweep, interrupted, or never begun."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.config import names
from raysweep.config.names import TrialName
from raysweep.reports.prose import brief, counted

if TYPE_CHECKING:
    from raysweep.results.outcome import SweepOutcome
    from raysweep.results.tables import Sweep

SHOWN = 10  # lines of one kind; the rest is counted


def damage_lines(damaged: Mapping[str, str], called: Mapping[str, str]) -> list[str]:
    """Return a line per trial of *damaged*: what it is *called*, its key, what is wrong with it."""
    lines = [f"damaged: {called.get(key, 'trial')} {key}: {reason}" for key, reason in damaged.items()]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"… and {len(lines) - SHOWN} more"]


def left_out_lines(sweep: Sweep) -> list[str]:
    """Return what to say of the trials of *sweep* whose files are damaged; empty if there are none."""
    if not sweep.damaged:
        return []
    called = trial_labels(sweep.places)
    count = counted(len(sweep.damaged), "damaged trial is", "damaged trials are")
    cure = f"`raysweep run {sweep.name}` makes what it can, with --repair also what was altered, again"
    return [*damage_lines(sweep.damaged, called), f"{count} left out; {cure}"]


def by_arm(keys: Iterable[str], arms: Mapping[str, str]) -> str:
    """Return the arms of *keys*, each with its number of trials.

    >>> by_arm(["a", "b", "c"], {"a": "rome", "b": "memit", "c": "rome"})
    'rome (2 trials), memit (1 trial)'
    """
    counts: dict[str, int] = {}
    for key in keys:
        arm = arms.get(key, key)
        counts[arm] = counts.get(arm, 0) + 1
    return ", ".join(f"{arm} ({counted(count, 'trial', 'trials')})" for arm, count in counts.items())


def missing_lines(outcome: SweepOutcome, called: Mapping[str, str], arms: Mapping[str, str]) -> list[str]:
    """Return, for a run that did not do everything, what is missing and what makes it."""
    lines = []
    # One cause often fails hundreds of trials; the first few show it.
    for key, error in list(outcome.failed.items())[:SHOWN]:
        where = f"{outcome.results}/{key}/FAILED.json"
        head, _, hint = brief(error).partition("\n")
        lines.append(f"failed: {called.get(key, key)}: {head}  (traceback in {where})")
        lines += [hint] if hint else []
    if outcome.failed:
        count = counted(len(outcome.failed), "trial", "trials")
        lines.append(f"{count} failed; mend the cause and add --retry to the same command")
    for key, reason in list(outcome.stopped.items())[:SHOWN]:
        lines.append(f"stopped: {called.get(key, key)}: {reason}")
    lines += damage_lines(outcome.damaged, called)
    if outcome.altered:
        count = counted(len(outcome.altered), "finished trial has", "finished trials have")
        lines.append(f"{count} altered tables; add --repair to the same command to make them again")
    if outcome.lost:
        lines.append(f"{outcome.results} was removed, moved or replaced while the sweep ran")
    if outcome.absent:
        lines.append(f"not begun: {by_arm(outcome.absent, arms)}")
    if outcome.time_up:
        lines.append("stopped by SIGUSR1, for the time limit; run the same command again to go on")
    elif outcome.interrupted:
        lines.append("interrupted; run the same command again to go on")
    elif outcome.unfinished:
        count = counted(len(outcome.unfinished), "trial is", "trials are")
        lines.append(f"{count} missing; run the same command again")
    return lines


def trial_labels(places: Sequence[TrialName]) -> dict[str, str]:
    """Return what to call each trial, by key: ``memit+simie lam=10 seed=0``, with all names of one that has several."""
    texts = names.labels([(n.arm, names.without_seed(n.point)) for n in places])
    by_key: dict[str, list[str]] = {}
    for name, text in zip(places, texts, strict=True):
        seed = f" seed={name.point['seed']}" if "seed" in name.point else ""
        by_key.setdefault(name.key, []).append(f"{text}{seed}")
    return {key: " = ".join(of) for key, of in by_key.items()}
