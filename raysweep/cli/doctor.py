"""``raysweep doctor``: is everything there, and if not, what mends it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.docs import explain as explained
from raysweep.cli.errors import UNEXPECTED
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.errors import PluginError, SpecError
from raysweep.installed import component_tables
from raysweep.lazy import lazy
from raysweep.metrics import PLUGINS, every_metric
from raysweep.tune import cluster
from raysweep.workspace import Workspace

REQUIRED = (
    "ray",
    "torch",
    "transformers",
    "numpy",
    "pyarrow",
    "typer",
    "pydantic",
    "ruamel.yaml",
    "rich",
    "safetensors",
)
OPTIONAL = {
    "gguf": "gguf",
    "accelerate": "gguf",
    "datasets": "datasets",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}  # package → extra
MIN_FREE = 2 * 2**30  # bytes: snapshots, artifacts and Ray's spill need room


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it looked at, what it found, and what to do if that is a fault."""

    what: str
    result: str
    good: bool = True
    cure: str = ""


def command(
    ctx: typer.Context,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CODE", help="Explain an error code.", show_default=False)
    ] = None,
) -> None:
    """Check Python, packages, device, disk and folders; print what mends each fault. Exit code 1 if there is one.

    Example:

        raysweep doctor
        raysweep doctor --explain E-NAME
    """
    if explain is not None:
        say(explained(explain))
        return
    findings = list(check(workspace_of(ctx)))
    for one in findings:
        say(f"{'ok  ' if one.good else 'FAIL'}  {one.what:<14} {one.result}", hang=21)
        if one.cure:
            say(f"      {'':<14} {one.cure}", hang=0)
    faults = sum(not one.good for one in findings)
    print(f"{faults} fault{'' if faults == 1 else 's'}" if faults else "all good")
    if faults:
        raise typer.Exit(UNEXPECTED)


def check(workspace: Workspace, find_version: Callable[[str], str] = version) -> Iterator[Finding]:
    """Yield every finding; *find_version* tells a package's version or raises ``PackageNotFoundError``."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", python, sys.version_info >= (3, 11), "" if sys.version_info >= (3, 11) else "use 3.11+")
    for package in REQUIRED:
        yield _package(package, find_version, f"pip install {package}", needed=True)
    for package, extra in OPTIONAL.items():
        yield _package(package, find_version, f"optional: pip install 'raysweep[{extra}]'", needed=False)
    yield _device()
    yield _cpus()
    yield _ray(find_version)
    yield from _folders(workspace)
    yield _share(workspace)
    yield from _plugins()


def _package(package: str, find_version: Callable[[str], str], cure: str, *, needed: bool) -> Finding:
    try:
        return Finding(package, find_version(package))
    except PackageNotFoundError:
        return Finding(package, "not installed", not needed, cure)


def _device() -> Finding:
    try:
        # Imported, not looked up: a torch may be installed and not load, for a library that is missing.
        importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding("device", f"torch does not load: {error}", False, "reinstall torch for this machine")
    torch, runtime = lazy("torch"), lazy("raysweep.runtime")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding(
            "device", f"{len(names)} × {names[0]}, driver {runtime.driver() or 'unknown'}, {runtime.torch_build()}"
        )
    # A driver without a GPU that torch sees is a mistake more often than not, but the CPU may be meant.
    cure = runtime.why_unseen() if runtime.driver() else ""
    return Finding("device", "CPU only (trials get no GPU)", cure=cure)


def _cpus() -> Finding:
    # In a container or under a scheduler fewer than the machine has.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("cpu", f"{count} usable")


def _ray(find_version: Callable[[str], str]) -> Finding:
    """Return in which Ray a sweep would run, who could reach it, and whether it asks for a token."""
    try:
        choice, ray = cluster.choose(None), find_version("ray")
    except SpecError as error:
        return Finding("ray runs", error.message, False, error.hint or "")
    except PackageNotFoundError:
        return Finding("ray runs", "not installed", False, "pip install ray")
    own = choice.address is None
    token = cluster.uses_token(os.environ, Path.home(), ray, own=own)
    authentication = f"token authentication {'on' if token else 'off'}"
    cure = "" if token else "RAY_AUTH_MODE=token, here and on every node: docs/cluster.md, Who can reach it"
    if not own:
        return Finding("ray runs", f"joins {choice.address}, {choice.reason}; {authentication} here", cure=cure)
    where = "on loopback" if cluster.on_loopback(os.environ) else f"on every address ({cluster.LOOPBACK} is set)"
    return Finding("ray runs", f"its own on this machine, {where}; {authentication}", cure=cure)


def _folders(workspace: Workspace) -> Iterator[Finding]:
    for what, folder in (
        ("root", workspace.root),
        ("results", Path(workspace.results_root)),
        ("tmp", Path(tempfile.gettempdir())),
    ):
        if what == "results" and "://" in workspace.results_root:
            yield Finding(what, f"{workspace.results_root} (remote; checked when a sweep starts)")
        else:
            yield _folder(what, folder)


def _folder(what: str, folder: Path) -> Finding:
    """Return whether *folder*, or what would hold it, can be written to and has room."""
    # The folder is made when it is needed; until then its nearest parent answers for it.
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        # By writing: permissions do not know of read-only mounts and full disks.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        cure = f"make {existing} writable, or choose another folder with --root or RAYSWEEP_ROOT"
        return Finding(what, f"{folder}: cannot write ({error.strerror or error})", False, cure)
    free = shutil.disk_usage(existing).free
    roomy = free >= MIN_FREE
    cure = "" if roomy else f"free some space: at least {MIN_FREE / 2**30:.0f} GiB are wanted"
    return Finding(what, f"{folder}: writable, {free / 2**30:.1f} GiB free", roomy, cure)


def _share(workspace: Workspace) -> Finding:
    lost = [name for name in ("search_spaces", "hparams", "data") if not (workspace.share / name).is_dir()]
    cure = "reinstall raysweep" if lost else ""
    return Finding("share", f"{workspace.share}{': lacks ' + ', '.join(lost) if lost else ''}", not lost, cure)


def _plugins() -> Iterator[Finding]:
    """Yield what other packages add to the tables of components, and each part of it that cannot be used."""
    known: set[str] = set()
    faults: list[PluginError] = []
    for table in component_tables().values():
        known |= set(table.packages().values())
        faults += (every_metric()[1] if table is PLUGINS else table.faults()).values()
    yield Finding("plug-ins", ", ".join(sorted(known)) or "none")
    for fault in faults:
        yield Finding("plug-in", fault.message, False, fault.hint)
