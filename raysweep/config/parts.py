"""A part of a plan: what one of several independent runs of a sweep takes on (``raysweep run SWEEP --shard 2/8``)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.errors import SpecError


@dataclass(frozen=True, slots=True)
class Part:
    """The *number*-th of *total* parts, counted from 1.

    Promises: the parts of a plan are disjoint and are together the plan; which part a trial falls into depends on the plan and
    *total* alone; trials that share their edits fall into the same one.
    """

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that *text* names, ``2/8``.

        >>> str(Part.parse("2/8"))
        '2/8'

        Raises:
            SpecError: it is not of that form, or there is no such part.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise SpecError(f"--shard {text!r} names no part", hint="write --shard 2/8 for the second of eight parts")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def trials_of(self, plan: Plan) -> tuple[PlannedTrial, ...]:
        """Return the trials of *plan* that fall into this part, in its order; none where there are fewer edit groups than parts.

        Every *total*-th edit group is taken. Neighbours in a plan differ in what is swept last, often the seed, and cost the same:
        dealt out like this, each part gets trials of every arm.
        """
        chosen = {trial.key for group in plan.edit_groups[self.number - 1 :: self.total] for trial in group}
        return tuple(trial for trial in plan.trials if trial.key in chosen)

    def of(self, plan: Plan) -> Plan:
        """Return *plan* as if it had this part's trials only: for what is said of a run, never for ``plan.json``."""
        trials = self.trials_of(plan)
        keys = {trial.key for trial in trials}
        return replace(plan, trials=trials, places=tuple(name for name in plan.names if name.key in keys))
