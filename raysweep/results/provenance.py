"""Where a trial's numbers come from: code, versions, machine. What differs between equal runs is kept apart."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raysweep import __version__
from raysweep.config.schema import TrialSpec
from raysweep.lazy import lazy

runtime = lazy("raysweep.runtime")  # it imports torch


def provenance(trial: TrialSpec) -> dict[str, dict[str, object]]:
    """Return ``{"run": …, "session": …}``: what equal runs share, and what is this process's own (pid, host, time)."""
    # What a trial that goes on compares with its first session (`ResultStore.begin`): no time and no process belongs
    # here.
    sha, dirty = git_state()
    run: dict[str, object] = {
        "git_sha": sha,
        "git_dirty": dirty,
        "raysweep": __version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "transformers", "tokenizers", "numpy", "ray")},
        "device": device_name(),
        "cpu": cpu_name(),
        "threads": trial.threads,
        "model_digest": trial.model.digest,
        "data_digest": trial.data.digest,
    }
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"run": run, "session": {"host": socket.gethostname(), "pid": os.getpid(), "began": began}}


@cache
def installed(package: str) -> str | None:
    """Return the installed version of *package*, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Return the commit of this code and whether the checkout is dirty; (None, None) outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        sha = _git(root, "rev-parse", "HEAD")
        # Dirty means that numbers may be other ones: a changed page of the manual does not count.
        return sha, bool(
            _git(root, "status", "--porcelain", "--untracked-files=no", "--", "raysweep", "hparams", "data")
        )
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    # Many workers ask at once, so git must not take its lock on the index to refresh it.
    command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


@cache
def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def device_name() -> str:
    """Return the accelerator's name with its driver and torch's build, or ``cpu``."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"{torch.cuda.get_device_name(0)} (driver {runtime.driver() or 'unknown'}, {runtime.torch_build()})"
