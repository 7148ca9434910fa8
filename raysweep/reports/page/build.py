"""A sweep's report: one HTML file that opens from anywhere, asks nothing of the network, and is the same for the same store."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup

from raysweep import __version__
from raysweep.errors import SpecError, StoreError
from raysweep.protocols import Selection
from raysweep.reports import asked, belief_page, notes, pictures, retention_table, sweep_table
from raysweep.reports.measured import TrialView, trial_views
from raysweep.reports.page import examples as won_and_lost
from raysweep.reports.page.examples import Examples
from raysweep.reports.page.figures import inline
from raysweep.reports.page.headline import Arm, Comparison, Number, comparison, sentences
from raysweep.reports.page.page_table import PageTable, plain_table
from raysweep.reports.pairs import contents
from raysweep.reports.pictures import Picture
from raysweep.reports.render import Cell, Format, cell_text, render
from raysweep.reports.retention_table import Retention
from raysweep.reports.views import SummaryRow, rows_with_gaps
from raysweep.results.schema import BELIEFS as BELIEF_TABLE
from raysweep.results.tables import Sweep
from raysweep.workspace import Workspace

HERE = Path(__file__).parent
DRAWN = {
    "edits": "Means over edits with 95 % bands",
    "survival": "How long a fact that was right is kept",
    "pareto": "What is learned against what is left alone",
    "retention": "Which facts are left, by when they were written",
    "cost": "Quality against the seconds of an edit",
    "drift": "How far the model has moved",
}
BELIEFS = {
    "pretrained_model_answers": "what the model knew before any edit",
    "main_table": "each edit judged by the exact agent",
    "downstream_answers": "what follows from an edit",
    "lifelong": "many edits in one model",
    "points": "which points were edited",
}
"""Tables of a belief sweep that are in the page, with their captions."""
MOST_ARMS = 24
"""Arms whose examples and differences are in the page; with more, those of the first ones by Avg are."""
PROVENANCE = (
    "raysweep", "git_sha", "python", "torch", "transformers", "ray", "device", "cpu", "model_digest", "data_digest",
)  # fmt: skip
UNSAID = ("seed", "key", "versions")


def page(
    sweep: Sweep, workspace: Workspace, *, at: int = -1, phase: str | None = None, selection: Selection | None = None
) -> str:
    """Return the report on *sweep* as HTML.

    Args:
        sweep: what is reported.
        workspace: where data lie, for the questions behind the numbers.
        at: the round; -1 = the last one in common.
        phase: as in :func:`raysweep.reports.views.summary_rows`.
        selection: the protocol and number instead of the main asking's (``protocol.also``).

    Raises:
        SpecError: nothing was measured yet.
    """
    trials = trial_views(sweep, partial(asked.renamed, sweep=sweep, selection=selection) if selection else None)
    lines = rows_with_gaps(trials, phase=phase, at=at)
    lines = asked.with_harmonic(lines, selection) if selection else lines
    measured = [line for line in lines if line.trials]
    if not measured:
        raise SpecError(f"{sweep.name}: nothing was measured yet", hint="`raysweep show` has the state of its trials")
    compared = comparison(measured)
    kept = _kept(sweep, trials)
    shown = _examples(sweep, measured, compared, workspace, selection)
    tables = {"arms": _arms_table(lines, compared, shown.by_arm)}
    if kept:
        tables["kept"] = plain_table("kept", "What is kept of what was written", retention_table.rows(kept))
    believed = _beliefs(sweep)
    tables |= believed.tables
    text = {name: (HERE / f"report.{name}").read_text(encoding="utf-8").strip() for name in ("css", "js")}
    return _template(tables).render(
        name=sweep.name,
        round=measured[0].step,
        phase=measured[0].phase,
        about_data=_about_data(trials, selection),
        written=bool(selection and selection.protocol.max_tokens),
        css=Markup(text["css"]),
        js=Markup(text["js"]),
        script_hash=base64.b64encode(hashlib.sha256(text["js"].encode()).digest()).decode(),
        headline=[(head, [(part, _kind(part)) for part in parts]) for head, parts in sentences(measured, compared, kept)],
        tables=list(tables.values()),
        about={
            **dict.fromkeys(believed.tables, ()),
            "arms": [
                *(asked.notes(sweep, selection) if selection else []),
                *notes.about_intervals(measured),
                *notes.non_finite(trials),
            ],
            "kept": retention_table.about(kept) if kept else [],
        },
        figures=[*_figures(Picture(sweep, trials, phase, at, kept=kept)), *believed.figures],
        examples=shown,
        differing=_differing(sweep, measured, compared),
        provenance=_provenance(trials),
        commands=_commands(sweep),
        numbers=Markup(_numbers(measured)),
        version=__version__,
    )  # fmt: skip


def _template(tables: Mapping[str, PageTable]) -> Template:
    # Everything is escaped but what says that it need not be: names of arms are users' texts.
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["number"] = partial(_number, tables)
    return environment.get_template("report.html.j2")


def _notes(
    sweep: Sweep, lines: Sequence[SummaryRow], trials: Sequence[TrialView], selection: Selection | None
) -> list[str]:
    of_protocol = asked.notes(sweep, selection) if selection else []
    return [*of_protocol, *notes.about_intervals(lines), *notes.non_finite(trials)]


def _kind(part: str | Arm | Number) -> str:
    return "text" if isinstance(part, str) else type(part).__name__.lower()


def _number(tables: Mapping[str, PageTable], number: Number) -> str:
    """Return the id of the cell that *number* is linked to."""
    return tables[number.table].cell(number.row, number.column).id


def _kept(sweep: Sweep, trials: Sequence[TrialView]) -> list[Retention]:
    try:
        return retention_table.retentions(trials)
    except SpecError:  # a study that retains nothing, or no round after an edit: the page does without
        return []


def _arms_table(
    lines: Sequence[SummaryRow], compared: Comparison, with_examples: Mapping[str, Sequence[Examples]]
) -> PageTable:
    rows = sweep_table.rows(lines)
    column = f"best − arm, {compared.view.capitalize()}"
    # A link from a cell to the records behind it, where there are some.
    links = {
        (label, one.view.capitalize()): f"ex-{i}-{one.view}"
        for i, (label, found) in enumerate(with_examples.items())
        for one in found
    }
    whole = []
    for row, line in zip(rows, lines, strict=True):
        verdict = compared.verdicts.get(line.label)
        said = "the best" if line is compared.best else str(verdict) if verdict else None
        # What the sentences are about comes first: a wide table is cut on the right.
        first = {name: row[name] for name in ("arm", compared.view.capitalize()) if name in row}
        first |= {column: compared.differences.get(line.label), "best is": said}
        # One round: its step stands above the table.
        whole.append(first | {name: cell for name, cell in row.items() if name not in first and name != "edits"})
    return plain_table("arms", "Arms at one round, mean [95 % interval]", whole, links=links)


@dataclass(frozen=True, slots=True)
class ShownExamples:
    """Records behind the numbers, by arm, with what they are compared with; ``why`` there are no questions."""

    by_arm: Mapping[str, Sequence[Examples]]
    against: Mapping[str, str]
    seed: int | None
    why: str = ""


def _examples(
    sweep: Sweep,
    lines: Sequence[SummaryRow],
    compared: Comparison,
    workspace: Workspace,
    selection: Selection | None,
) -> ShownExamples:
    if compared.best is None or len(lines) < 2:
        return ShownExamples({}, {}, None)
    records, why = won_and_lost.known_records(sweep, lines, workspace)
    rest = sorted((line for line in lines if line is not compared.best), key=lambda line: -_mean(line, compared.view))
    answers = {line.label: won_and_lost.answers(sweep, line, selection) for line in [compared.best, *rest[:MOST_ARMS]]}
    by_arm, against = {}, {}
    for line in [compared.best, *rest[:MOST_ARMS]]:
        # The best arm beside the second one, all others beside the best.
        other = rest[0].label if line is compared.best else compared.best.label
        found = won_and_lost.examples(answers[line.label], answers[other], records)
        if found:
            by_arm[line.label], against[line.label] = found, other
    return ShownExamples(by_arm, against, compared.best.trials[0].seed, why)


def _mean(line: SummaryRow, view: str) -> float:
    return line.cells[view].mean if view in line.cells else -1.0


def _figures(picture: Picture) -> list[tuple[str, str, Markup]]:
    out = []
    for kind, about in DRAWN.items():
        try:
            figure = pictures.KINDS[kind](picture)
        except SpecError:  # what this sweep has no numbers for
            continue
        out.append((kind, about, inline(figure, kind, title=f"{picture.sweep.name}: {kind}", about=about)))
    return out


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What a belief sweep has besides."""

    tables: Mapping[str, PageTable]
    figures: Sequence[tuple[str, str, Markup]]


