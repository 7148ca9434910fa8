"""From a plan to finished trials: a fresh Tuner each time, over the trials our store does not call DONE."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raysweep.config.plan import Plan, PlannedTrial
from raysweep.config.schema import ResourceSpec, SweepSpec
from raysweep.errors import RunFailedError, SpecError, StoreError
from raysweep.results.proposals import PROPOSALS, ProposalFolder
from raysweep.results.ray_logs import RAY_FOLDER, TRIAL_KEY
from raysweep.results.store import SHARED, ResultStore, State
from raysweep.results.tables import Sweep
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

RESTARTS = 1  # how often the driver starts over after Ray itself gave up (an out-of-memory kill, a lost node)
EVERYWHERE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # JSON and CSV are passed explicitly; TensorBoard is left out
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOCAL_ONLY = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: everything listens on loopback
    "RAY_memory_monitor_refresh_ms": "0",  # its kill would end the whole run
}


class Watcher(Protocol):
    """Is told how a sweep goes (``raysweep.cli.display.Display`` is one)."""

    def connecting(self, address: str | None) -> None:
        """Ray is about to be started, or joined at *address*; that takes seconds."""

    def begin(self) -> None:
        """The trials are about to start."""

    def started(self, key: str) -> None:
        """A trial runs."""

    def round(self, key: str, result: Mapping[str, Any]) -> None:
        """A trial reached a round."""

    def lost(self, key: str, retried: bool) -> None:
        """A trial's process died."""

    def stopped(self, key: str) -> None:
        """A trial no longer runs."""

    def end(self) -> None:
        """No trial runs any more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, by our store: keys done, errors by key, keys without an end, and whether it was interrupted."""

    done: tuple[str, ...]
    failed: Mapping[str, str]
    unfinished: tuple[str, ...]
    interrupted: bool
    results: str

    @property
    def exit_code(self) -> int:
        """0 complete, 130 interrupted, 3 incomplete."""
        if self.interrupted:
            return 130
        return 3 if self.failed or self.unfinished else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: on which cluster, failed trials again or not, how many at once, old results forgotten or not.

    ``reuse`` lets a process serve many trials, which saves seconds per trial and changes no number.
    """

    address: str | None = None
    retry: bool = False
    fresh: bool = False
    concurrent: int = 0
    reuse: bool = True


def run_sweep(
    plan: Plan, workspace: Workspace, *, options: Options = Options(), watcher: Watcher | None = None
) -> Outcome:
    """Run what is not done yet of *plan*.

    Args:
        plan: the trials, and the sweep they belong to.
        workspace: where results go.
        options: see :class:`Options`.
        watcher: told about every round; None = nothing is shown.

    Raises:
        StoreError: the storage cannot be written; nothing was started.
        SpecError: no node can give a trial what it asks for.
        RunFailedError: Ray itself gave up twice.
    """
    sweep = plan.sweep
    store = ResultStore(workspace.results(sweep.name))
    store.folder.check_writable()
    table = {t.key: t for t in plan.trials}
    if options.fresh:
        shared = {f"{SHARED}/{t.share}-{t.trial.seed}" for t in plan.trials if t.share}
        kin = {f"{PROPOSALS}/{t.kin}" for t in plan.trials if t.kin}
        for key in (*table, RAY_FOLDER, *shared, *kin):
            store.forget(key)
    store.write_plan(plan.as_json(), sweep.source.text)
    interrupted = False
    for attempt in range(RESTARTS + 1):
        todo = pending(store, table, retry=options.retry and attempt == 0)
        if not todo:
            break
        for key in todo:
            store.reopen(key)
        if watcher is not None:
            watcher.connecting(options.address)
        try:
            with _ray(options.address):
                interrupted = _fit(store, todo, table, sweep, workspace, options, watcher)
            break
        except RuntimeError as error:
            if attempt == RESTARTS:
                raise RunFailedError(f"Ray gave up: {_first_line(error)}", hint="run the same command again") from error
            log.warning("Ray gave up (%s); going on with what is not done", _first_line(error))
        except KeyboardInterrupt:
            interrupted = True
            break
    return _outcome(store, table, interrupted)


def pending(store: ResultStore, keys: Iterable[str], *, retry: bool = False) -> list[str]:
    """Return the keys to run: not DONE or STOPPED, FAILED only with *retry*; those already begun come first."""
    skip = {State.DONE, State.STOPPED} | (set() if retry else {State.FAILED})
    states = {key: store.status(key).state for key in keys}
    todo = [key for key, state in states.items() if state not in skip]
    return sorted(todo, key=lambda key: states[key] is State.ABSENT)


def _outcome(store: ResultStore, table: Mapping[str, PlannedTrial], interrupted: bool) -> Outcome:
    found = {key: store.status(key) for key in table}
    for kin in {t.kin for t in table.values() if t.kin}:
        if all(found[t.key].state is State.DONE for t in table.values() if t.kin == kin):
            ProposalFolder(store.folder, kin).forget()
    for name in (PROPOSALS, SHARED):
        store.folder.drop_if_empty(name)
    Sweep(store).write_trials()
    ended = {State.DONE, State.FAILED, State.STOPPED}
    return Outcome(
        done=tuple(k for k, s in found.items() if s.state is State.DONE),
        failed={k: s.error for k, s in found.items() if s.state is State.FAILED},
        unfinished=tuple(k for k, s in found.items() if s.state not in ended),
        interrupted=interrupted and any(s.state not in ended for s in found.values()),
        results=store.folder.location,
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Start a Ray of our own on loopback, or join the one at *address*; leave signals as they were."""
    _set_environment(local=address is None)
    import ray

    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        if address is None:
            options |= {"include_dashboard": False, "object_store_memory": 200 << 20, "_temp_dir": scratch}
        try:
            start(ray, address or "local", options)
            for name in ("ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def start(ray: Any, address: str, options: Mapping[str, Any], attempts: int = 3) -> None:
    """Start or join Ray; a busy machine misses Ray's fixed 30 seconds easily, so a local start is tried again.

    Raises:
        RunFailedError: Ray did not start, or there is none at *address*.
    """
    attempts = attempts if address == "local" else 1
    for attempt in range(1, attempts + 1):
        try:
            ray.init(address=address, **options)
        except Exception as error:
            ray.shutdown()
            if attempt == attempts:
                busy = "the machine may be busy or short of memory: run the same command again later"
                there = f"is a cluster running at {address}? `ray status --address {address}` tells"
                hint = busy if address == "local" else there
                raise RunFailedError(f"Ray did not start: {_first_line(error)}", hint=hint) from error
        else:
            return


def _set_environment(*, local: bool) -> None:
    """Set what Ray reads when it is imported; a user's own settings stand, and so does a Ray imported earlier."""
    for key, value in EVERYWHERE.items():
        os.environ.setdefault(key, value)
    if local and "ray" not in sys.modules:
        for key, value in LOCAL_ONLY.items():
            os.environ.setdefault(key, value)
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def request(resources: ResourceSpec, available: Mapping[str, float], shards: int = 1) -> dict[str, float]:
    """Return what each of the *shards* processes of a trial asks Ray for, given the cluster's totals.

    Raises:
        SpecError: the cluster can never give it.
    """
    gpus = available.get("GPU", 0.0)
    gpu = (1.0 if gpus >= 1 else 0.0) if resources.gpu == "auto" else float(resources.gpu)
    asked = {"CPU": resources.cpu, "GPU": gpu, "memory": float(resources.memory)}
    for name, amount in asked.items():
        there = available.get(name, 0.0)
        if amount * shards > there:
            each = f"{amount:g}" if shards == 1 else f"{amount:g} for each of {shards} shards"
            raise SpecError(
                f"resources.{name.lower()} = {each}, but the cluster has {there:g}",
                hint="ask for less, or join a larger cluster with --address",
            )
    return {k: v for k, v in asked.items() if v}


def _fit(
    store: ResultStore, todo: Sequence[str], table: Mapping[str, PlannedTrial], sweep: SweepSpec, workspace: Workspace,
    options: Options, watcher: Watcher | None,
) -> bool:  # fmt: skip
    """Run one Ray session over the trials *todo* of *table*; return whether it was interrupted."""
    import ray
    from ray import tune
    from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

    from raysweep.tune.passes import InPasses, ray_config
    from raysweep.tune.progress import Progress
    from raysweep.tune.trainable import Trainable

    resources = sweep.resources
    have = ray.cluster_resources()
    one = request(resources, have)
    split = (
        [request(resources, have, resources.shards)] * resources.shards if any(t.apart for t in table.values()) else []
    )

    def bundles(config: Mapping[str, Any]) -> Any:
        """One process for a trial, or as many as there are shards where its edits may be computed apart."""
        return tune.PlacementGroupFactory(split if table[str(config[TRIAL_KEY])].apart else [one])

    bound = tune.with_parameters(Trainable, table=dict(table), workspace=workspace, sweep=sweep.name)
    session = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    callbacks: list[Any] = [JsonLoggerCallback(), CSVLoggerCallback()]
    if watcher is not None:
        callbacks.append(Progress(watcher))
    tuner = tune.Tuner(
        tune.with_resources(bound, bundles),
        tune_config=tune.TuneConfig(
            search_alg=InPasses(
                {key: table[key].share or key for key in todo}, {key: ray_config(table[key]) for key in todo}
            ),
            num_samples=len(todo),
            reuse_actors=options.reuse,
            max_concurrent_trials=options.concurrent or resources.concurrent or None,
            trial_dirname_creator=lambda t: str(t.config[TRIAL_KEY]),
            trial_name_creator=lambda t: str(t.config[TRIAL_KEY]),
        ),
        run_config=tune.RunConfig(
            name=session,
            storage_path=_ray_storage(store),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=resources.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    try:
        found = tuner.fit()
    finally:
        if watcher is not None:
            watcher.end()
    crashed = {str(r.config[TRIAL_KEY]): _first_line(r.error) for r in found if r.error is not None and r.config}
    for key, error in crashed.items():
        if store.status(key).state in (State.ABSENT, State.RUNNING):
            store.fail(key, step=store.status(key).step, error="ProcessDied", message=error)
    return bool(pending(store, table))


def _ray_storage(store: ResultStore) -> str:
    """Return where Ray keeps its experiment folders: beside our results."""
    local = store.folder.local
    if local is not None:
        return str(Path(local) / RAY_FOLDER)
    if "://" not in store.folder.location:
        raise StoreError(f"Ray cannot write to {store.folder.location}")
    return f"{store.folder.location}/{RAY_FOLDER}"
