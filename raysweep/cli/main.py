"""``raysweep``: global options, and a table of commands that are imported only when they are called."""

from __future__ import annotations

import importlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from raysweep import __version__
from raysweep.cli.errors import BAD_INPUT, EXIT_CODES, report
from raysweep.cli.options import Options
from raysweep.errors import RaysweepError, SpecError, nearest
from raysweep.lazy import without_collection
from raysweep.workspace import VARIABLES, unknown_variables

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("raysweep.cli.run:command", "Run a sweep; run it again to go on where it stopped."),
    "submit": ("raysweep.cli.submit:command", "Run a sweep as a job on a Ray cluster, and follow it."),
    "plan": ("raysweep.cli.plan:command", "Print the trials of a sweep without running any."),
    "validate": ("raysweep.cli.validate:command", "Check a search space; report every mistake at once."),
    "ls": (
        "raysweep.cli.ls:command",
        "List editors, wrappers, datasets, models, studies, metrics, protocols, layouts, spaces, published numbers.",
    ),
    "show": ("raysweep.cli.show:command", "Show a sweep's results: arms × rounds."),
    "compare": ("raysweep.cli.compare:command", "Compare arms of one or several sweeps, or with published numbers."),
    "judge": ("raysweep.cli.judge:command", "Let a language model judge the answers that a sweep has stored."),
    "retention": ("raysweep.cli.retention:command", "Show what each arm keeps, and for how long."),
    "report": ("raysweep.cli.report:command", "Write a sweep's report as one HTML page."),
    "plot": ("raysweep.cli.plot:command", "Draw one picture of a sweep: over edits, retention, survival, cost …"),
    "analyze": ("raysweep.cli.analyze:command", "Open a sweep with Ray Tune's own analysis."),
    "ask": ("raysweep.cli.ask:command", "Ask a finished trial's model, before and after its edits."),
    "export": ("raysweep.cli.export:command", "Write a finished trial's edited model as others read it."),
    "edit": ("raysweep.cli.edit:command", "Run one lifelong edit from flags, without a file."),
    "import": ("raysweep.cli.import_:command", "Take results of EasyEdit, SimIE, MEMIT or NAS in."),
    "train-mend": ("raysweep.cli.train_mend:command", "Train MEND's hypernetwork."),
    "models": ("raysweep.cli.models:app", "List, fetch and build models."),
    "data": ("raysweep.cli.data:app", "List, check and fetch data."),
    "belief": ("raysweep.cli.belief:app", "Build the belief-revision testbed."),
    "doctor": ("raysweep.cli.doctor:command", "Check this installation; explain an error code."),
}


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and first lines, and imports a command when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Stand-ins without parameters: enough for --help and for "did you mean".
        self.commands = {name: TyperCommand(name, help=line, short_help=line) for name, (_, line) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the real command in place of its stand-in."""
        # Typer reports an unknown name here, before anything is imported.
        name, stub, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and stub else stub, rest


def load(name: str) -> TyperCommand | TyperGroup:
    """Return the command called *name*.

    Raises:
        RaysweepError: its module is missing from this installation.
    """
    origin, _ = COMMANDS[name]
    module, _, attribute = origin.partition(":")
    try:
        # Imports make many objects that all stay; the garbage collector would look at them again and again.
        with without_collection():
            attribute_value = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        # Something that the module imports is missing: that is another fault, with another cure.
        if error.name != module:
            raise
        raise RaysweepError(
            f"command '{name}' is not part of this installation", hint=f"{module} is missing"
        ) from error
    if isinstance(attribute_value, typer.Typer):
        sub = attribute_value
    else:
        # A lone function becomes a command only through an app; Typer unwraps an app of one command.
        sub = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
        sub.command(name)(attribute_value)
    made = typer.main.get_command(sub)
    assert isinstance(made, TyperCommand | TyperGroup), "what Typer makes of its own classes"
    made.name = name
    # Groups have commands of their own, whose help has examples as well.
    for command in (made, *getattr(made, "commands", {}).values()):
        command.help = fenced(command.help or "")
    return made


def fenced(text: str) -> str:
    """Return *text* with its indented blocks, examples to copy, between fences.

    Typer removes the indentation of what follows the first paragraph: an indented block right below would be run together.
    """
    blocks = re.compile(r"(?:^    .*(?:\n|$))+", re.MULTILINE)
    return blocks.sub(lambda block: f"```text\n{dedent(block[0]).rstrip()}\n```\n", cleandoc(text))


def _version(requested: bool) -> None:
    if requested:
        print(f"raysweep {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + "; ".join(f"{code} = {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
)


@app.callback()
def options(
    ctx: typer.Context,
    root: Annotated[
        Path | None,
        typer.Option(
            envvar="RAYSWEEP_ROOT",
            help="Workspace: results/, artifacts/, models/, data/ lie here; stands above RAYSWEEP_ROOT.",
            show_default="the current folder",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Lifelong knowledge-editing experiments as a Ray Tune sweep.

    Example: `raysweep run demo`, then `raysweep show demo`.
    """
    # A mistyped RAYSWEEP_ROOT would write results elsewhere without a word.
    unknown = unknown_variables()
    if unknown:
        hints = [f"{name}: {nearest(name, VARIABLES)}" for name in unknown]
        raise SpecError(f"unknown environment variable {', '.join(unknown)}", hint="; ".join(hints))
    ctx.obj = Options(root=root, debug=debug)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; ``--debug`` may stand anywhere."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # half a character, in a file or an argument, must not end a message
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in arguments
    # Typer knows it before the command only; people write it at the end.
    if debug:
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    try:
        app(arguments, prog_name="raysweep")
    except SystemExit as end:
        # Click ends usage errors with a number, other exits with a text or nothing.
        return end.code if isinstance(end.code, int) else BAD_INPUT if end.code else 0
    # The reader (`| head`) has gone; Python would complain while it flushes at exit.
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return report(error, debug=debug)
    return 0
