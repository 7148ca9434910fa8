"""Errors → text on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback

from raysweep.errors import ProblemsError, RaysweepError, RunFailedError
from raysweep.lazy import lazy
from raysweep.tune.stop_signals import TimeUp

OK, UNEXPECTED, BAD_INPUT, TRIALS_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = {
    OK: "everything asked for was done",
    UNEXPECTED: "something raysweep did not foresee, or `doctor` found a fault",
    BAD_INPUT: "wrong usage or bad input (a search space, a record, a dataset, a model …); nothing was run",
    TRIALS_FAILED: "trials failed, are missing or damaged; what finished is kept",
    INTERRUPTED: "interrupted; the same command again goes on",
}


def report(error: BaseException, *, debug: bool) -> int:
    """Print *error* to stderr, with its traceback if *debug*, and return the exit code."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, TimeUp):
        print("stopped by SIGUSR1, for the time limit; run the same command again to go on", file=sys.stderr)
        return TRIALS_FAILED
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; the same command again goes on", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, RaysweepError):
        # Lazily, since every command imports this module, and few end here.
        lazy("raysweep.cli.say").say(describe(error), err=True, hang=2)
        return TRIALS_FAILED if isinstance(error, RunFailedError) else BAD_INPUT
    print(f"unexpected {type(error).__name__}: {error}", file=sys.stderr)
    whose = _package_at_fault(error) or "raysweep"
    print(f"    this is a fault of {whose}; please report it with the output of --debug", file=sys.stderr)
    return UNEXPECTED


def _package_at_fault(error: BaseException) -> str:
    """Return the package with components of its own in whose code *error* arose, or that was running last; empty = none."""
    modules: dict[str, str] = {}
    for table in lazy("raysweep.installed").component_tables().values():
        modules |= table.modules()
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    running = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in reversed(frames)]
    return next((modules[name] for name in running if name in modules), "")


def describe(error: RaysweepError) -> str:
    """Return the message, with the place to look its code up."""
    codes = sorted({p.code for p in error.problems}) if isinstance(error, ProblemsError) else [error.code]
    text = str(error) if isinstance(error, ProblemsError) else f"error[{error.code}] {error}"
    return f"{text}\nSee docs/errors.md or `raysweep doctor --explain {codes[0]}`."
