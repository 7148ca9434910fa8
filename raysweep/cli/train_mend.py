"""``raysweep train-mend``: train MEND's hypernetwork on a fold of records, in this process, resumable to the step."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from raysweep.cli.flags import model_spec, set_option
from raysweep.cli.options import workspace_of
from raysweep.config import hparams
from raysweep.config.overrides import Override, parse_overrides
from raysweep.config.places import Place
from raysweep.config.problems import from_validation
from raysweep.config.schema import ModelSpec
from raysweep.editors.mend.editor import Mend, MendConfig
from raysweep.errors import ProblemsError, SpecError
from raysweep.jsontypes import Json
from raysweep.lazy import lazy
from raysweep.workspace import Workspace, resolve_from_cwd

REPORT = 5.0  # seconds between two lines of progress


def command(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", help="The archive to write (FILE.safetensors, and FILE.json beside it).")
    ],
    model: Annotated[str, typer.Option("--model", help="Name, hub id, folder or GGUF file.")] = "embedded",
    data: Annotated[str, typer.Option("--data", help="Dataset of the training fold; default: the recipe's.")] = "",
    data_path: Annotated[str, typer.Option("--data-path", help="The dataset's file.")] = "",
    skip: Annotated[int | None, typer.Option("--skip", min=0, help="First record of the training fold.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=0, help="Records of the training fold; 0 = the rest.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        set_option("Lay a value over the recipe: train.lr=1e-4, rank=32 …"),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Torch threads.")] = 1,
) -> None:
    """Train a hypernetwork; run the same command again and it goes on where it stopped.

    The recipe is `hparams/mend/<model>.yaml`. Use the result as `editor: {name: mend, weights: {path: FILE}}`.

    Example:

        raysweep train-mend --model embedded --data world --skip 300 --size 230 --out mend.safetensors
    """
    workspace = workspace_of(ctx)
    spec = ModelSpec.model_validate(model_spec(model, workspace))
    path = resolve_from_cwd(data_path, shipped=True) if data_path else None
    fold = {"name": data.lower() or None, "path": path, "skip": skip, "size": size}
    config = recipe(spec, workspace, {k: v for k, v in fold.items() if v is not None}, set_ or ())
    target = Path(resolve_from_cwd(out))
    target = target if target.suffix == ".safetensors" else target.with_name(f"{target.name}.safetensors")
    scores = train(config, spec, workspace, target, threads=threads, report=Reporter(Console(stderr=True)))
    print(json.dumps({"file": str(target), **scores}, indent=1))


def recipe(
    model: ModelSpec, workspace: Workspace, fold: Mapping[str, Json], overrides: Sequence[str | Override]
) -> MendConfig:
    """Return the configuration to train with: the hyper-parameter file, with *fold* and *overrides* laid over it.

    Raises:
        ProblemsError: an override is not ``key=value``, a key is unknown or has two values, or a value does not fit.
        SpecError: there is no recipe.
    """
    defaults = hparams.find(Mend.name, model, workspace)
    if defaults is None:
        raise SpecError(
            f"no recipe for model '{model.name}'",
            hint=f"write hparams/{Mend.name}/{hparams.stem(model)}.yaml, with layers and a 'train:' section",
        )
    tree = copy.deepcopy(defaults.tree)
    # Where editing finds the trained network; here it is what is being made.
    tree.pop("weights", None)
    flags = {"name": "--data", "path": "--data-path", "skip": "--skip", "size": "--size"}
    stated = [Override(f"train.data.{key}", value, Place(f"{flags[key]} {value}")) for key, value in fold.items()]
    for one in parse_overrides([*stated, *overrides]):
        *above, last = one.key.split(".")
        here = tree
        # Sections that the recipe does not have are made on the way down.
        for part in above:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                message = f"{one.place.file}: '{part}' is no mapping"
                raise SpecError(message, hint="for example --set train.lr=1e-4")
        here[last] = one.value
    try:
        return MendConfig.model_validate({**tree, "train": tree.get("train") or {}})
    except ValidationError as error:
        where = Place(f"hparams/{Mend.name}/{hparams.stem(model)}.yaml")
        raise ProblemsError(from_validation(error, MendConfig, f"'{Mend.name}'", lambda path, key: where)) from error


def train(
    config: MendConfig,
    model: ModelSpec,
    workspace: Workspace,
    out: Path,
    *,
    threads: int,
    report: Callable[[Mapping[str, float]], None],
) -> dict[str, object]:
    """Train, or go on from ``FILE.resume``, and write the archive; return its scores and the seconds it took."""
    torch, training = lazy("torch"), lazy("raysweep.editors.mend.training")
    archive, datasets = lazy("raysweep.editors.mend.archive"), lazy("raysweep.data")
    assert config.train is not None
    fold = datasets.resolve(config.train.data, workspace)
    config = config.model_copy(update={"train": config.train.model_copy(update={"data": fold})})
    torch.set_num_threads(threads)
    lm = lazy("raysweep.models.sources.load").load(model, workspace)
    _, records = lazy("raysweep.studies.prompts").prompted(lm, datasets.open_dataset(fold, workspace), fold, model.name)
    trainer = training.Trainer(lm, config, records)
    # Beside the archive, so that two trainings never share one.
    paused = out.with_name(f"{out.name}.resume")
    if paused.is_file():
        tensors, meta = archive.unpack(paused)
        trainer.load(tensors, meta)
    saver = training.PeriodicSaver(trainer, lambda state: archive.pack(paused, *state))

    def progress(row: Mapping[str, float]) -> None:
        report({**row, "steps": trainer.recipe.steps})
        saver(row)

    began = time.perf_counter()
    try:
        trainer.run(progress=progress)
    except KeyboardInterrupt:
        archive.pack(paused, *trainer.state())
        raise
    tensors, meta = trainer.result()
    archive.write(out, tensors, {**meta, "model_name": model.name, "data": fold.model_dump(exclude={"path"})})
    # Only now: until the archive is whole on disk, the state is all there is.
    paused.unlink(missing_ok=True)
    return {**trainer.scores, "seconds": round(time.perf_counter() - began, 1)}


class Reporter:
    """Prints every validation, and a step now and then."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, 0.0

    def __call__(self, row: Mapping[str, float]) -> None:
        """Print *row* if it is a validation or some seconds have passed."""
        validated = "val_right" in row
        if not validated and time.monotonic() - self._last < REPORT:
            return
        self._last = time.monotonic()
        line = f"step {row['step']:.0f}/{row['steps']:.0f}  loss {row['loss']:.3f}"
        if validated:
            line += (
                f"  held out: edits {row['val_right']:.3f}, locality {row['val_same']:.3f}, loss {row['val_loss']:.3f}"
            )
        self._console.print(line, highlight=False, markup=False)
