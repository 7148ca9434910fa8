"""How a run of a sweep ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

INCOMPLETE = 3  # exit code of a run after which trials failed or are missing


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """How a run ended, by our store; each planned trial that is not done stands in one of the others.

    Attributes:
        done: trials that are done.
        failed: errors of failed trials, by key.
        stopped: why trials were stopped by a rule, by key: a result, like that of a trial that is done.
        unfinished: trials without an end, whatever the reason: not begun, interrupted, damaged, of a newer raysweep.
        interrupted: whether a signal ended the run.
        results: where the results are.
        absent: of the unfinished, those that were never begun.
        damaged: of the unfinished, those whose files are damaged or of a newer raysweep, with the reason.
        altered: of the damaged, those that are made again with ``--repair`` only.
        lost: whether the results folder was removed, moved or replaced while the sweep ran.
        time_up: whether SIGUSR1, a scheduler's warning before its time limit, ended the run.
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
    time_up: bool = False
    stopped: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 complete, 130 interrupted by a person, 3 incomplete."""
        if self.interrupted and not self.time_up:
            return 130
        return INCOMPLETE if self.failed or self.unfinished else 0

    @property
    def missing(self) -> dict[str, str]:
        """Why each trial that is not done is not, by key."""
        return {**self.failed, **{key: self.damaged.get(key, "is unfinished") for key in self.unfinished}}
