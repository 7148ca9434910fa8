"""Printing lines of text so that they fit the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from raysweep.reports.fit import terminal_width
from raysweep.reports.prose import HANG, wrap

if TYPE_CHECKING:
    from raysweep.reports.render import Format


def say(text: str, *, err: bool = False, hang: int = HANG) -> None:
    """Print *text*, broken where the terminal is narrower; see :func:`wrap`."""
    typer.echo(wrap(text, terminal_width(err=err), hang=hang), err=err)


def tell(notes: Iterable[str], how: Format) -> None:
    """Print *notes*: below a table for a reader, on standard error beside one for a program."""
    for note in notes:
        # csv and json on standard output stay parsable.
        say(f"note: {note}", err=how != "table")
