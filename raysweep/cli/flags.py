"""Flags that say what ``--set`` can say, too: both are laid over the same tree, so neither can hide the other unseen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from raysweep.config.load import read
from raysweep.config.overrides import Override
from raysweep.config.places import Place
from raysweep.config.problems import problem
from raysweep.config.sweep import find_file
from raysweep.config.theirs import reading as theirs
from raysweep.errors import Problem, ProblemsError, SpecError
from raysweep.jsontypes import Json, mapping_of
from raysweep.library.models import model_section
from raysweep.workspace import Workspace, resolve_from_cwd

Stated = tuple[str, str, Json]  # a parameter's name, the dotted key that it sets, the value


def set_option(about: str) -> OptionInfo:
    """Return ``--set KEY=VALUE``; *about* says over what, and which keys there are.

    It stands in an ``Annotated`` type, as ``Annotated[list[str] | None, set_option("…")]``.
    """
    # The default is None, which help would show as if somebody had to type it.
    option: OptionInfo = typer.Option("--set", metavar="KEY=VALUE", help=about, show_default=False)
    return option


HparamsOption = Annotated[
    str,
    typer.Option(
        "--hparams",
        metavar="FILE",
        help="Hyper-parameters: EasyEdit's or SimIE's YAML, MEMIT's JSON, or our own.",
        show_default=False,
    ),
]


def hparams_file(file: str, editor: str) -> tuple[str, str]:
    """Return the absolute path of ``--hparams``, and *editor*, or the name that the file says where it is empty.

    Raises:
        YamlError: the file cannot be read.
    """
    if not file:
        return "", editor
    path = resolve_from_cwd(file)
    source, _ = theirs.open_file(Path(path))  # what is wrong in it is said with the rest of the plan
    return path, editor or theirs.editor_of(source)


def hparams_overrides(file: str, space: str, workspace: Workspace) -> list[Override]:
    """Return what ``--hparams`` lays over a search space: *file* (empty = nothing), at each arm of its editor.

    Args:
        file: as typed.
        space: the search space, a path or a name.
        workspace: where it is looked up.

    Raises:
        SpecError: the file does not say of which editor it is, or there is no such arm.
        YamlError: it, or the search space, cannot be read.
    """
    if not file:
        return []
    path, editor = hparams_file(file, "")
    place = Place(f"--hparams {file}")
    arms = mapping_of(mapping_of(read(find_file(space, workspace)).tree).get("arms"))
    editors = {name: mapping_of(arm).get("editor") for name, arm in arms.items()}
    named = {name: e if isinstance(e, str) else mapping_of(e).get("name") for name, e in editors.items()}
    chosen = [name for name, of in named.items() if editor and of == editor]
    if not chosen:
        hint = "write it at its arm: editor: {name: memit, file: FILE}"
        what = (
            f"is of '{editor}', and no arm is"
            if editor
            else "does not say of which editor it is (alg_name, or its folder)"
        )
        raise SpecError(f"{place.file} {what}", hint=hint)
    return [
        Override(f"arms.{name}.editor", {"name": editor, **mapping_of(editors[name]), "file": path}, place)
        for name in chosen
    ]


def is_stated(ctx: typer.Context, parameter: str) -> bool:
    """Tell whether *parameter* was written on the command line."""
    # By name: the enumeration is of the click that Typer bundles, which has moved between versions.
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def as_typed(ctx: typer.Context, parameter: str) -> str:
    """Return *parameter* as it was written, ``--seed 1``."""
    # Typer gives a parameter its Python name; what a user typed is the first of its options.
    (option,) = (p for p in ctx.command.params if p.name == parameter)
    value = ctx.params[parameter]
    if value is True:
        return option.opts[0]
    return f"{option.opts[0]} {f'{value:g}' if isinstance(value, float) else value}"


def overrides(ctx: typer.Context, flags: Iterable[Stated]) -> list[Override]:
    """Return those of *flags* that were written on the command line, as what they lay over a tree."""
    return [Override(key, value, Place(as_typed(ctx, name))) for name, key, value in flags if is_stated(ctx, name)]


def without_effect(ctx: typer.Context, names: Iterable[str], message: str, hint: str) -> list[Problem]:
    """Return *message* as a problem for each of the parameters *names* that was written on the command line."""
    return [problem(Place(as_typed(ctx, name)), message, hint) for name in names if is_stated(ctx, name)]


def refuse(problems: list[Problem]) -> None:
    """Raise *problems* if there are any.

    Raises:
        ProblemsError: there are.
    """
    if problems:
        raise ProblemsError(problems)


def model_spec(text: str, workspace: Workspace) -> dict[str, str]:
    """Return the ``model`` section that ``--model`` means: a name, or a path, which counts from the current folder."""
    return model_section(text, workspace, note=lambda about: typer.echo(f"note: {about}", err=True))
