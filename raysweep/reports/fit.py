"""Tables that fit a terminal. Names are never cut: what is too wide loses columns and intervals, and a note says which.

What may lose nothing (:func:`complete`) goes on in further tables below.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2  # between two columns of a table that is made to fit
NARROWEST = 8  # of a column of text that is folded
WIDEST = 100_000
SPARE = ("time", "s/edit", "seconds")
"""Columns that go first."""
CONSTANT = ("model", "data", "their model", "their data", "status", "seeds", "n", "edits", "seed")
"""Columns that go where they have one value, which the note has."""


def terminal_width(*, wide: bool = False, err: bool = False) -> int | None:
    """Return how many characters a line may have: ``$COLUMNS``, or the terminal's; None = any number.

    That is so with *wide*, and where the output (with *err*: standard error) goes to a file or a pipe and ``$COLUMNS`` is not set.
    """
    if wide:
        return None
    columns = os.environ.get("COLUMNS", "")
    # COLUMNS is asked first: it is how a user makes a pipe as narrow as a terminal.
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        cells: what stands in it.
        short: the same without intervals; None where there are none.
        number: whether it is set to the right, and never folded; its heading is where nothing else helps.
        name_column: whether it holds names to type, which are folded only where nothing else is left to fold.
        whole: whether it is never folded, such as keys to copy.
    """

    name: str
    cells: Sequence[str]
    short: Sequence[str] | None = None
    number: bool = False
    name_column: bool = False
    whole: bool = False

    @property
    def width(self) -> int:
        """How many characters it takes."""
        return max(map(cell_len, (self.name, *self.cells)))

    @property
    def narrowest(self) -> int:
        """How narrow it may be: if it is folded, no word of its heading is."""
        return self.width if self.number or self.whole else max((NARROWEST, *map(cell_len, self.name.split())))

    def without_intervals(self) -> Column:
        """Return it without intervals."""
        return self if self.short is None else replace(self, cells=self.short, short=None)


def table(columns: Sequence[Column], *, title: str = "", width: int | None = None) -> str:
    """Return a table as text, at most *width* characters wide where that can be had; a last line says what was left out.

    In this order it gives up: seconds; columns with one value, which the note then has; intervals of what has a difference
    beside it; all intervals; the reference's name, which the title explains. Then it folds columns of text, and at last it
    leaves out means beside their differences. Seconds come back where there is room without intervals.
    """
    columns = list(columns)
    if width is None or _width(columns) + len(columns) + 1 <= width:
        return _drawn(columns, title, None)  # rich's usual gap is wider by one, and there is an edge
    # From here on something gives way; what did is told in the last line.
    columns_shown, notes = _fitted(columns, width)
    footnote = f"{width} columns: {'; '.join(notes)} (--wide has everything)" if notes else ""
    return _in_parts(columns_shown, title, width) + (f"\n{_folded(footnote, width)}" if footnote else "")


def complete(columns: Sequence[Column], *, title: str = "", width: int | None = None) -> str:
    """Return a table as text, at most *width* characters wide where that can be had; nothing is left out.

    First columns of text are folded. Columns that find no room even so stand in further tables below, each of which begins with
    the columns of text that lead the first one.
    """
    if width is None or _width(columns) + len(columns) + 1 <= width:
        return _drawn(columns, title, None)
    return _in_parts(columns, title, width)


