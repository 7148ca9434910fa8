"""Plan and run a sweep from Python: a search space by name, by file, or as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config.components import Components
from raysweep.config.places import Source
from raysweep.config.plan import open_plan
from raysweep.config.plan import plan as plan_sweep
from raysweep.config.planned_trial import Plan
from raysweep.config.sweep import examine_sweep
from raysweep.config.sweep_schema import SweepSpec
from raysweep.errors import ProblemsError, SpecError
from raysweep.jsontypes import Json
from raysweep.lazy import lazy
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.results.outcome import SweepOutcome
    from raysweep.tune.launch import Backend
    from raysweep.tune.sweep_run import RunOptions
    from raysweep.tune.watcher import Watcher

Space = str | Path | SweepSpec | Mapping[str, Json]
"""A search space: its name or file, what ``load_search_space`` returned, or the tree that such a file would hold."""


def plan(
    space: Space,
    workspace: Workspace | None = None,
    components: Components | None = None,
    *,
    overrides: Iterable[str] = (),
) -> Plan:
    """Return every trial of a search space, with its key; nothing is loaded and nothing is run.

    Args:
        space: the search space.
        workspace: where hyper-parameters, data and models are found; None = the current folder (``Workspace.here``).
        components: tables to resolve names with; None = what is installed.
        overrides: texts ``key=value`` laid over it, as ``--set`` does.

    Raises:
        ProblemsError: every mistake in it, each with its place.

    >>> import raysweep
    >>> planned = raysweep.plan("smoke", overrides=["data.size=20"])
    >>> {trial.trial.data.size for trial in planned.trials}
    {20}
    """
    workspace = workspace or Workspace.here()
    if isinstance(space, str | Path):
        return open_plan(str(space), workspace, overrides, components)
    if isinstance(space, SweepSpec):
        # overrides may be a generator, which is true even where nothing comes out of it
        if [*overrides]:
            raise SpecError(
                "overrides are laid over a file or a mapping, not over what was read from one",
                hint="load_search_space(file, workspace, overrides)",
            )
        return plan_sweep(space, workspace, components)
    # a mapping has no file, so its mistakes are placed under these words
    spec, noted = examine_sweep(Source("search space", tree=dict(space)), (), overrides, workspace)
    if spec is None:
        raise ProblemsError(noted)
    return plan_sweep(spec, workspace, components, noted=noted)


def run_sweep(
    space: Plan | Space,
    workspace: Workspace | None = None,
    *,
    overrides: Iterable[str] = (),
    options: RunOptions | None = None,
    watcher: Watcher | None = None,
    backend: Backend = "ray",
) -> SweepOutcome:
    """Run what is not done yet of a plan or a search space; the same call again goes on where it stopped.

    Args:
        space: a plan, or a search space that is planned first.
        workspace: where results go; None = the current folder (``Workspace.here``).
        overrides: texts ``key=value`` laid over the search space.
        options: a cluster's address, ``retry``, ``fresh`` and the like (``raysweep.tune.sweep_run.RunOptions``).
        watcher: told about every round (``raysweep.tune.watcher.Watcher``); None = nothing is shown.
        backend: ``ray`` runs as many trials at once as fit; ``inline`` runs one after another in this process, without Ray. The
            numbers do not depend on it.

    Raises:
        ProblemsError: the search space has mistakes; nothing was run.
        BusyError: somebody else runs this sweep; nothing was changed.
        StoreError: the storage cannot be written; nothing was started.
        RunFailedError: no cluster answers, or Ray itself gave up twice. A trial that failed is no exception: the outcome names it.

    >>> import raysweep
    >>> base = {"data": {"name": "world", "size": 2}, "protocol": {"rounds": [2]}}
    >>> outcome = raysweep.run_sweep({"sweep": "tiny", "base": base, "arms": {"a": {"editor": "null"}}}, backend="inline")
    >>> len(outcome.done), outcome.failed
    (1, {})
    """
    workspace = workspace or Workspace.here()
    if isinstance(space, Plan):
        if [*overrides]:
            raise SpecError("overrides are laid over a search space, not over a plan", hint="plan(space, overrides=…)")
        planned = space
    else:
        planned = plan(space, workspace, Components.installed(fetch=True), overrides=overrides)
    # Imported only here: whoever plans should not wait for Ray, nor need it in working order.
    outcome: SweepOutcome = lazy("raysweep.tune.launch").run_sweep(
        planned,
        workspace,
        options=options or lazy("raysweep.tune.sweep_run").RunOptions(),
        watcher=watcher,
        backend=backend,
    )
    return outcome
