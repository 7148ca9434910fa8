"""Whether this machine can give a sweep what it asks for: processors, accelerators, memory, disk. Asked before anything runs.

`validate`, `run` and `edit` ask it. Of a sweep that joins a cluster only what the driver needs is asked: what other machines
have is known to them only.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raysweep.config.components import Components
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.problems import problem
from raysweep.config.sweep_schema import ResourceSpec
from raysweep.errors import Problem, ProblemsError, SpecError, StoreError
from raysweep.lazy import lazy
from raysweep.reports.estimates import Room, amount, driver_memory, memory
from raysweep.reports.prose import counted
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

ELSEWHERE = "ask for less, or join a larger cluster: --address"
SPARE = 64 << 20  # bytes on disk for tables, logs and Ray's own files


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has; None = not known.

    Attributes:
        cpus: processors.
        memory: bytes.
        gpus: accelerators.
        free: bytes free where results go.
    """

    cpus: int | None
    memory: int | None
    gpus: int | None
    free: int | None


def this_machine(results: str) -> Machine:
    """Return what this machine has, and what is free where *results* will lie (a folder, or a URI)."""
    return Machine(os.cpu_count(), _memory(), _gpus(), None if "://" in results else _free(Path(results)))


def check(
    plan: Plan, workspace: Workspace, components: Components, *, address: str | None = None,
    noted: Iterable[Problem] = (),
) -> None:  # fmt: skip
    """Return if this machine has what *plan* asks for, or if it will run at *address*.

    Args:
        plan: what will be run.
        workspace: where models are found, and where results go.
        components: tables to resolve names with.
        address: a Ray cluster to run on, whose machines are asked when it is joined; None = a Ray of our own.
        noted: other mistakes, to be reported with what is lacking.

    Raises:
        ProblemsError: everything that is lacking, and *noted*.
    """
    problems = [*noted, *_hang_watch(plan, workspace)]
    # What a cluster's machines have is theirs to say, when Ray asks them.
    if address is None:
        results = workspace.results(plan.sweep.name)
        machine = this_machine(results)
        problems += [*_storage(results), *_resources(plan, machine), *_needs(plan, workspace, components, machine)]
    if problems:
        raise ProblemsError(dict.fromkeys(problems))
    # The driver runs on this machine wherever its trials do.
    _warn_of_driver(plan, this_machine(workspace.results(plan.sweep.name)).memory)


def _hang_watch(plan: Plan, workspace: Workspace) -> Iterator[Problem]:
    """Yield why trials that hang could not be found: where results lie on an object store there are no heartbeats."""
    if not plan.sweep.resources.hung_after:
        return  # asked before the import, which loads what plans and checks do without
    where = workspace.results_root
    try:
        lazy("raysweep.tune.hang_watch").check(plan.sweep.resources, where, local="://" not in where)
    except SpecError as error:
        # The same sentence, with the line of the file that it is about.
        yield problem(plan.sweep.source.value(("resources", "hung_after")), error.message, error.hint)


def _storage(results: str) -> Iterator[Problem]:
    """Yield why nothing can be written to *results*, a folder that need not be there yet; a URI is asked when it is used."""
    # The folder need not exist yet; the nearest parent that does decides whether it can be made.
    existing = (
        None if "://" in results else next((p for p in (Path(results), *Path(results).parents) if p.exists()), None)
    )
    if existing is not None and not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        why = "cannot be written" if existing.is_dir() else "is no folder"
        message = f"results belong into {results}, but {existing} {why}"
        yield Problem(
            code=StoreError.code, message=message, hint="--root, RAYSWEEP_ROOT or `run --storage` choose another place"
        )


