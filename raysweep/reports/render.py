"""One table, five ways: for a terminal, a spreadsheet, a program, a README, a paper."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

from raysweep.reports import fit
from raysweep.summarize import Estimate


class Format(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MARKDOWN = "markdown"
    LATEX = "latex"


UNDEFINED = "undefined"


class Difference(Estimate):
    """A paired difference: printed with its sign."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return it with its interval."""
        return with_interval(self, sign="+")


Cell = Estimate | float | int | str | None
Row = Mapping[str, Cell]


def render(rows: Sequence[Row], how: Format, *, title: str = "", width: int | None = None) -> str:
    """Return *rows*, which share their keys, as text; an estimate is ``mean [low, high]``, or columns for programs.

    Args:
        rows: the table.
        how: the format.
        title: above the table (``table``), or a comment (``latex``).
        width: of the terminal, in characters; ``table`` alone is made to fit it (:mod:`raysweep.reports.fit`). None = in full.
    """
    names = list(rows[0]) if rows else []
    if how is Format.TABLE:
        return fit.table(_columns(names, rows), title=title, width=width)
    if how is Format.MARKDOWN:
        # A bar inside a cell would end it.
        lines = [names, ["---"] * len(names), *([cell_text(r[n]).replace("|", "\\|") for n in names] for r in rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if how is Format.LATEX:
        return _latex(names, rows, title)
    flattened = [flat(row) for row in rows]
    if how is Format.JSON:
        return json.dumps(flattened, indent=1, ensure_ascii=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(n for row in flattened for n in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue().rstrip("\n")


def complete(rows: Sequence[Row], *, title: str = "", width: int | None = None) -> str:
    """Return *rows* as a table for a terminal that leaves nothing out (:func:`raysweep.reports.fit.complete`)."""
    return fit.complete(_columns(list(rows[0]) if rows else [], rows), title=title, width=width)


def cell_text(cell: Cell) -> str:
    """Return *cell* for a reader."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, Estimate):
        if math.isnan(cell.mean):
            return UNDEFINED
        return str(cell) if isinstance(cell, Difference) else with_interval(cell)
    return _number(cell) if isinstance(cell, float) else str(cell)


def with_interval(cell: Estimate, *, sign: str = "") -> str:
    """Return ``.796 [.74, .84]``; limits have as many digits as their distance deserves, ``[–]`` is no interval.

    Args:
        cell: what to print.
        sign: ``+`` prints the sign of positive numbers, too.

    >>> with_interval(Estimate(0.7961, 0.02, 20, 0.741, 0.8402)), with_interval(Estimate(0.25, float("nan"), 1), sign="+")
    ('.796 [.74, .84]', '+.250 [–]')
    """
    if not cell.has_interval:
        return f"{_bare(cell.mean, 3, sign)} [–]"
    # Shares have two digits at least; a perplexity's limits need fewer.
    least = 2 if max(abs(cell.low), abs(cell.high)) <= 1 else 1
    apart = cell.high - cell.low
    # As many digits as tell a fifth of the interval's length.
    digits = min(max(least, math.ceil(-math.log10(apart / 5))), 6) if apart > 0 else 3
    low, high = (f"{x:{sign}g}" if x in (-1.0, 0.0, 1.0) else _bare(x, digits, sign) for x in (cell.low, cell.high))
    return f"{_bare(cell.mean, 3, sign)} [{low}, {high}]"  # the ends of a range are exact


def _bare(value: float, digits: int, sign: str) -> str:
    """Return *value* without the zero before its point."""
    # Four significant digits: the decimals of a large number say nothing.
    if abs(value) >= 100:
        return f"{value:{sign}.4g}"
    text = f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no minus before a zero
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("+-").startswith("0.") else text


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def flat(row: Row) -> dict[str, float | int | str | None]:
    """Return *row* for a program: an estimate as five columns, the mean and ``_se``, ``_low``, ``_high`` and ``_n``."""
    values: dict[str, float | int | str | None] = {}
    for name, cell in row.items():
        key = name.lower().replace(" ", "_")
        if isinstance(cell, Estimate):
            # A program gets numbers and nulls, never NaN, which JSON has not.
            limits = {f"{key}_low": _plain(cell.low), f"{key}_high": _plain(cell.high)}
            values |= {key: _plain(cell.mean), f"{key}_se": _plain(cell.se), **limits, f"{key}_n": cell.n}
        else:
            values[key] = _plain(cell) if isinstance(cell, float) else cell
    return values


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _columns(names: Sequence[str], rows: Sequence[Row]) -> list[fit.Column]:
    """Return the columns of *rows* for a terminal: in full, and an estimate also without its interval."""
    out = []
    for name in names:
        cells = [row[name] for row in rows]
        estimates = any(isinstance(cell, Estimate) for cell in cells)
        short = [_short(cell) for cell in cells] if estimates else None
        number = any(isinstance(cell, Estimate | float | int) for cell in cells)
        out.append(fit.Column(name, [cell_text(cell) for cell in cells], short, number=number))
    return out


def _short(cell: Cell) -> str:
    """Return *cell* without its interval; a difference whose interval does not hold 0 has a star."""
    if not isinstance(cell, Estimate) or math.isnan(cell.mean):
        return cell_text(cell)
    if not isinstance(cell, Difference):
        return _bare(cell.mean, 3, "")
    return _bare(cell.mean, 3, "+") + ("*" if cell.low > 0 or cell.high < 0 else "")


def _latex(names: Sequence[str], rows: Sequence[Row], title: str) -> str:
    align = "".join("r" if any(isinstance(r[n], Estimate | float | int) for r in rows) else "l" for n in names)
    body = [" & ".join(_tex(cell_text(row[n])) for n in names) + r" \\" for row in rows]
    head = " & ".join(_tex(n) for n in names) + r" \\"
    note = [f"% {title}"] if title else []
    return "\n".join([*note, rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}"])  # fmt: skip


def _tex(text: str) -> str:
    for char in "&%$#_{}":
        text = text.replace(char, f"\\{char}")
    return text.replace("±", r"$\pm$").replace("–", "--").replace("Δ", r"$\Delta$")
