"""Records behind a cell: where an arm was right and the other was not, and the other way round, with what was answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from raysweep.data import open_dataset
from raysweep.errors import RaysweepError
from raysweep.measures import VIEWS
from raysweep.protocols import NORMALISED, SAME, WHOLE, Selection
from raysweep.records import EditRecord
from raysweep.reports.asked import renamed
from raysweep.reports.views import SummaryRow
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import ANSWERS, PROBES
from raysweep.results.tables import Sweep
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

MOST = 10
"""Records of each kind."""
TEXTS = ("record_id", "probe_kind", "metric", "answer")
SHOWN = ("rel", "gen", "loc")
WRITTEN = (
    "step", "edit_step", "record_id", "probe_kind", "probe_index", "protocol", "prompt", "target", "raw", "raw_whole",
    NORMALISED.name, WHOLE.name, SAME,
)  # fmt: skip
COLUMNS = ("step", "edit_step", "record_id", "probe_kind", "probe_index", "metric", "value", "answer")


@dataclass(frozen=True, slots=True)
class Example:
    """One question under one seed, as two arms answered it.

    Attributes:
        record: the record's id.
        prompt, target: the question and what was asked for; empty where the data are not here.
        answer, other: what the arm and the one that it is compared with answered: arg-max tokens, or what they wrote, decoded.
        value, other_value: what that is worth.
    """

    record: str
    prompt: str
    target: str
    answer: str
    other: str
    value: float
    other_value: float


@dataclass(frozen=True, slots=True)
class Examples:
    """Where an arm won and lost against another, by *view*; ``counts`` has how many there are in all."""

    view: str
    won: Sequence[Example]
    lost: Sequence[Example]
    counts: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Answered:
    """What one arm made of one question: its value, what it answered, and the question where the rows have it."""

    value: float
    answer: str
    prompt: str = ""
    target: str = ""


Place = tuple[str, int]  # a record's id and the index of a probe of it
ByView = Mapping[str, Mapping[Place, Answered]]


def answers(sweep: Sweep, line: SummaryRow, selection: Selection | None = None) -> ByView:
    """Return what the first seed of *line* answered at its round, by view, of the records in scope.

    With a *selection* that lets the model write, it is what was written (table ``answers``), prompts as they were sent.
    """
    key = str(line.trials[0].row["trial_key"])
    if selection is not None and selection.protocol.max_tokens:
        return _written(sweep, key, line.step, selection)
    table = read_fragments(sweep.store, PROBES, sweep.store.fragments(PROBES, key), columns=COLUMNS, coded=TEXTS)
    # What was measured right after the edit has the step of the edit, or of its batch; the last row of a record is it.
    at_round = line.phase == "retained"
    mask = pc.equal(table["step"], line.step) if at_round else pc.less_equal(table["edit_step"], table["step"])
    table = table.filter(pc.and_(mask, pc.less_equal(table["edit_step"], line.step)))
    if selection is not None:
        table = renamed(key, table, sweep=sweep, selection=selection)
    out: dict[str, dict[Place, Answered]] = {}
    for view in SHOWN:
        kind, metric = VIEWS[view]
        rows = table.filter(pc.and_(pc.equal(table["probe_kind"], kind), pc.equal(table["metric"], metric)))
        for row in rows.to_pylist():
            if row["value"] is not None:
                out.setdefault(view, {})[row["record_id"], row["probe_index"]] = Answered(row["value"], row["answer"])
    return out


def _written(sweep: Sweep, key: str, step: int, selection: Selection) -> ByView:
    """Return what the trial *key* wrote at a round under the protocol of *selection*."""
    names = sweep.store.fragments(ANSWERS, key)
    table = read_fragments(sweep.store, ANSWERS, names, columns=WRITTEN)
    mask = pc.and_(pc.equal(table["protocol"], selection.label), pc.equal(table["step"], step))
    view_of = {VIEWS[view][0]: view for view in SHOWN}
    # A judge's verdicts lie elsewhere; the answers are the same, so the published comparison ranks them.
    number = WHOLE.name if selection.scorer == WHOLE else NORMALISED.name
    out: dict[str, dict[Place, Answered]] = {}
    for row in table.filter(mask).to_pylist():
        # Of locality there is no right answer: the same as the unedited model's counts.
        value = row[SAME] if row[number] is None else row[number]
        view = view_of.get(row["probe_kind"])
        if view is not None and value is not None and row["edit_step"] <= step:
            raw = row["raw_whole"] if number == WHOLE.name and row["raw_whole"] is not None else row["raw"]
            answered = Answered(value, raw, row["prompt"], row["target"])
            out.setdefault(view, {})[row["record_id"], row["probe_index"]] = answered
    return out


def examples(mine: ByView, others: ByView, records: Mapping[str, EditRecord]) -> list[Examples]:
    """Return, for each view, where *mine* is better and where it is worse than *others*; the clearest first, then by record."""
    out = []
    for view, rows in mine.items():
        shared = [(at, row, others[view][at]) for at, row in rows.items() if at in others.get(view, {})]
        ranked = sorted(shared, key=lambda item: (-abs(item[1].value - item[2].value), item[0]))
        won = [item for item in ranked if item[1].value > item[2].value]
        lost = [item for item in ranked if item[1].value < item[2].value]
        if won or lost:
            picked = [[_example(at, row, other, records) for at, row, other in part[:MOST]] for part in (won, lost)]
            out.append(Examples(view, picked[0], picked[1], (len(won), len(lost))))
    return out


def _example(at: Place, row: Answered, other: Answered, records: Mapping[str, EditRecord]) -> Example:
    record = records.get(at[0])
    probe = record.probes[at[1]] if record is not None and at[1] < len(record.probes) else None
    # As it was sent, where that is stored; else as the data have it.
    prompt, target = row.prompt or (probe.prompt if probe else ""), row.target or (probe.target if probe else "")
    return Example(at[0], prompt, target, row.answer, other.answer, row.value, other.value)


def known_records(sweep: Sweep, lines: Sequence[SummaryRow], workspace: Workspace) -> tuple[dict[str, EditRecord], str]:
    """Return the records of the data of *lines* by id; none, and why, where they are not here or are others."""
    for line in lines:
        for trial in line.trials[:1]:
            _, spec = sweep.records[str(trial.row["trial_key"])].about()
            try:
                return {record.id: record for record in open_dataset(spec.data, workspace)}, ""
            except (RaysweepError, OSError) as error:
                log.info("the report has no questions: %s", error)
                return {}, str(error).splitlines()[0]
    return {}, ""