def _resources(plan: Plan, machine: Machine) -> Iterator[Problem]:
    """Yield what ``resources`` asks for and nobody here has; each process of a trial gets as much."""
    requested = plan.sweep.resources
    # Shards are processes of their own, and each of them gets all of it.
    processes = requested.shards if any(t.can_propose for t in plan.trials) else 1
    # `auto` takes what is there, so it never lacks anything.
    gpu = 0.0 if requested.gpu == "auto" else float(requested.gpu)
    have = {
        "cpu": (requested.cpu, machine.cpus),
        "gpu": (gpu, machine.gpus),
        "memory": (requested.memory, machine.memory),
    }
    for name, (each, available) in have.items():
        if available is not None and each * processes > available:
            amount_text = f"{each:g}" if processes == 1 else f"{each:g} for each of {processes} shards"
            place = plan.sweep.source.value(("resources", name))
            yield problem(place, f"resources.{name} = {amount_text}, but this machine has {available:g}", ELSEWHERE)


def _needs(plan: Plan, workspace: Workspace, components: Components, machine: Machine) -> Iterator[Problem]:
    """Yield the arms of which one trial takes more memory or disk than there is."""
    # One trial of each arm and model: seeds and λ take the same memory.
    for planned in {(t.arm, t.trial.model): t for t in plan.trials}.values():
        shape = lazy("raysweep.models.sources.catalogue").sizes_of(planned.trial.model, workspace)
        # Of a model that is not on this machine yet nothing is known.
        if shape is None:
            continue
        needed = memory(planned.trial, shape, components)
        total, written = needed.total, SPARE + needed.written
        # With an accelerator the weights lie there, and this machine's memory says nothing.
        if machine.memory is not None and not machine.gpus and total > machine.memory:
            smaller = "a smaller model.dtype or model, fewer layers, or a larger machine: `run --address`"
            yield _lack(plan, planned, "memory", total, machine.memory, smaller)
        if machine.free is not None and written > machine.free:
            where = workspace.results_root
            yield _lack(
                plan, planned, f"disk below {where}", written, machine.free, "free some, or `run --storage` elsewhere"
            )


def _warn_of_driver(plan: Plan, available: int | None) -> None:
    """Warn where the driver over all trials of *plan* takes more bytes than this machine has."""
    count = len(plan.trials)
    needed = driver_memory(count)
    if available is not None and needed > available:
        log.warning(
            "the process that runs %s takes about %s of memory itself, this machine has %s",
            counted(count, "trial", "trials"), amount(needed), amount(available),
        )  # fmt: skip


def _lack(plan: Plan, planned: PlannedTrial, what: str, needed: int, available: int, hint: str) -> Problem:
    message = (
        f"a trial of arm '{planned.arm}' takes about {amount(needed)} of {what}, this machine has {amount(available)}"
    )
    return problem(plan.sweep.source.key(("arms", planned.arm)), message, hint)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on this system
        return None


def _gpus() -> int | None:
    """Return how many NVIDIA devices there are; None where another kind may be (or on another system than Linux)."""
    devices = Path("/dev")
    if sys.platform != "linux" or (devices / "kfd").exists() or (devices / "accel").exists():
        return None
    return len(list(devices.glob("nvidia[0-9]*")))


def room_for_edits(resources: ResourceSpec) -> Room | None:
    """Return what the edits of a trial have to fit into here: its share of the smallest GPU, or the memory reserved for it.

    None where this machine has no GPU for it, and nothing is reserved.
    """
    card = _gpu_memory() if resources.gpu != 0 and _gpus() else None
    if card is not None:
        share = 1.0 if resources.gpu == "auto" else min(1.0, float(resources.gpu))
        return Room(int(share * card), gpu=True)
    return Room(resources.memory, gpu=False) if resources.memory else None


def _gpu_memory() -> int | None:
    """Return the bytes of the smallest GPU here, as the driver's own command says; None where it says nothing."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout.split()
        # in units of 2^20 bytes
        return min(int(one) << 20 for one in said)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _free(folder: Path) -> int | None:
    try:
        existing = next(p for p in (folder, *folder.parents) if p.is_dir())
        return shutil.disk_usage(existing).free
    except (OSError, StopIteration):
        return None
