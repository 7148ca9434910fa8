"""Lines of text that fit a terminal: broken between words, so that no name, path or command is cut."""

from __future__ import annotations

import math
import re

from rich.cells import cell_len

_WORD = re.compile(r"(?:`[^`\n]*`|\S)+")
HANG = 4  # how much further the rest of a broken line is indented


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
    # Blanks are kept as they were: columns that somebody aligned by hand stay aligned on an unbroken line.
    pieces: list[tuple[str, str]] = []  # the blanks before a word, and the word
    end = 0
    for match in _WORD.finditer(line):
        gap, word = line[end : match.start()], match.group()
        # A command between backticks is one word as long as it can stand on a line.
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


def counted(number: int, one: str, many: str) -> str:
    """Return ``1 trial`` or ``2 trials``."""
    return f"{number:,} {one if number == 1 else many}"


def clock(seconds: float) -> str:
    """Return seconds as ``1:02:03`` or ``12.3 s``.

    >>> clock(3723), clock(12.34)
    ('1:02:03', '12.3 s')
    """
    if math.isnan(seconds):
        return "–"
    whole = int(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def brief(failure: str) -> str:
    """Return a stored failure on one line, and its hint on a second one if it has a hint.

    >>> brief("ModelError: no weights\\n    fetch them")
    'ModelError: no weights\\n    fetch them'
    """
    head, *rest = failure.splitlines() or [""]
    hint = next((line.strip() for line in rest if line.startswith("    ") and line.strip()), "")
    return f"{head}\n    {hint}" if hint else head
