"""One table, five ways: for a terminal, a spreadsheet, a program, a README, a paper."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A paired difference: printed with its sign, and with a star where it is shown.

    Attributes:
        shown: whether it is beyond chance, corrected for the others of its column (:mod:`raysweep.verdicts`).
    """

    shown: bool = False

    def __str__(self) -> str:
        """Return it with its interval."""
        return with_interval(self, sign="+") + ("*" if self.shown else "")


Cell = Estimate | float | int | str | None
Row = Mapping[str, Cell]


def render(
    rows: Sequence[Row], how: Format, *, title: str = "", width: int | None = None, caption: str | None = None
) -> str:
    """Return *rows*, which share their keys, as text; an estimate is ``mean [low, high]``, or columns for programs.

    Args:
        rows: the table.
        how: the format.
        title: above the table (``table``), or a comment (``latex``).
        width: of the terminal, in characters; ``table`` alone is made to fit it (:mod:`raysweep.reports.fit`). None = in full.
        caption: of a table for a paper: ``markdown`` and ``latex`` then have it, set the best mean of each column in bold, and
            mark differences that are not shown with a dagger.
    """
    names = list(rows[0]) if rows else []
    if how is Format.TABLE:
        return fit.table(_columns(names, rows), title=title, width=width)
    if how is Format.MARKDOWN:
        plain = [[_markdown(cell_text(row[name])) for name in names] for row in rows]
        body = _for_paper(names, rows, _markdown, "**{}**", "†") if caption else plain
        lines = [[_markdown(n) for n in names], ["---"] * len(names), *body]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\n{_markdown(caption)}" if caption else table
    if how is Format.LATEX:
        return _latex(names, rows, title, caption)
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
    """Return *cell* without its interval; a difference that is shown keeps its star."""
    if not isinstance(cell, Estimate) or math.isnan(cell.mean):
        return cell_text(cell)
    if not isinstance(cell, Difference):
        return _bare(cell.mean, 3, "")
    return _bare(cell.mean, 3, "+") + ("*" if cell.shown else "")


def _for_paper(
    names: Sequence[str], rows: Sequence[Row], escape: Callable[[str], str], bold: str, dagger: str
) -> list[list[str]]:
    """Return the cells as text: the best mean of each column in *bold*, a *dagger* behind a difference that is not shown."""
    best = {}
    for name in names:
        means = [c.mean for r in rows if isinstance(c := r[name], Estimate) and not isinstance(c, Difference)]
        # As printed: two means that read alike are both the best.
        best[name] = max((_bare(m, 3, "") for m in means if not math.isnan(m)), key=float, default=None)
    out = []
    for row in rows:
        line = []
        for name in names:
            cell = row[name]
            if isinstance(cell, Difference):
                # A hyphen is no minus.
                text = escape(re.sub(r"-(?=[.\d])", "−", with_interval(cell, sign="+"))) + (
                    "" if cell.shown else dagger
                )
            else:
                text = escape(cell_text(cell))
                if isinstance(cell, Estimate) and len(rows) > 1 and _bare(cell.mean, 3, "") == best[name]:
                    text = bold.format(text)
            line.append(text)
        out.append(line)
    return out


def _markdown(text: str) -> str:
    return text.replace("|", "\\|")  # a bar inside a cell would end it


def _latex(names: Sequence[str], rows: Sequence[Row], title: str, caption: str | None) -> str:
    align = "".join("r" if any(isinstance(r[n], Estimate | float | int) for r in rows) else "l" for n in names)
    cells = (
        _for_paper(names, rows, _tex, r"\textbf{{{}}}", r"$^{\dagger}$")
        if caption
        else [[_tex(cell_text(row[n])) for n in names] for row in rows]
    )
    body = [f"{' & '.join(line)} \\\\" for line in cells]
    head = " & ".join(_tex(n) for n in names) + r" \\"
    note = [f"% {line}" for line in title.splitlines()]
    table = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    if caption:
        table = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", *table, r"\end{table}"]
    return "\n".join([*note, *table])


_TEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "†": r"$^{\dagger}$"}
    | {
        char: f"${name}$"
        for char, name in {"±": r"\pm", "−": "-", "Δ": r"\Delta", "≈": r"\approx", "λ": r"\lambda"}.items()
    }
)


def _tex(text: str) -> str:
    r"""Return *text* as LaTeX prints it, whatever a name has in it.

    >>> print(_tex("50% of a_b ~ Δx"))
    50\% of a\_b \textasciitilde{} $\Delta$x
    """
    return text.translate(_TEX)
