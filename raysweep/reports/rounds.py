"""Which rounds may stand side by side: those of the same step, of trials whose state is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raysweep.errors import SpecError
from raysweep.reports.measured import TrialView

Configuration = Sequence[TrialView]  # trials that differ in nothing but the seed
Labelled = Sequence[tuple[str, Configuration]]


def state(trial: TrialView) -> str:
    """Return where *trial* stands: ``done``, ``failed at 50``, ``absent``, ``collapsed at 3``."""
    word = str(trial.row["status"]).lower()
    text = word if word in ("done", "absent") or trial.row["step"] is None else f"{word} at {trial.row['step']}"
    first = trial.row["non_finite_step"]
    if first is None:
        return text
    # To a reader it is one result whether the editor could go on, so that every round is there, or had to stop.
    return f"collapsed at {first}" if word in ("done", "stopped") else f"{text} (collapsed at {first})"


def status(members: Configuration) -> str:
    """Return the state of the trials of one configuration; how many are in which, where there are several."""
    states = [state(t) for t in members]
    if len(members) == 1 or set(states) == {"done"}:
        return states[0]
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))


def complete(members: Configuration) -> bool:
    """Tell whether every trial of a configuration is done."""
    return all(t.row["status"] == "DONE" for t in members)


def measured_rounds(members: Configuration) -> set[int]:
    """Return the steps at which at least one trial of a configuration was measured."""
    return {step for t in members for step in t.rounds}


def last_common(configurations: Iterable[Configuration]) -> int | None:
    """Return the last round that all configurations which are done have; while none is, all that have edited.

    None if they have none but round 0 in common, though they have others.
    """
    every = [(members, measured_rounds(members)) for members in configurations]
    chosen = [steps for members, steps in every if complete(members) and steps]
    # Nothing is done yet: whoever has edited decides, and where nobody has, whoever was measured.
    chosen = chosen or [steps for _, steps in every if steps - {0}] or [steps for _, steps in every if steps]
    common = set.intersection(*chosen) if chosen else set()
    last = max(common, default=0)
    return None if not common or (last == 0 and any(steps - {0} for steps in chosen)) else last


def chosen_round(configurations: Labelled, at: int) -> int:
    """Return the round that *at* means: a step, or -1 for :func:`last_common`.

    Args:
        configurations: what is shown side by side, with labels.
        at: as after ``--at``.

    Raises:
        SpecError: nothing was measured there; the hint has the rounds there are.
    """
    if at < -1:
        raise SpecError(f"--at is a round, or -1 for the last one; got {at}", hint=_rounds(configurations))
    if at >= 0:
        if not any(at in measured_rounds(members) for _, members in configurations):
            raise SpecError(f"nothing was measured at {at} edits", hint=_rounds(configurations))
        return at
    last = last_common(members for _, members in configurations)
    if last is None:
        what = "the configurations have no round in common but 0" if configurations else "nothing was measured yet"
        raise SpecError(what, hint=f"choose one with --at; {_rounds(configurations)}")
    return last


def _rounds(configurations: Labelled) -> str:
    """Return the rounds there are, configuration by configuration where they differ."""
    by_steps: dict[tuple[int, ...], list[str]] = {}
    for label, members in configurations:
        by_steps.setdefault(tuple(sorted(measured_rounds(members))), []).append(label)
    texts = {steps: ", ".join(map(str, steps)) or "none" for steps in by_steps}
    if len(by_steps) == 1:
        return f"rounds measured so far: {next(iter(texts.values()))}"
    each = [f"{texts[steps]} ({', '.join(labels)})" for steps, labels in by_steps.items()]
    return f"rounds measured so far: {'; '.join(each) or 'none'}"
