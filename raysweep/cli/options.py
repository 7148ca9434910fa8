"""The global options every command finds as ``ctx.obj``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from raysweep.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Options:
    """What was given before the command's name.

    Attributes:
        root: ``--root``; None = ``$RAYSWEEP_ROOT``, else the current folder.
        debug: ``--debug``: errors print their traceback.
    """

    root: Path | None = None
    debug: bool = False

    @property
    def workspace(self) -> Workspace:
        """The workspace at the root."""
        return Workspace.here(self.root)


def workspace_of(ctx: typer.Context) -> Workspace:
    """Return the workspace that the options before the command's name mean."""
    # Nothing is there where a command is called without the top one: in a test, or by a program that embeds it.
    return (ctx.find_object(Options) or Options()).workspace
