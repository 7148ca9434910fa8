"""Lines of text that fit a terminal: broken between words, so that no name, path or command is cut."""

from __future__ import annotations

import re

import typer
from rich.cells import cell_len

from raysweep.cli.fit import terminal_width

_WORD = re.compile(r"(?:`[^`\n]*`|\S)+")
HANG = 4  # how much further the rest of a broken line is indented


def say(text: str, *, err: bool = False, hang: int = HANG) -> None:
    """Print *text*, broken where the terminal is narrower; see :func:`wrap`."""
    typer.echo(wrap(text, terminal_width(err=err), hang=hang), err=err)


def wrap(text: str, width: int | None, *, hang: int = HANG) -> str:
    """Return *text* with each line of it broken to *width* characters; None = as it is.

    A line is broken between words only. What stands between backticks is a command to copy: it is one word unless it is wider than
    a line. A single word that is wider than a line stays whole. The rest of a broken line is indented by *hang* more than its
    beginning.

    >>> print(wrap("note: run `raysweep run x` again", 22))
    note: run
        `raysweep run x`
        again
    """
    if width is None:
        return text
    return "\n".join("\n".join(_broken(line, width, hang)) for line in text.split("\n"))


def _broken(line: str, width: int, hang: int) -> list[str]:
    """Return *line* as lines of at most *width* characters where its words allow it."""
    if cell_len(line) <= width:
        return [line]
    start = len(line) - len(line.lstrip(" "))
    indent = " " * min(start + hang, width // 2)
    pieces: list[tuple[str, str]] = []  # the blanks before a word, and the word
    end = 0
    for match in _WORD.finditer(line):
        gap, word = line[end : match.start()], match.group()
        whole = cell_len(indent) + cell_len(word) <= width
        parts = [word] if whole else word.split(" ")
        pieces += [(gap if i == 0 else " ", part) for i, part in enumerate(parts)]
        end = match.end()
    lines = [""]
    for gap, word in pieces:
        longer = lines[-1] + gap + word
        if cell_len(longer) > width and lines[-1].strip():
            lines.append(indent + word)
        else:
            lines[-1] = longer
    return lines
