"""Starting a Ray of our own, or joining a cluster's, and leaving this process as it was afterwards."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType

from raysweep.errors import RunFailedError
from raysweep.lazy import lazy
from raysweep.tune.cluster import LOOPBACK
from raysweep.tune.scratch import scratch_folder

log = logging.getLogger(__name__)
runtime = lazy("raysweep.runtime")  # it imports torch

STATE_PERIOD = "TUNE_GLOBAL_CHECKPOINT_S"  # seconds between two writings of Tune's state
EVERYWHERE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # JSON and CSV are passed explicitly; TensorBoard is left out
    "RAY_USAGE_STATS_ENABLED": "0",
    STATE_PERIOD: "5",
    # Else a worker runs in its trial's folder, and relative paths in a search space lead elsewhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # An older Ray hides every accelerator from a process that asks for none unless told this.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOCAL_ONLY = {
    "RAY_AUTH_MODE": "token",
    "RAY_memory_monitor_refresh_ms": "0",  # its kill would end the whole run
}


@contextmanager
def running_ray(address: str | None) -> Iterator[None]:
    """Start a Ray of our own on loopback, or join the one at *address*; leave signals as they were.

    Args:
        address: ``host:port`` or ``auto``; None = a Ray of our own.

    Raises:
        RunFailedError: Ray did not start, or there is none at *address*.
    """
    set_environment(local=address is None)
    with loopback_only(local=address is None):
        import ray

    if ray.is_initialized():
        yield
        return
    # Ray and Tune install handlers and leave them there.
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    options: dict[str, object] = {"log_to_driver": False, "logging_level": "error"}
    with ExitStack() as stack:
        if address is None:
            scratch = stack.enter_context(scratch_folder())
            options |= {"include_dashboard": False, "object_store_memory": 200 << 20, "_temp_dir": str(scratch)}
        try:
            # One's own Ray is started afresh, never the one that RAY_ADDRESS names, unless asked for.
            stack.enter_context(silent_nodes(ray))
            with loopback_only(local=address is None):
                start(ray, address or "local", options)
                if address is None:
                    _withdraw_unseen_gpus(ray, options)
            for name in ("ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            # Tune stops gracefully on SIGUSR1; while no Tuner runs, a KeyboardInterrupt does
            signal.signal(signal.SIGUSR1, signal.default_int_handler)
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
            yield
        finally:
            ray.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


def start(ray: ModuleType, address: str, options: Mapping[str, object], attempts: int = 3) -> None:
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
                no_answer = f"is a cluster running at {address}? `ray status --address {address}` tells"
                hint = busy if address == "local" else no_answer
                raise RunFailedError(f"Ray did not start: {first_line(error)}", hint=hint) from error
        else:
            return


def _withdraw_unseen_gpus(ray: ModuleType, options: Mapping[str, object]) -> None:
    """Start our own Ray again where it offers accelerators that torch does not see: trials given one would run on the CPU."""
    offered = ray.cluster_resources().get("GPU", 0)
    # torch takes seconds to import, and most machines without accelerators are spared that.
    if offered and (seen := runtime.visible_gpus()) < offered:
        log.warning("Ray finds %g GPU here, torch %d: %s", offered, seen, runtime.why_unseen())
        ray.shutdown()
        start(ray, "local", {**options, "num_gpus": seen})


@contextmanager
def silent_nodes(ray: ModuleType) -> Iterator[None]:
    """Keep what Ray tells of its nodes out of our output while the block runs; our log has it, at level DEBUG.

    Where a node dies, another process publishes dozens of lines of that node's state, and ``log_to_driver=False`` does not keep
    this process from printing them. Our own lines name the trials that were lost.
    """
    # Private, so another Ray may have no such function; then its lines are printed as before.
    worker = ray._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    if before is None:
        yield
        return

    def note(data: Mapping[str, Sequence[str]], *rest: object, **more: object) -> None:
        for line in data.get("lines", ()):
            log.debug("Ray: %s", line)

    worker.print_to_stdstream = note
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextmanager
def loopback_only(*, local: bool) -> Iterator[None]:
    """Let the Ray that is imported or started in this block listen on loopback alone, where it is our own.

    A user's own setting stands, and so does a Ray that was imported as one that may have many nodes.
    """
    ray = sys.modules.get("ray")
    imported_for_many = ray is not None and bool(ray._private.ray_constants.ENABLE_RAY_CLUSTER)
    if not local or LOOPBACK in os.environ or imported_for_many:
        yield
        return
    os.environ[LOOPBACK] = "0"
    try:
        yield
    finally:
        del os.environ[LOOPBACK]


def set_environment(*, local: bool) -> None:
    """Set what Ray reads when it is imported; a user's own settings stand, and so does a Ray imported earlier."""
    for key, value in EVERYWHERE.items():
        os.environ.setdefault(key, value)
    # Ray reads these when it is imported; later they have no effect.
    if local and "ray" not in sys.modules:
        for key, value in LOCAL_ONLY.items():
            os.environ.setdefault(key, value)
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def first_line(error: BaseException) -> str:
    """Return the first line of what *error* says, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