def _beliefs(sweep: Sweep) -> Beliefs:
    """Return the tables and figures of rationality; nothing for another sweep."""
    # A look at the names of files first: whoever reads the tables measures every trial once more.
    if not any(sweep.store.fragments(BELIEF_TABLE, key) for key in sweep.keys):
        return Beliefs({}, [])
    try:
        found = belief_page.tables_of(sweep)
    except StoreError:
        return Beliefs({}, [])
    tables = {
        f"belief-{name}": plain_table(
            f"belief-{name}", f"Beliefs: {caption}", [_named_first(row) for row in found[name]]
        )
        for name, caption in BELIEFS.items()
        if name in found
    }
    figures = []
    for i, (name, figure) in enumerate(belief_page.figures_of(sweep, found)):
        svg = inline(figure, f"b{i}", title=f"{sweep.name}: {name}", about=BELIEFS.get(name, name))
        figures.append((f"belief-{name}", f"Beliefs: {name}", svg))
    return Beliefs(tables, figures)


def _named_first(row: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return *row* with its arm, or else what it begins with, as its name."""
    name = "arm" if "arm" in row else next(iter(row))
    return {"arm": cell_text(row[name])} | {key: cell for key, cell in row.items() if key != name}


def _differing(
    sweep: Sweep, lines: Sequence[SummaryRow], compared: Comparison
) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return, for each line but the best, ``(key, its value, the best's)`` of what is not the same in both trials."""
    if compared.best is None:
        return []
    content = contents(sweep)

    def said(line: SummaryRow) -> dict[str, object]:
        of = content.get(str(line.trials[0].row["trial_key"]), {})
        return {k: v for k, v in of.items() if v is not None and k.partition(".")[0] not in UNSAID}

    best = said(compared.best)
    out = []
    for line in [line for line in lines if line is not compared.best][:MOST_ARMS]:
        mine = said(line)
        changed = [
            (k, str(mine.get(k, "–")), str(best.get(k, "–")))
            for k in sorted({*mine, *best})
            if mine.get(k) != best.get(k)
        ]
        out.append((line.label, changed))
    return out


def _about_data(trials: Sequence[TrialView], selection: Selection | None) -> str:
    """Return which model was edited with which data, under which study, and how it was asked."""
    names = ("study", "model", "spec.data.name") + (() if selection else ("spec.protocol.asking",))
    known = (", ".join(sorted({str(t.row[name]) for t in trials if t.row.get(name)})) for name in names)
    return " · ".join([*known, *([selection.label] if selection else [])])


def _provenance(trials: Sequence[TrialView]) -> list[tuple[str, str]]:
    def known(name: str) -> list[str]:
        return sorted({str(t.row[name]) for t in trials if t.row.get(name) is not None})

    out = [(name, ", ".join(known(name))) for name in PROVENANCE if known(name)]
    if any(t.row.get("git_dirty") for t in trials):
        out.append(("code", "had changes that were not committed"))
    return [*out, ("trials", str(len(known("trial_key")))), ("keys", ", ".join(known("trial_key")))]


def _commands(sweep: Sweep) -> list[str]:
    # Its name alone: where a search space lay on another machine helps nobody.
    run = [f"raysweep run {Path(sweep.plan.file).name}"] if sweep.plan.file else []
    return [*run, *(f"raysweep {verb} {sweep.name}" for verb in ("show", "compare", "retention", "report"))]


def _numbers(lines: Sequence[SummaryRow]) -> str:
    text = render(sweep_table.rows(lines, plain=True), Format.JSON)
    # "</script>" in a name would end the element.
    return json.dumps(json.loads(text), ensure_ascii=True).replace("<", "\\u003c")
