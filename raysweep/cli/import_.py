"""``raysweep import``: result files of other programs become trials of a sweep, each under the protocol it was measured by."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import workspace_of
from raysweep.cli.run import summarise
from raysweep.cli.say import say
from raysweep.errors import NameUnknownError, SpecError, nearest
from raysweep.lazy import lazy
from raysweep.reports.prose import counted
from raysweep.results.store import ResultStore
from raysweep.results.theirs.files import READERS, runs_of
from raysweep.results.theirs.trials import plan_of, write
from raysweep.workspace import resolve_from_cwd


def command(
    ctx: typer.Context,
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help=f"{', '.join(READERS)}.", show_default=False)],
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Its result files.", show_default=False)],
    editor: Annotated[str, typer.Option("--editor", help="The method, where no file or folder says it.")] = "",
    model: Annotated[str, typer.Option("--model", help="The model, likewise.")] = "",
    data: Annotated[str, typer.Option("--data", help="The dataset, likewise.")] = "",
    name: Annotated[str, typer.Option("--name", help="Of the results folder.")] = "imported",
) -> None:
    """Take results of EasyEdit, SimIE, MEMIT or NAS in, as trials that stand beside ours without being mixed up with them.

    Each arm is named by how it was measured, and `compare` sets only values of one protocol against each other. Every file is
    read before anything is written. The same files again take the place of what was imported of them.

    Example:

        raysweep import easyedit results.json --editor ROME --model llama-2-7b --data zsre
        raysweep import simie llama-2-7b_MEMIT_N=100_Sequential=True_True_10.0_False.json
        raysweep import memit results/MEMIT/run_000/*.json
        raysweep import nas results/my_run/checkpoint_evals/after_*/results.jsonl --editor MEMIT
    """
    if program not in READERS:
        raise NameUnknownError(f"results of '{program}' are not read", hint=nearest(program, READERS))
    paths = [Path(resolve_from_cwd(file)) for file in files]
    runs = runs_of(program, list(dict.fromkeys(paths)), editor=editor, model=model, data=data)
    workspace = workspace_of(ctx)
    store = ResultStore(workspace.results(name))
    plan = store.plan()
    if not all(_is_imported(store, key) for key in store.keys()):  # noqa: SIM118 (not a dict)
        raise SpecError(f"'{name}' is a sweep of trials that were run here", hint="choose another --name")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    trials = [(run, write(run, store, now)) for run in runs]
    earlier = [entry.model_dump() for entry in plan.trials] if plan else []
    store.write_plan(plan_of(name, trials, earlier), "")
    opened = lazy("raysweep.results.tables").open_results(name, workspace)
    opened.write_trials()
    for run in runs:
        say(f"imported {counted(len(run.cases), 'record', 'records')} as '{run.arm}'")
    summarise(opened, workspace.results(name))


def _is_imported(store: ResultStore, key: str) -> bool:
    return "imported_from" in store.about(key).provenance
