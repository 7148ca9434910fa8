"""A table of a page: cells with ids to link to, and what a click on a heading sorts by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysweep.reports.render import Cell, cell_text
from raysweep.summarize import Estimate


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell of a table of the page: its text, what it is sorted by, and what else is to know of it."""

    id: str
    text: str
    sort: str
    about: str = ""
    more: str = ""


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of the page.

    Attributes:
        name: goes before the ids of its cells.
        caption: what it shows.
        heads: names of its columns.
        rows: a label and the cells of each row.
    """

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[TableCell]]]

    def cell(self, row: str, column: str) -> TableCell:
        """Return the cell of a configuration under a heading."""
        at = list(self.heads).index(column)
        return next(cells for label, cells in self.rows if label == row)[at]


def plain_table(
    name: str, caption: str, rows: Sequence[Mapping[str, Cell]], *, links: Mapping[tuple[str, str], str] | None = None
) -> PageTable:
    """Return *rows*, whose names are in ``arm``, as the table *name*; *links* lead from (row, heading) to a part of the page."""
    heads = [head for head in rows[0] if head != "arm"]
    out = []
    for i, row in enumerate(rows):
        label = str(row["arm"])
        cells = [
            _cell(f"{name}-{i}-{j}", row[head], (links or {}).get((label, head), "")) for j, head in enumerate(heads)
        ]
        out.append((label, cells))
    return PageTable(name, caption, heads, out)


def _cell(name: str, cell: Cell, more: str) -> TableCell:
    about, value = (f"n = {cell.n}", cell.mean) if isinstance(cell, Estimate) else ("", cell)
    return TableCell(name, cell_text(cell), "" if value is None else str(value), about, more)
