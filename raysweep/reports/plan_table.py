"""A plan as a table, as lines to read below it, and as plain data: which trials there are, and what is done of them.

In a notebook::

    plan = open_plan("demo", workspace)
    statuses = trial_statuses(plan, workspace)
    print(text(plan, statuses), *notes(plan, statuses, workspace, Components.installed()), sep="\\n")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config.components import Components
from raysweep.config.planned_trial import Plan
from raysweep.lazy import lazy
from raysweep.reports import estimates, fit, prefixes
from raysweep.reports.prose import counted
from raysweep.reports.standing import damage_lines
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.results import drivers, folder, state
else:
    # They bring pyarrow along, which takes longer to import than a plan to make.
    drivers = lazy("raysweep.results.drivers")
    folder = lazy("raysweep.results.folder")
    state = lazy("raysweep.results.state")


@dataclass(frozen=True, slots=True)
class PlannedStatus:
    """Where a planned trial stands.

    Attributes:
        state: ``absent``, ``running``, ``interrupted``, ``damaged``, ``failed`` or ``done``.
        reason: what is wrong with its files; empty if nothing is.
    """

    state: str
    reason: str = ""


def trial_statuses(plan: Plan, workspace: Workspace) -> list[PlannedStatus]:
    """Return where each trial of *plan* stands, in the plan's order.

    Where the sweep has no local folder yet, nothing is imported to find that out.
    """
    results = workspace.results(plan.sweep.name)
    if "://" not in results and not Path(results).is_dir():
        return [PlannedStatus("absent")] * len(plan.trials)
    results_folder = folder.Folder(results)
    # Who is at work is asked once: that is one look at the folder, not one per trial.
    at_work = drivers.drivers_at_work(results_folder)
    found_states = (
        state.trial_state(results_folder, planned.key, planned.trial.protocol.rounds, drivers=at_work)
        for planned in plan.trials
    )
    return [PlannedStatus(status.state.value.lower(), status.reason) for status in found_states]


def text(plan: Plan, statuses: Sequence[PlannedStatus], *, width: int | None = None) -> str:
    """Return the table of *plan*, one line per arm and point; a table fits *width*, None = in full.

    Args:
        plan: what is planned.
        statuses: of its trials, in their order (:func:`trial_statuses`).
        width: how many characters a line may have.
    """
    # A trial that stands at several places has a line for each of them, all with its one status.
    states = {planned.key: status.state for planned, status in zip(plan.trials, statuses, strict=True)}
    columns = [
        fit.Column("arm", [name.arm for name in plan.names], name_column=True),
        fit.Column("point", ["  ".join(f"{k}={v}" for k, v in name.point.items()) for name in plan.names]),
        fit.Column("key", [name.key for name in plan.names], whole=True),
        fit.Column("status", [states[name.key] for name in plan.names], whole=True),
    ]
    return fit.complete(columns, title=f"sweep {plan.sweep.name}", width=width).rstrip()


def notes(
    plan: Plan,
    statuses: Sequence[PlannedStatus],
    workspace: Workspace,
    components: Components,
    room: estimates.Room | None = None,
) -> list[str]:
    """Return the lines below the table: protocols, what is odd or damaged, how questions are computed, memory, time left, extent.

    Args:
        plan: what is planned.
        statuses: of its trials, in their order.
        workspace: where models and results lie.
        components: tables to resolve names with.
        room: what the edits that are made together must fit into; None = not known.
    """
    states = [status.state for status in statuses]
    damaged = {t.key: status.reason for t, status in zip(plan.trials, statuses, strict=True) if status.reason}
    # Backwards, so that of several arms with one trial the first one names it.
    arms = {name.key: name.arm for name in reversed(plan.names)}
    time_left = estimates.time_line(plan, workspace, states)
    n_done = states.count("done")
    return [
        *_protocol_lines(plan),
        *(f"note: {note}" for note in (*plan.notes, *damage_lines(damaged, arms))),
        *prefixes.lines(plan, workspace),
        *estimates.memory_lines(plan, workspace, components),
        *estimates.together_lines(plan, estimates.together(plan, workspace, components, room), room),
        *([time_left] if time_left else []),
        f"{extent(plan)}; {n_done} done, {len(plan.trials) - n_done} to run",
    ]


def as_json(
    plan: Plan, statuses: Sequence[PlannedStatus], workspace: Workspace, fitting: Mapping[str, int] | None = None
) -> dict[str, object]:
    """Return *plan* as plain data, with every resolved value.

    Trials of one edit group have the same text in ``edit_group``; it is empty where a trial's edits are its own. *fitting* tells,
    by the trial's key, how many edits fit together: ``fit_together``, there only where that is known.
    """
    return {
        "sweep": plan.sweep.model_dump(mode="json"),
        "trials": [
            {
                "key": planned.key,
                "arm": planned.arm,
                "point": dict(planned.point),
                "names": [{"arm": n.arm, "point": dict(n.point)} for n in plan.names if n.key == planned.key],
                "edit_group": planned.edit_key,
                "status": status.state,
                # There only where something is damaged, so that its presence is the question to ask.
                **({"reason": status.reason} if status.reason else {}),
                **({"fit_together": fitting[planned.key]} if fitting and planned.key in fitting else {}),
                "trial": planned.trial.model_dump(mode="json"),
            }
            for planned, status in zip(plan.trials, statuses, strict=True)
        ],
        # None: the layout is not known before the model is here
        "models": [{"model": m, "shares_prefixes": s} for m, s in prefixes.sharing(plan, workspace).items()],
        "notes": list(plan.notes),
    }


def extent(plan: Plan) -> str:
    """Return how many trials there are, in how many edit groups, and how many edits those make.

    ``7 trials in 1 edit group, 100 edits in all``; groups are left out where no two trials share their edits.
    """
    edits = sum(group[0].trial.protocol.rounds[-1] for group in plan.edit_groups)
    n_trials, n_groups = len(plan.trials), len(plan.edit_groups)
    within = f" in {counted(n_groups, 'edit group', 'edit groups')}" if n_groups < n_trials else ""
    return f"{counted(n_trials, 'trial', 'trials')}{within}, {edits:,} edits in all"


def _protocol_lines(plan: Plan) -> list[str]:
    """Return a line for each protocol, with the arms that have it."""
    protocols = {planned.key: planned.trial.protocol for planned in plan.trials}
    # The inner mapping is an ordered set: an arm has many points, and is named once.
    arms: dict[tuple[tuple[int, ...], int], dict[str, None]] = {}
    for name in plan.names:
        protocol = protocols[name.key]
        arms.setdefault((protocol.rounds, protocol.batch_size), {})[name.arm] = None
    return [
        f"rounds {list(rounds)} (batch size {batch_size}): {', '.join(names)}"
        for (rounds, batch_size), names in arms.items()
    ]
