"""Records behind a cell: where an arm was right and the other was not, and the other way round, with what was answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from raysweep.data import open_dataset
from raysweep.errors import RaysweepError
from raysweep.measures import VIEWS
from raysweep.records import EditRecord
from raysweep.reports.views import SummaryRow
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import PROBES
from raysweep.results.tables import Sweep
from raysweep.workspace import Workspace

log = logging.getLogger(__name__)

MOST = 10
"""Records of each kind."""
TEXTS = ("record_id", "probe_kind", "metric", "answer")
COLUMNS = ("step", "edit_step", "record_id", "probe_kind", "probe_index", "metric", "value", "answer")


@dataclass(frozen=True, slots=True)
class Example:
    """One question under one seed, as two arms answered it.

    Attributes:
        record: the record's id.
        prompt, target: the question and what was asked for; empty where the data are not here.
        answer, other: what the arm and the one that it is compared with answered (arg-max tokens, decoded).
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


Row = tuple[float, str, int]  # value, answer, index of the probe


def answers(sweep: Sweep, line: SummaryRow) -> dict[str, dict[tuple[str, int], Row]]:
    """Return ``{view: {(record, probe): row}}`` of the first seed of *line*, of the records in scope at its round."""
    trial = line.trials[0]
    key, retained = str(trial.row["trial_key"]), line.phase == "retained"
    table = read_fragments(sweep.store, PROBES, sweep.store.fragments(PROBES, key), columns=COLUMNS, coded=TEXTS)
    # What was measured right after the edit has the step of the edit, or of its batch; the last row of a record is it.
    mask = pc.equal(table["step"], line.step) if retained else pc.less_equal(table["edit_step"], table["step"])
    table = table.filter(pc.and_(mask, pc.less_equal(table["edit_step"], line.step)))
    out: dict[str, dict[tuple[str, int], Row]] = {}
    for view in ("rel", "gen", "loc"):
        kind, metric = VIEWS[view]
        rows = table.filter(pc.and_(pc.equal(table["probe_kind"], kind), pc.equal(table["metric"], metric)))
        for row in rows.to_pylist():
            if row["value"] is not None:
                out.setdefault(view, {})[row["record_id"], row["probe_index"]] = (
                    row["value"],
                    row["answer"],
                    row["probe_index"],
                )
    return out


def examples(
    mine: Mapping[str, Mapping[tuple[str, int], Row]],
    others: Mapping[str, Mapping[tuple[str, int], Row]],
    records: Mapping[str, EditRecord],
) -> list[Examples]:
    """Return, for each view, where *mine* is better and where it is worse than *others*; the clearest first, then by record."""
    out = []
    for view, rows in mine.items():
        shared = [(at, row, others[view][at]) for at, row in rows.items() if at in others.get(view, {})]
        ranked = sorted(shared, key=lambda item: (-abs(item[1][0] - item[2][0]), item[0]))
        won = [item for item in ranked if item[1][0] > item[2][0]]
        lost = [item for item in ranked if item[1][0] < item[2][0]]
        if won or lost:
            picked = [[_example(at, row, other, records) for at, row, other in part[:MOST]] for part in (won, lost)]
            out.append(Examples(view, picked[0], picked[1], (len(won), len(lost))))
    return out


def _example(at: tuple[str, int], row: Row, other: Row, records: Mapping[str, EditRecord]) -> Example:
    record = records.get(at[0])
    probe = record.probes[at[1]] if record is not None and at[1] < len(record.probes) else None
    return Example(
        at[0], probe.prompt if probe else "", probe.target if probe else "", row[1], other[1], row[0], other[0]
    )


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
