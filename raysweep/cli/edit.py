"""``raysweep edit``: one lifelong run from flags, in this process, without a file and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysweep.cli import flags
from raysweep.cli.errors import TRIALS_FAILED
from raysweep.cli.options import workspace_of
from raysweep.cli.run import announcement, display, statuses, summarise
from raysweep.cli.say import say
from raysweep.cli.validate import SetOption
from raysweep.config.components import Components
from raysweep.config.limits import LARGEST
from raysweep.config.places import Place, Source
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.problems import from_error, problem
from raysweep.config.sweep import examine_sweep
from raysweep.errors import Problem, ProblemsError, SpecError
from raysweep.lazy import lazy
from raysweep.reports.standing import trial_labels
from raysweep.workspace import Workspace, resolve_from_cwd

if TYPE_CHECKING:
    from raysweep.results.outcome import SweepOutcome
    from raysweep.results.store import ResultStore

# The reference's names for one editor with one of its objectives.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ft-l": ("ft", {"objective": "prompt_last"}),
    "ft-m": ("ft", {"objective": "target_new"}),
}


def command(
    ctx: typer.Context,
    editor: Annotated[str, typer.Option("--editor", help="ROME, MEMIT, FT-L, FT-M … (see `raysweep ls editors`).")],
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
        raysweep edit --editor MEMIT --model gpt2-xl --data ZsRE --data-path zsre.json --simie --lam 10 --edits 100
    """
    workspace = workspace_of(ctx)
    steps, mistakes = _steps(rounds, edits, batch_size)
    arm_name, arm = _arm(editor, {"lam": lam, "init_model": init_model, "solver": solver} if simie else None)
    path = {"path": resolve_from_cwd(data_path, shipped=True)} if data_path else {}
    tree = {
        "sweep": name,
        "base": {
            "model": flags.model_spec(model, workspace),
            "data": {"name": data.lower(), "size": edits, **path},
            "protocol": {"batch_size": batch_size if edits % batch_size == 0 else 1, "rounds": steps},
            "seed": seed,
        },
        "arms": {arm_name: arm},
    }
    _make(_planned(ctx, tree, arm_name, set_ or (), workspace, mistakes), workspace, repair=repair)


def _steps(rounds: str, edits: int, batch_size: int) -> tuple[list[int], list[Problem]]:
    """Return the steps to measure at, and what is wrong with the flags they follow from.

    With a mistake the steps are such that the rest of the flags can be checked, as for single records.
    """
    mistakes = []
    # Noted, and the rest of the flags is checked as if records were written one by one.
    if edits % batch_size:
        below, above = edits - edits % batch_size, edits - edits % batch_size + batch_size
        near = " or ".join(f"--edits {number}" for number in (below, above) if number)
        message = f"--edits {edits} is no multiple of --batch-size {batch_size}; every batch is whole"
        mistakes.append(Problem(code=SpecError.code, message=message, hint=near))
        batch_size = 1
    try:
        return rounds_of(rounds, edits, batch_size), mistakes
    except SpecError as error:
        return rounds_of("", edits, batch_size), [*mistakes, from_error(error, Place(""))]


