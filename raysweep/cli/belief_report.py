"""``raysweep belief report``: every table and figure of a belief sweep, as CSV, Markdown, LaTeX, PNG and one HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from raysweep.belief.report import published_files
from raysweep.belief.report import tables as belief
from raysweep.belief.report.tables import Row
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say
from raysweep.cli.show import SweepArgument, report_left_out
from raysweep.reports import belief_rows, plot_style
from raysweep.reports.belief_page import figures_of, tables_of
from raysweep.reports.fit import terminal_width
from raysweep.reports.render import Format, cell_text, complete, render
from raysweep.results.tables import Sweep, open_results
from raysweep.summarize import Estimate

_ENDINGS = {Format.CSV: "csv", Format.MARKDOWN: "md", Format.LATEX: "tex"}
_PRINTED = ("pretrained_model_answers", "main_table", "downstream_answers", "lifelong", "points")
_OURS = ("downstream_answers", "lifelong", "points", "prob_delta")


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; else report/ in the sweep's results.")
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published/--no-published", help="Also write the files that the published notebook opens."),
    ] = True,
) -> None:
    """Write every table and figure of a belief sweep from its Arrow tables, and print the main ones.

    CSV tables have the published columns. Below published/ lie, run by run, the files of the published code under their names
    (outputs/editing_stats_….csv, training_logs/log_….csv and others), as its own notebook opens them.

    Example: `raysweep belief report belief_demo --out report`
    """
    workspace = workspace_of(ctx)
    results = open_results(sweep, workspace)
    # Before anything is read, so that no table holds a part of an altered trial.
    results.leave_out_altered()
    tables = tables_of(results)
    folder = out or Path(workspace.results(results.name)) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        for how, ending in _ENDINGS.items():
            text = _csv(name, rows) if how is Format.CSV else render(rows, how, title=name)
            (folder / f"{name}.{ending}").write_text(text + "\n", encoding="utf-8")
    figures = draw(results, tables, folder)
    (folder / "report.md").write_text(markdown(results.name, tables, figures), encoding="utf-8")
    (folder / "report.html").write_text(page(results.name, tables, figures), encoding="utf-8")
    for name in _PRINTED:
        if name in tables:
            rows = [_means(row) for row in tables[name]]
            print(complete(rows, title=name, width=terminal_width()).rstrip(), end="\n\n")
    for label, state in belief_rows.states(results).items():
        say(f"note: {label}: {state}")
    written = write_published(results, folder / "published") if published else 0
    say(f"{len(tables)} tables and {len(figures)} figures: {folder / 'report.html'}")
    if written:
        say(f"{written} files as published: {folder / 'published'}")
    report_left_out(results)


def _csv(name: str, rows: Sequence[Row]) -> str:
    """Return *rows* as CSV; columns of the published tables and of the training log have their published names, case and all."""
    # `render` writes heads in lower case, as programs like them; the published notebook asks for its own case.
    rows = belief.published_columns(name, rows)
    head, newline, rest = render(rows, Format.CSV).partition("\n")
    if name in _OURS:
        return head + newline + rest
    cased = {key.lower(): key for key in rows[0] if key.isidentifier()}
    (cells,) = csv.reader([head])
    names = [next((key + cell[len(key) :] for low, key in cased.items() if _is_of(cell, low)), cell) for cell in cells]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue() + newline + rest


def _is_of(cell: str, column: str) -> bool:
    """Say whether a cell of a head is *column* or one of its parts (``_se``, ``_n``)."""
    return cell == column or cell.startswith(f"{column}_")


def write_published(sweep: Sweep, folder: Path) -> int:
    """Write the files of the published code below *folder*, a folder per run; return how many."""
    runs, count = belief_rows.read_runs(sweep), 0
    for run in runs:
        # Seeds and swept keys share an arm, and must not share a folder.
        alone = sum(other.arm == run.arm for other in runs) == 1
        below = folder / (run.arm if alone else f"{run.arm}-{run.key}")
        name = published_files.experiment_name(run.spec, run.model, run.relations)
        for file in published_files.run_files(name, run.spec, run.points, run.steps, run.scoring, run.log):
            path = below / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as lines:
                # A row need not have every column: the published code leaves such cells empty.
                writer = csv.DictWriter(lines, file.columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows({name: _defined(cell) for name, cell in row.items()} for row in file.rows)
            count += 1
    return count


def _defined(cell: object) -> object:
    """Return *cell*, or nothing where it is undefined."""
    return "" if cell is None or (isinstance(cell, float) and not math.isfinite(cell)) else cell


def _means(row: Row) -> Row:
    """Return *row* for a terminal: means without their errors; undefined ones stay, so that they are said."""
    return {n: c.mean if isinstance(c, Estimate) and not math.isnan(c.mean) else c for n, c in row.items()}


def draw(sweep: Sweep, tables: Mapping[str, Sequence[Row]], folder: Path) -> list[Path]:
    """Draw the figures into *folder*; return their files."""
    files = []
    for name, figure in figures_of(sweep, tables):
        files.append(folder / f"{name}.png")
        plot_style.save(figure, files[-1])
    return files


def markdown(name: str, tables: Mapping[str, Sequence[Row]], figures: Sequence[Path]) -> str:
    """Return everything as one Markdown text."""
    parts = [f"# {name}", *(f"## {title}\n\n{render(rows, Format.MARKDOWN)}" for title, rows in tables.items())]
    parts += [f"![{figure.stem}]({figure.name})" for figure in figures]
    return "\n\n".join(parts) + "\n"


def page(name: str, tables: Mapping[str, Sequence[Row]], figures: Sequence[Path]) -> str:
    """Return everything as one HTML page that needs no other file."""
    # Everything is inside the page: it is mailed and moved without its folder.
    style = "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:2px 8px;border:1px solid #ccc}"
    parts = [f"<!doctype html><meta charset='utf-8'><title>{html.escape(name)}</title><style>{style}</style>"]
    parts.append(f"<h1>{html.escape(name)}</h1>")
    for title, rows in tables.items():
        head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
        lines = ("".join(f"<td>{html.escape(cell_text(cell))}</td>" for cell in row.values()) for row in rows)
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>")
        parts += [f"<tr>{line}</tr>" for line in lines]
        parts.append("</table>")
    for figure in figures:
        data = base64.b64encode(figure.read_bytes()).decode()
        parts.append(f"<h2>{html.escape(figure.stem)}</h2><img src='data:image/png;base64,{data}'>")
    return "\n".join(parts) + "\n"
