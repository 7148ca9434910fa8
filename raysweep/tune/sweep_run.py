"""One run of a sweep: what its back ends, Ray and this process, are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raysweep.config.parts import Part
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.results.drivers import DriverLock
from raysweep.results.store import ResultStore
from raysweep.tune.watcher import Watcher
from raysweep.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run a sweep.

    Attributes:
        address: the cluster to join, ``host:port`` or ``auto``; ``local`` = a Ray of our own; None = the cluster that
            ``RAY_ADDRESS`` names or whose job this is, else a Ray of our own.
        retry: run failed trials again.
        repair: make finished trials again whose tables are damaged.
        fresh: forget what earlier runs of these trials measured.
        anyway: run although somebody else runs this sweep.
        concurrent: how many trials at once; 0 = as many as fit.
        reuse: let a process serve many trials, which saves seconds per trial and changes no number.
        part: run this part of the plan only, beside others that run theirs; None = all of it.
        log: loggers to tell of rounds (:data:`raysweep.tune.loggers.LOGGERS`), where trials run through Ray.
    """

    address: str | None = None
    retry: bool = False
    repair: bool = False
    fresh: bool = False
    anyway: bool = False
    concurrent: int = 0
    reuse: bool = True
    part: Part | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        plan: the trials, and the sweep they belong to.
        table: the trials that this run takes on by key, in the plan's order.
        workspace: where data, models and artifacts lie.
        store: where results go.
        lock: held while it runs.
        options: how to run.
        watcher: told about every round.
    """

    plan: Plan
    table: Mapping[str, PlannedTrial]
    workspace: Workspace
    store: ResultStore
    lock: DriverLock
    options: RunOptions
    watcher: Watcher