def _arm(editor: str, simie: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return the name and the section of the one arm; *simie* holds the flags of SimIE, if it is asked for."""
    kind, config = ALIASES.get(editor.lower(), (editor.lower(), {}))
    arm: dict[str, Any] = {"editor": {"name": kind, **config}}
    if simie is None:
        return kind, arm
    backend = {"backend": simie["solver"]} if simie["solver"] else {}
    mode = "init" if simie["init_model"] else "sequential"
    arm["wrap"] = {"name": "simie", "lam": simie["lam"], "mode": mode, **backend}
    return f"{kind}+simie", arm


def _make(planned: Plan, workspace: Workspace, *, repair: bool) -> None:
    """Make what is missing of *planned*, print the table, and say what is missing still; exit code 3 if anything is."""
    store: ResultStore = lazy("raysweep.results.store").ResultStore(workspace.results(planned.sweep.name))
    store.folder.check_writable()
    earlier = statuses(planned, store)
    watcher = display(planned, store, earlier, announcement(planned, earlier))
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


def _planned(
    ctx: typer.Context, tree: Mapping[str, Any], arm: str, overrides: Iterable[str], workspace: Workspace,
    mistakes: Iterable[Problem],
) -> Plan:  # fmt: skip
    """Return the plan of *tree* with what was stated on the command line laid over it; this machine has what it takes.

    Args:
        ctx: of the command.
        tree: the search space.
        arm: its one arm.
        overrides: the texts of ``--set``.
        workspace: where hyper-parameters, data and models are found, and where results go.
        mistakes: what is wrong with the flags, to be reported with everything else.

    Raises:
        ProblemsError: everything that is wrong: what `run` would refuse, and flags that would have no effect.
    """
    ends = "is of SimIE, which is not asked for"
    # A flag without an effect is refused rather than ignored: it is nearly always a forgotten --simie.
    idle = (
        [] if ctx.params["simie"] else flags.without_effect(ctx, ("lam", "init_model", "solver"), ends, "add --simie")
    )
    stated = flags.overrides(ctx, _stated(tree, arm))
    sweep, noted = examine_sweep(Source("flags", tree=dict(tree)), [*mistakes, *idle], [*stated, *overrides])
    if sweep is None:
        raise ProblemsError(noted)
    components = Components.installed(fetch=True)
    planned = plan(sweep, workspace, components, noted=[*noted, *_needs_ray(sweep.source)])
    # --edits and --rounds may contradict each other, or --set may move the rounds.
    last = {t.trial.protocol.rounds[-1] for t in planned.trials}
    early: list[Problem] = []
    if last != {ctx.params["edits"]}:
        ends = f"editing ends at the last round, {', '.join(map(str, sorted(last)))}"
        early = flags.without_effect(ctx, ["edits"], ends, "--edits, --rounds and --batch-size must agree")
    lazy("raysweep.cli.preflight").check(planned, workspace, components, noted=early)
    return planned


def _stated(tree: Mapping[str, Any], arm: str) -> Iterator[flags.Stated]:
    """Yield each flag with the key that it sets in *tree*."""
    base, section = tree["base"], tree["arms"][arm]
    yield from (("model", f"model.{key}", value) for key, value in base["model"].items())
    yield from (("editor", f"arms.{arm}.editor.{key}", value) for key, value in section["editor"].items())
    yield "data", "data.name", base["data"]["name"]
    yield "data_path", "data.path", base["data"].get("path", "")
    yield "edits", "data.size", base["data"]["size"]
    yield "batch_size", "protocol.batch_size", base["protocol"]["batch_size"]
    yield "rounds", "protocol.rounds", base["protocol"]["rounds"]
    yield "seed", "seed", base["seed"]
    yield "name", "sweep", tree["sweep"]
    wrap = section.get("wrap", {})
    for name, key in (("simie", "name"), ("lam", "lam"), ("init_model", "mode"), ("solver", "backend")):
        if key in wrap:
            yield name, f"arms.{arm}.wrap.simie.{key}", wrap[key]


def _needs_ray(source: Source) -> list[Problem]:
    """Return a problem for each resource that was stated: there is one process, and no Ray to give it any."""
    resources = source.tree.get("resources")
    written = resources if isinstance(resources, dict) else {}  # what is no mapping is refused by who reads it
    hint = "write a search space, and raysweep run"
    return [
        problem(source.key(("resources", key)), f"resources.{key} has no effect on raysweep edit", hint)
        for key in written
        if key not in ("share",)
    ]


def rounds_of(text: str, edits: int, batch_size: int) -> list[int]:
    """Return the steps to measure at: those given, or 0 and up to five more, spread evenly.

    Raises:
        SpecError: *text* is no list of numbers.

    >>> rounds_of("", 100, 1), rounds_of("0,10,100", 100, 1)
    ([0, 20, 40, 60, 80, 100], [0, 10, 100])
    """
    if text:
        try:
            return [int(part) for part in text.replace(" ", "").split(",")]
        except ValueError as error:
            raise SpecError(f"--rounds is a list of steps such as 0,10,100; got {text!r}") from error
    calls = max(edits // batch_size, 1)
    steps = {round(calls * part / 5) * batch_size for part in range(1, 6)}
    return sorted({0, *(s for s in steps if s > 0)})
