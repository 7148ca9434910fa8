"""``raysweep run``: plan, run what is not done, show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.errors import brief
from raysweep.cli.options import Options
from raysweep.cli.validate import FileArgument, SetOption
from raysweep.config.components import Components
from raysweep.config.plan import Plan, open_plan
from raysweep.lazy import lazy
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.cli.display import Display
    from raysweep.results.store import ResultStore
    from raysweep.tune.launch import Outcome


def command(
    ctx: typer.Context,
    file: FileArgument,
    set_: SetOption = None,
    address: Annotated[str | None, typer.Option("--address", help="Join the Ray cluster at this address.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed trials again.")] = False,
    concurrent: Annotated[int, typer.Option("--concurrent", min=0, help="Trials at once; 0 = as many as fit.")] = 0,
    storage: Annotated[str, typer.Option("--storage", help="Folder or URI for results (s3://…, gs://…).")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs of these trials found.")] = False,
) -> None:
    """Run a sweep. Run the same command again and it goes on where it stopped; trials that are done are not repeated.

    Ctrl-C stops after the rounds in flight. Exit codes: 0 complete; 3 trials failed or are missing; 130 interrupted.

    Example:

        raysweep run demo
        raysweep run search_spaces/smoke.yaml --set data.size=20 --concurrent 1
    """
    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    if storage:
        where = storage if "://" in storage else str(workspace.resolve(storage))
        workspace = replace(workspace, storage=where)
    components = Components.installed()
    found = open_plan(file, workspace, set_ or (), components)
    lazy("raysweep.cli.preflight").check(found, workspace, components, address=address)
    launch = lazy("raysweep.tune.launch")
    store: ResultStore = lazy("raysweep.results.store").ResultStore(workspace.results(found.sweep.name))
    store.folder.check_writable()
    skipped = announce(found, store, fresh=fresh)
    options = launch.Options(address=address, retry=retry, fresh=fresh, concurrent=concurrent)
    outcome = launch.run_sweep(found, workspace, options=options, watcher=display(found, store, skipped))
    conclude(outcome, found.sweep.name, workspace)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def announce(found: Plan, store: ResultStore, *, fresh: bool) -> dict[str, int]:
    """Print what will be run; return the steps that trials have behind them."""
    states = {t.key: store.status(t.key) for t in found.trials}
    behind = {} if fresh else {k: s.step for k, s in states.items() if s.step}
    done = 0 if fresh else sum(s.state == "DONE" for s in states.values())
    arms = lazy("raysweep.cli.plan").counted(len({t.arm for t in found.trials}), "arm", "arms")
    print(f"sweep {found.sweep.name}: {lazy('raysweep.cli.plan').extent(found)}, {arms}; {done} trials done")
    for note in found.notes:
        print(f"note: {note}")
    return behind


def display(found: Plan, store: ResultStore, behind: dict[str, int]) -> Display:
    """Return the live display of *found*."""
    from rich.console import Console

    shown: Display = lazy("raysweep.cli.display").Display(
        {t.key: label(t.arm, t.point) for t in found.trials},
        {t.key: t.trial.protocol.rounds[-1] for t in found.trials},
        printer=lambda line: print(line, flush=True),
        folder=store.folder.local,
        console=Console(),
        finished=behind,
        passes={t.key: t.share for t in found.trials if t.share},
    )
    return shown


def label(arm: str, point: object) -> str:
    """Return ``memit+simie lam=10 seed=0``."""
    assert hasattr(point, "items")
    return " ".join([arm, *(f"{k.rpartition('.')[2]}={v}" for k, v in point.items())])


def conclude(outcome: Outcome, sweep: str, workspace: Workspace) -> None:
    """Print the table, where the results lie, and what is missing."""
    show, tables, render = lazy("raysweep.cli.show"), lazy("raysweep.results.tables"), lazy("raysweep.cli.render")
    print()
    print(show.text(tables.open_sweep(outcome.results, workspace), how=render.Format.TABLE))
    print(f"results: {outcome.results}  (Arrow dataset: */probes-*.parquet, trials.parquet)")
    for key, error in list(outcome.failed.items())[:10]:
        head, _, hint = brief(error).partition("\n")
        typer.echo(f"failed: {key}: {head}  (traceback in {outcome.results}/{key}/FAILED.json)", err=True)
        if hint:
            typer.echo(hint, err=True)
    if outcome.failed:
        typer.echo(f"{len(outcome.failed)} trials failed; mend the cause and add --retry to the same command", err=True)
    if outcome.interrupted:
        typer.echo("interrupted; run the same command again to go on", err=True)
    elif outcome.unfinished:
        typer.echo(f"{len(outcome.unfinished)} trials are missing; run the same command again", err=True)
