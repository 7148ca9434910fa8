"""Trials through Ray Tune, a bounded number in one Tuner.

Tune keeps every trial that a Tuner ever ran, about 0.2 MB of each, and writes all of them into its state file every few seconds,
30 kB of each. A sweep of many trials therefore runs in sessions, each a Tune experiment of its own below ``_ray/``, after which all
of that is freed. Importing this imports Ray.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.util.debug import disable_log_once_globally

from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.sweep_schema import SweepSpec
from raysweep.errors import StoreError, UnwritableError
from raysweep.results.ray_logs import RAY_FOLDER, TRIAL_KEY
from raysweep.results.store import ResultStore, State
from raysweep.tune import placement, ray_nodes
from raysweep.tune.callbacks import RayCallback
from raysweep.tune.hang_watch import HangWatch
from raysweep.tune.local_ray import EVERYWHERE, STATE_PERIOD, first_line
from raysweep.tune.trainable import Trainable
from raysweep.tune.trial_order import GroupByGroup, ray_config
from raysweep.workspace import Workspace, join_location

if TYPE_CHECKING:
    from raysweep.tune.sweep_run import RunOptions
    from raysweep.tune.watcher import Watcher

SESSION = 128  # trials of one session, at least
WAVES = 16  # and at least so many times as run at once: at a session's end processes wait for its last trial


class Sessions:
    """Runs trials of one sweep in the Ray that this process is connected to.

    Args:
        store: the sweep's results.
        table: every planned trial by key.
        sweep: what is run.
        workspace: where results go.
        options: how to run.
        watcher: told about every round; None = nobody.
        halted: asked before a trial starts; True = start none any more.
        callbacks: told of what Ray tells.
    """

    def __init__(
        self, store: ResultStore, table: Mapping[str, PlannedTrial], sweep: SweepSpec, workspace: Workspace,
        options: RunOptions, watcher: Watcher | None, halted: Callable[[], bool], callbacks: Sequence[tune.Callback] = (),
    ) -> None:  # fmt: skip
        disable_log_once_globally()  # Ray remembers every line it might log twice, and makes one for each trial
        self.store, self.table, self.resources = store, table, sweep.resources
        self.options, self.watcher, self.halted, self.callbacks = options, watcher, halted, callbacks
        shards, labels = self.resources.shards, self.resources.labels
        can_propose = frozenset(key for key, trial in table.items() if trial.can_propose) if shards > 1 else frozenset()
        # Asked before any process starts: a request that can never be met would wait in Ray's queue for ever.
        supply = ray_nodes.supply()
        processes = shards if can_propose else 1
        asked = placement.request(self.resources, supply, processes)
        one, split = (ray_nodes.bundles(asked, count, labels) for count in (1, processes))
        self.why_waiting = partial(ray_nodes.why_waiting, asked, processes, labels)
        self.concurrent = options.concurrent or self.resources.concurrent
        fitting = int(placement.capacity(asked, supply.matching(labels).up))
        self.size = max(SESSION, WAVES * (self.concurrent or fitting))
        local = store.folder.local
        minutes = self.resources.hung_after
        self.hangs = HangWatch(Path(local), minutes) if minutes and local is not None else None
        # Of thousands of trials, 30 kB each, that state takes seconds to write; nothing of ours reads it while a session runs.
        if self.size > SESSION and os.environ.get(STATE_PERIOD) == EVERYWHERE[STATE_PERIOD]:
            os.environ[STATE_PERIOD] = "auto"  # a twentieth of the time at most

        def bundles(config: Mapping[str, object]) -> tune.PlacementGroupFactory:
            """One process for a trial, or as many as there are shards where its edits may be computed can_propose.

            Ray keeps a copy of this function, and of all that it refers to, for each session.
            """
            return split if config[TRIAL_KEY] in can_propose else one

        # The table goes into Ray's object store once; a copy in every trial's configuration would be n² memory.
        bound = tune.with_parameters(Trainable, table=dict(table), workspace=workspace, sweep=sweep.name)
        self.trainable = tune.with_resources(bound, bundles)

    def run(self, keys: Sequence[str]) -> bool:
        """Run the trials *keys*, in that order; return whether somebody interrupted that (SIGINT, SIGTERM or SIGUSR1)."""
        for begin in range(0, len(keys), self.size):
            if self.halted():
                return False
            if self._fit(keys[begin : begin + self.size]):
                return True
            release_memory()
        return False

    def _fit(self, keys: Sequence[str]) -> bool:
        """Run one Tune experiment over *keys*; return whether it was interrupted."""
        callbacks: list[tune.Callback] = [JsonLoggerCallback(), CSVLoggerCallback(), *self.callbacks]
        if self.watcher is not None:
            callbacks.append(RayCallback(self.watcher, self.hangs, self.why_waiting))
        tuner = tune.Tuner(
            self.trainable,
            tune_config=tune.TuneConfig(
                search_alg=GroupByGroup(
                    {key: self.table[key].edit_key or key for key in keys},
                    self.halted,
                    {key: ray_config(self.table[key]) for key in keys},
                ),
                # An upper bound for Ray; the searcher ends the experiment.
                num_samples=len(keys),
                reuse_actors=self.options.reuse,
                max_concurrent_trials=self.concurrent or None,
                # Ray's own names hold every hyper-parameter and exceed what a file system allows.
                trial_dirname_creator=_name,
                trial_name_creator=_name,
            ),
            run_config=tune.RunConfig(
                # Thousands of an array job's tasks may begin in the same second.
                name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}",
                storage_path=_ray_storage(self.store),
                verbose=0,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=self.resources.retries),
                # Our snapshots are enough; Ray's checkpoints would be empty files.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        with _watched_signals() as interruption:
            results = tuner.fit()
        for result in results:
            # A trial that fails by itself stores that and returns; an error here is a process that died too often.
            if result.error is not None and result.config:
                self._note_death(str(result.config[TRIAL_KEY]), first_line(result.error))
        return interruption.came

    def _note_death(self, key: str, error: str) -> None:
        """Mark a trial FAILED whose process died more often than it may; one that ended by itself has its state already."""
        status = self.store.status(key)
        hung = self.hangs.reasons.get(key) if self.hangs is not None else None
        kind, message = ("hung", hung) if hung else ("ProcessDied", error)
        if status.state in (State.ABSENT, State.RUNNING, State.INTERRUPTED) and not self.halted():
            with suppress(UnwritableError):
                self.store.fail(key, step=status.step, error=kind, message=message)


def release_memory() -> None:
    """Give back what a session held: its trials and tables refer to each other, and the allocators keep what they had."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # other systems' C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _name(trial: Trial) -> str:
    """Return what Ray calls a trial, and its folder: the trial's key."""
    return str(trial.config[TRIAL_KEY])


@dataclass
class _Interruption:
    """Whether a signal asked a Tuner to stop."""

    came: bool = False


@contextmanager
def _watched_signals() -> Iterator[_Interruption]:
    """Note, when the block ends, whether Tune was interrupted in it, and put the handlers of its signals back.

    Tune tells nobody, but when a signal came it puts back the handler of SIGINT that it found, and leaves its own there otherwise.
    """
    interruption = _Interruption()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield interruption
    finally:
        # Python sets handlers in the main thread only, and so does Tune.
        if threading.current_thread() is threading.main_thread():
            interruption.came = signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


def _ray_storage(store: ResultStore) -> str:
    """Return where Ray keeps its experiment folders: beside our results."""
    local = store.folder.local
    if local is not None:
        return str(Path(local) / RAY_FOLDER)
    if "://" not in store.folder.location:
        raise StoreError(f"Ray cannot write to {store.folder.location}")
    return join_location(store.folder.location, RAY_FOLDER)
