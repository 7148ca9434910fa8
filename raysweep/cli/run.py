"""``raysweep run``: plan, run what is not done, show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli import flags
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.validate import FileArgument, SetOption
from raysweep.config.components import Components
from raysweep.config.parts import Part
from raysweep.config.plan import open_plan
from raysweep.config.planned_trial import Plan
from raysweep.lazy import lazy
from raysweep.reports.plan_table import extent
from raysweep.reports.prose import counted
from raysweep.reports.standing import trial_labels
from raysweep.tune.stop_signals import noted_signals
from raysweep.workspace import Workspace, resolve_from_cwd

if TYPE_CHECKING:
    from raysweep.cli.display import Display
    from raysweep.results.outcome import SweepOutcome
    from raysweep.results.state import TrialStatus
    from raysweep.results.store import ResultStore
    from raysweep.results.tables import Sweep
    from raysweep.tune.cluster import RayChoice


ADDRESS_HELP = "Ray cluster to join: HOST:PORT, auto, local (its own). Left out: RAY_ADDRESS, else the Ray job this is, else local."

LOG_HELP = "Follow it in wandb, mlflow, trackio or tensorboard, too; repeatable."


def command(
    ctx: typer.Context,
    file: FileArgument,
    set_: SetOption = None,
    address: Annotated[str | None, typer.Option("--address", help=ADDRESS_HELP)] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed trials again.")] = False,
    concurrent: Annotated[int, typer.Option("--concurrent", min=0, help="Trials at once; 0 = as many as fit.")] = 0,
    storage: Annotated[str, typer.Option("--storage", help="Folder or URI for results (s3://…, gs://…).")] = "",
    hparams: flags.HparamsOption = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs of these trials found.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make trials again whose tables were damaged.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Run although somebody else runs this sweep.")] = False,
    log: Annotated[list[str] | None, typer.Option("--log", metavar="LOGGER", help=LOG_HELP, show_default=False)] = None,
    shard: Annotated[str, typer.Option("--shard", metavar="I/N", help="Run part I of N; others run theirs.")] = "",
) -> None:
    """Run a sweep. Run the same command again and it goes on where it stopped; trials that are done are not repeated.

    Ctrl-C stops after the rounds in flight. Exit codes: 0 complete; 3 trials failed or are missing; 130 interrupted.
    SIGUSR1, which schedulers send before a time limit, stops like Ctrl-C, with exit code 3.

    Example:

        raysweep run demo
        raysweep run search_spaces/smoke.yaml --set data.size=20 --concurrent 1
        raysweep run demo --shard 1/2
        raysweep run demo --log tensorboard --log wandb
    """
    ctx.with_resource(noted_signals())  # from here on, though nothing runs yet: a scheduler's warning is no crash
    workspace = workspace_of(ctx)
    loggers = tuple(dict.fromkeys(log or ()))
    lazy("raysweep.tune.loggers").check(loggers)
    ray_choice = _chosen_ray(address)
    if storage:
        workspace = replace(workspace, storage=resolve_from_cwd(storage))
    stated = flags.overrides(ctx, [("concurrent", "resources.concurrent", concurrent)])
    stated += flags.hparams_overrides(hparams, file, workspace)
    components = Components.installed(fetch=True)
    planned = open_plan(file, workspace, [*stated, *(set_ or ())], components)
    part = Part.parse(shard) if shard else None
    _refuse_fresh_parts(ctx, part)
    shown = part.of(planned) if part else planned
    lazy("raysweep.cli.preflight").check(shown, workspace, components, address=ray_choice.address)
    launch, sweep_run = lazy("raysweep.tune.launch"), lazy("raysweep.tune.sweep_run")
    store: ResultStore = lazy("raysweep.results.store").ResultStore(workspace.results(planned.sweep.name))
    # Before Ray starts, which takes seconds: a full or read-only disk is known now.
    store.folder.check_writable()
    # With --fresh nothing of earlier runs counts, though it is still there.
    earlier = {} if fresh else statuses(shown, store)
    of = [f"this is part {part} of {counted(len(planned.trials), 'trial', 'trials')}"] if part else []
    for line in [*announcement(shown, earlier, store), *of]:
        say(line)
    options = sweep_run.RunOptions(
        address=ray_choice.address or "local", retry=retry, fresh=fresh, concurrent=concurrent,
        repair=repair, anyway=anyway, part=part, log=loggers,
    )  # fmt: skip
    outcome = launch.run_sweep(planned, workspace, options=options, watcher=display(shown, store, earlier))
    conclude(outcome, planned, workspace)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _chosen_ray(address: str | None) -> RayChoice:
    choice: RayChoice = lazy("raysweep.tune.cluster").choose(address)
    # Said first of all: a sweep that joins a cluster nobody named on the command line must not do so silently.
    if choice.reason:
        say(f"cluster: joining Ray at {choice.address}, {choice.reason}")
    return choice


def _refuse_fresh_parts(ctx: typer.Context, part: Part | None) -> None:
    """Refuse ``--fresh`` for a part: every other one, and this one when it is run again, would find its own work gone."""
    together = "with --shard, --fresh would forget what this part did before it was run again"
    flags.refuse(flags.without_effect(ctx, ["fresh"] if part else [], together, "run --fresh without --shard first"))


def statuses(planned: Plan, store: ResultStore) -> dict[str, TrialStatus]:
    """Return where each trial of *planned* stands, by key."""
    table = {t.key: t for t in planned.trials}
    found: dict[str, TrialStatus] = lazy("raysweep.tune.pending").trial_states(store, table, verify=False)
    return found


def announcement(planned: Plan, earlier: Mapping[str, TrialStatus], store: ResultStore) -> list[str]:
    """Return the lines that say what will be run, where *earlier* runs left trials in these states."""
    finished = [key for key, status in earlier.items() if status.state == "DONE"]
    done = len(finished)
    arms = counted(len({n.arm for n in planned.names}), "arm", "arms")
    first = f"sweep {planned.sweep.name}: {extent(planned)}, {arms}; {done} trials done"
    # A finished trial is not run again for the sake of what it did not keep; whoever asks for it is told.
    asked = {t.key for t in planned.trials if t.trial.protocol.keep == "edited"}
    bare = lazy("raysweep.results.edited").without_edited(store.folder, (key for key in finished if key in asked))
    count = counted(len(bare), "finished trial has", "finished trials have")
    unkept = [f"{count} kept no edited model; `raysweep run … --fresh` makes them again"] if bare else []
    return [first, *(f"note: {note}" for note in (*planned.notes, *unkept))]


def display(
    planned: Plan, store: ResultStore, earlier: Mapping[str, TrialStatus], opening: Sequence[str] = ()
) -> Display:
    """Return the live display of *planned*.

    Args:
        planned: what will be run.
        store: where its results go.
        earlier: where earlier runs left the trials.
        opening: lines to print when the sweep is this process's.
    """
    from rich.console import Console

    live: Display = lazy("raysweep.cli.display").Display(
        trial_labels(planned.names),
        {t.key: t.trial.protocol.rounds[-1] for t in planned.trials},
        printer=say,
        folder=store.folder.local,
        console=Console(),
        finished={key: status.step for key, status in earlier.items() if status.step},
        edit_groups={t.key: t.edit_key for t in planned.trials if t.edit_key},
        opening=opening,
    )
    return live


def summarise(sweep: Sweep, results: str) -> None:
    """Print the table of a sweep and where its *results* lie; say on standard error what is not finite."""
    views, notes = lazy("raysweep.reports.views"), lazy("raysweep.reports.notes")
    trials = views.trial_views(sweep)
    print()
    how, width = lazy("raysweep.reports.render").Format.TABLE, lazy("raysweep.reports.fit").terminal_width()
    print(lazy("raysweep.reports.sweep_table").text(sweep, how=how, trials=trials, width=width))
    say(f"results: {results}  (Arrow dataset: */probes-*.parquet, trials.parquet)")
    for note in notes.about_intervals(views.rows_with_gaps(trials)):
        say(f"note: {note}")
    for note in notes.non_finite(trials):
        say(f"warning: {note}", err=True)


def conclude(outcome: SweepOutcome, plan: Plan, workspace: Workspace) -> None:
    """Print the table, where the results lie, what is missing and what is no number."""
    # Where the folder is gone and nothing was made, there is no table to open.
    if not (outcome.lost and len(outcome.absent) == len(plan.trials)):
        summarise(lazy("raysweep.results.tables").open_results(outcome.results, workspace), outcome.results)
    # The first arm of a trial that stands at several.
    arms: dict[str, str] = {}
    for name in plan.names:
        arms.setdefault(name.key, name.arm)
    for line in lazy("raysweep.reports.standing").missing_lines(outcome, trial_labels(plan.names), arms):
        say(line, err=True)