def listing(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """Return a table of names and what is to be said of them; where the terminal is narrow, texts are folded, nothing is cut."""
    columns = [Column(name, [row[i] for row in rows], name_column=i == 0) for i, name in enumerate(headings)]
    return _drawn(columns, title, terminal_width())


def _fitted(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """Return the first choice of columns that fits, or the narrowest, with what a reader must be told of it."""
    # A column that says the same in every row is said once, in the line below the table.
    constant = [c for c in columns if c.name in CONSTANT and len(set(c.cells)) == 1 and len(c.cells) > 1]
    levels = [lambda c: c, _without_level, Column.without_intervals]
    paired = any(c.name.startswith("Δ") for c in columns)
    choices: list[tuple[list[Column], list[Column], int]] = []
    # Each choice gives up more than the one before it; the first that fits is taken.
    # Level 1 keeps the intervals of differences; without differences it would be level 2.
    for level in (0, 1, 2) if paired else (0, 2):
        drops: list[list[Column]] = [[]]
        for column in [c for name in SPARE for c in columns if c.name == name] + constant:
            drops.append([*drops[-1], column])
        choices += [([levels[level](c) for c in columns if c not in drop], drop, level) for drop in drops]
    last, drop, level = choices[-1]
    # The last resort: where a difference stands beside it, a mean says the least.
    means = {c.name.removeprefix("Δ") for c in last if c.name.startswith("Δ")}
    for names in ({"to"}, {"to"} | means):
        choices.append(
            ([c for c in last if c.name not in names], [*drop, *(c for c in last if c.name in names)], level)
        )
    # Lazily, since most tables fit early and measuring a table is most of the work.
    fitting = (x for x in choices[:-1] if _width(x[0]) <= width)
    foldable = (x for x in choices[-3:] if sum(_widths(x[0], width)) + GAP * (len(x[0]) - 1) <= width)
    chosen, drop, level = next(fitting, None) or next(foldable, choices[-1])
    notes = []
    gone = [c.name for c in drop if c not in constant]
    if gone:
        notes.append(f"without {', '.join(gone)}")
    same = [f"{c.name} {c.cells[0]}" for c in drop if c in constant]
    if same:
        notes.append(f"all rows: {', '.join(same)}")
    if level and any(c.short is not None for c in columns):
        star = ", * = a difference beyond chance" if level == 2 and paired else ""
        notes.append(f"without {'95% intervals' if level == 2 else 'intervals of means'}{star}")
    return chosen, notes


def _without_level(column: Column) -> Column:
    """Return *column* without intervals unless it is of differences."""
    return column if column.name.startswith("Δ") else column.without_intervals()


def _in_parts(columns: Sequence[Column], title: str, width: int) -> str:
    """Return one table, its columns of text folded, or as many as it takes, one below the other."""
    # Names come first in every table; each part repeats them, so that its rows can be told apart.
    count = next((i for i, c in enumerate(columns) if c.number), len(columns))
    leading, rest = list(columns[: max(count, 1)]), list(columns[max(count, 1) :])
    # Names that would take half of the line leave too little for numbers.
    if _least(leading) > width // 2:
        leading, rest = list(columns[:1]), list(columns[1:])
    if _least(columns) <= width or not rest:
        return _drawn(columns, title, width)
    parts: list[list[Column]] = [[]]
    room = (
        width - max(_least(leading), min(_width(leading), width // 2)) - GAP
    )  # what leads is not folded for more columns
    for column in rest:
        if parts[-1] and _least([*parts[-1], column]) > room:
            parts.append([])
        parts[-1].append(column)
    drawn = [_drawn([*leading, *part], title if i == 0 else "", width) for i, part in enumerate(parts)]
    return "\n\n".join(drawn)


def _least(columns: Sequence[Column]) -> int:
    """Return how many characters *columns* take when each is as narrow as it may be."""
    return sum(min(c.width, c.narrowest) for c in columns) + GAP * max(len(columns) - 1, 0)


def _width(columns: Sequence[Column]) -> int:
    return sum(c.width for c in columns) + GAP * max(len(columns) - 1, 0)


def _drawn(columns: Sequence[Column], title: str, width: int | None) -> str:
    """Return the table, its columns of text folded where it is wider than *width*."""
    widths = _widths(columns, width)
    # rich draws, but chooses no widths: it would cut what does not fit.
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if width is not None:
        drawn.padding, drawn.show_edge = (0, 1, 0, 0), False  # as narrow as can be
    for column, column_width in zip(columns, widths, strict=True):
        justify = "right" if column.number else "left"
        drawn.add_column(Text(column.name), justify=justify, width=column_width, overflow="fold")  # type: ignore[arg-type]
    for cells in zip(*(c.cells for c in columns), strict=True):
        drawn.add_row(*map(Text, cells))
    body = io.StringIO()
    # So wide that rich never shrinks a column; widths are ours. Without highlight and colours, which would be escape codes.
    Console(file=body, width=WIDEST, highlight=False, color_system=None).print(drawn)
    lines = [line.rstrip() for line in body.getvalue().strip("\n").split("\n")]
    return "\n".join([*([_folded(title, width)] if title else []), *lines])


def _widths(columns: Sequence[Column], width: int | None) -> list[int]:
    """Return each column's width: the widest columns of text give way, as far as they must and can."""
    widths = [c.width for c in columns]
    over = sum(widths) + GAP * max(len(columns) - 1, 0) - (width or WIDEST)
    while over > 0:
        texts = [i for i, c in enumerate(columns) if widths[i] > c.narrowest]
        # Names are typed from the screen, so they are the last to be folded.
        texts = [i for i in texts if not columns[i].name_column] or texts
        if not texts:
            break
        widths[max(texts, key=lambda i: widths[i])] -= 1
        over -= 1
    for i, column in enumerate(columns):  # the last resort
        cells = max(map(cell_len, column.cells), default=0)
        if over > 0 and column.number and widths[i] > max(cells, NARROWEST):
            narrow = max(cells, NARROWEST, widths[i] - over)
            over, widths[i] = over - (widths[i] - narrow), narrow
    return widths


def _folded(text: str, width: int | None) -> str:
    """Return *text* in lines of *width* characters, broken between words."""
    if width is None or cell_len(text) <= width:
        return text
    # A console only for its width; rich counts cells, so wide characters are two.
    lines = Text(text).wrap(Console(file=io.StringIO(), width=width), width)
    return "\n".join(line.plain.rstrip() for line in lines)
