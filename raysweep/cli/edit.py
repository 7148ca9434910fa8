"""``raysweep edit``: one lifelong run from flags, in this process, without a file and without Ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli import flags
from raysweep.cli.edit_space import EditFlags, keys_of_flags, search_space_of_flags
from raysweep.cli.errors import TRIALS_FAILED
from raysweep.cli.options import workspace_of
from raysweep.cli.run import announcement, display, statuses, summarise
from raysweep.cli.say import say
from raysweep.cli.validate import SetOption
from raysweep.config.components import Components
from raysweep.config.limits import LARGEST
from raysweep.config.places import Source
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.problems import problem
from raysweep.config.sweep import examine_sweep
from raysweep.errors import Problem, ProblemsError, SpecError
from raysweep.lazy import lazy
from raysweep.reports.standing import trial_labels
from raysweep.workspace import Workspace, resolve_from_cwd

if TYPE_CHECKING:
    from raysweep.results.outcome import SweepOutcome
    from raysweep.results.store import ResultStore


def command(
    ctx: typer.Context,
    editor: Annotated[
        str, typer.Option("--editor", help="ROME, MEMIT, FT-L, FT-M … (see `raysweep ls editors`).", show_default=False)
    ] = "",
    hparams: flags.HparamsOption = "",
    model: Annotated[str, typer.Option("--model", help="Name, hub id, folder or GGUF file.")] = "embedded",
    data: Annotated[str, typer.Option("--data", help="ZsRE, CounterFact, hallucination, world.")] = "world",
    data_path: Annotated[str, typer.Option("--data-path", help="The dataset's file.")] = "",
    simie: Annotated[bool, typer.Option("--simie", help="Wrap the editor in SimIE.")] = False,
    lam: Annotated[float, typer.Option("--lam", help="SimIE's λ (with --simie).")] = 10.0,
    init_model: Annotated[
        bool, typer.Option("--init-model", help="SimIE (with --simie) on the unedited weights.")
    ] = False,
    solver: Annotated[
        str, typer.Option("--solver", help="SimIE's back end (with --simie); default: the exact fast one.")
    ] = "",
    edits: Annotated[int, typer.Option("--edits", min=1, max=LARGEST, help="How many records to write.")] = 100,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=LARGEST, help="Records per call of the editor.")
    ] = 1,
    rounds: Annotated[str, typer.Option("--rounds", help="Measure at these steps: 0,10,100; default: five.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the order and of every draw.")] = 0,
    name: Annotated[str, typer.Option("--name", help="Of the results folder.")] = "edit",
    repair: Annotated[bool, typer.Option("--repair", help="Make trials again whose tables were damaged.")] = False,
    set_: SetOption = None,
) -> None:
    """Run one editor over a lifetime of records and show what it keeps. Equal flags continue, and are never run twice.

    Example:

        raysweep edit --editor ROME --simie --lam 10 --edits 20
        raysweep edit --hparams EasyEdit/hparams/MEMIT/gpt2-xl.yaml --model gpt2-xl --data ZsRE --data-path zsre.json
        raysweep edit --editor MEMIT --model gpt2-xl --data ZsRE --data-path zsre.json --simie --lam 10 --edits 100
    """
    workspace = workspace_of(ctx)
    path = resolve_from_cwd(data_path, shipped=True) if data_path else ""
    file, named = flags.hparams_file(hparams, editor)
    if not named:
        raise SpecError("--editor is missing", hint="raysweep ls editors; or --hparams FILE, a file with alg_name")
    edit_flags = EditFlags(
        name=name, editor=named, hparams=file, model=flags.model_spec(model, workspace), data=data, data_path=path, simie=simie,
        lam=lam, init_model=init_model, solver=solver, edits=edits, batch_size=batch_size, rounds=rounds, seed=seed,
    )  # fmt: skip
    _make(_planned(ctx, edit_flags, set_ or (), workspace), workspace, repair=repair)


def _make(planned: Plan, workspace: Workspace, *, repair: bool) -> None:
    """Make what is missing of *planned*, print the table, and say what is missing still; exit code 3 if anything is."""
    store: ResultStore = lazy("raysweep.results.store").ResultStore(workspace.results(planned.sweep.name))
    # Before the model is loaded, which takes longer than to find out.
    store.folder.check_writable()
    earlier = statuses(planned, store)
    watcher = display(planned, store, earlier, announcement(planned, earlier, store))
    # Whoever types the same flags again wants a failed trial tried again.
    options = lazy("raysweep.tune.sweep_run").RunOptions(retry=True, repair=repair)
    outcome: SweepOutcome = lazy("raysweep.tune.launch").run_sweep(
        planned, workspace, options=options, watcher=watcher, backend="inline"
    )
    summarise(lazy("raysweep.results.tables").open_results(outcome.results, workspace), outcome.results)
    reasons = outcome.missing
    missing = {t.key: reasons[t.key] for t in planned.trials if t.key in reasons}
    for line in lazy("raysweep.reports.standing").damage_lines(missing, trial_labels(planned.names)):
        say(line, err=True)
    if missing:
        raise typer.Exit(TRIALS_FAILED)


def _planned(ctx: typer.Context, edit_flags: EditFlags, overrides: Iterable[str], workspace: Workspace) -> Plan:
    """Return the plan of *edit_flags* with the texts of ``--set``, *overrides*, laid over it; this machine has what it takes.

    Raises:
        ProblemsError: everything that is wrong: what `run` would refuse, and flags that would have no effect.
    """
    tree, mistakes = search_space_of_flags(edit_flags)
    # A flag without an effect is refused rather than ignored: it is nearly always a forgotten --simie.
    idle: list[Problem] = []
    if not edit_flags.simie:
        ends = "is of SimIE, which is not asked for"
        idle = flags.without_effect(ctx, ("lam", "init_model", "solver"), ends, "add --simie")
    # Only what was written on the command line is laid over the tree again: a default must not meet a --set.
    stated = flags.overrides(ctx, keys_of_flags(tree))
    sweep, noted = examine_sweep(Source("flags", tree=dict(tree)), [*mistakes, *idle], [*stated, *overrides], workspace)
    if sweep is None:
        raise ProblemsError(noted)
    components = Components.installed(fetch=True)
    planned = plan(sweep, workspace, components, noted=[*noted, *_needs_ray(sweep.source)])
    # --edits and --rounds may contradict each other, or --set may move the rounds.
    last_rounds = {t.trial.protocol.rounds[-1] for t in planned.trials}
    early: list[Problem] = []
    if last_rounds != {edit_flags.edits}:
        ends = f"editing ends at the last round, {', '.join(map(str, sorted(last_rounds)))}"
        early = flags.without_effect(ctx, ["edits"], ends, "--edits, --rounds and --batch-size must agree")
    lazy("raysweep.cli.preflight").check(planned, workspace, components, noted=early)
    return planned


def _needs_ray(source: Source) -> list[Problem]:
    """Return a problem for each resource that was stated: there is one process, and no Ray to give it any."""
    resources = source.tree.get("resources")
    # What is no mapping is refused by who reads it.
    written = resources if isinstance(resources, dict) else {}
    hint = "write a search space, and raysweep run"
    return [
        problem(source.key(("resources", key)), f"resources.{key} has no effect on raysweep edit", hint)
        for key in written
        if key != "share"  # which the plan reads, not Ray
    ]
