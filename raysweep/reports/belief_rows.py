"""A belief sweep's rows as the values that its tables and figures are made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import LogicalScoring, scoring_of_points
from raysweep.belief.points.jsonl import from_line
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.report.tables import Arm, Row, Stage
from raysweep.belief.spec import BeliefSpec
from raysweep.config.names import labels, without_seed
from raysweep.reports.rounds import status
from raysweep.reports.views import groups, trial_views
from raysweep.results.tables import Sweep

INDEPENDENT, LIFELONG = "belief", "belief_lifelong"  # names of the studies
Panel = Mapping[int, Mapping[str, Reply]]  # by inner step, then by question


class AnswerRow(TypedDict):
    """The columns of a row of ``beliefs`` that are read here (schema ``beliefs``)."""

    record_id: str
    question: str
    target: str
    expected: float | None
    inner_step: int
    probability: float
    output: str
    correct: bool
    exact: bool


class PointRow(TypedDict):
    """The columns of a row of ``points`` that are read here (schema ``points``)."""

    trial_key: str
    record_id: str
    edit_step: int
    point: str
    replaces: str | None
    refusal: str | None
    testbed: str | None


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a belief sweep's models were asked, with what the questions were about.

    Attributes:
        beliefs: the rows of all trials.
        points: the points by trial and record.
        scoring: how each is scored, likewise.
        states: where the trials of an arm stand, by what the latest plan calls it; arms that are simply done are not there.
    """

    beliefs: pa.Table
    points: Mapping[str, Mapping[str, EvalPoint]]
    scoring: Mapping[str, Mapping[str, LogicalScoring]]
    states: Mapping[str, str]

    @classmethod
    def of_sweep(cls, sweep: Sweep) -> _Answers:
        """Return those of *sweep*."""
        points = _points(sweep)
        return cls(sweep.beliefs(), points, _scoring(sweep, points), states(sweep))

    def of_trial(self, key: str) -> pa.Table:
        """Return the rows of the trial *key*."""
        return self.beliefs.filter(pc.equal(self.beliefs["trial_key"], key))


def trial_keys_by_arm(sweep: Sweep, study: str) -> dict[str, list[str]]:
    """Return the keys of the trials of *study* that have begun, by what the latest plan calls them, in its order.

    An arm whose swept keys vary has a name for each of its configurations, as in ``raysweep show``.
    """
    studies = {row["trial_key"]: row["study"] for row in sweep.trials().select(["trial_key", "study"]).to_pylist()}
    # Trials of an older plan are in the folder too, and are not shown.
    names = [name for name in sweep.places if name.planned]
    texts = labels([(name.arm, without_seed(name.point)) for name in names])
    arms: dict[str, list[str]] = {}
    for name, text in zip(names, texts, strict=True):
        if studies.get(name.key) == study:
            arms.setdefault(text, []).append(name.key)
    return arms


def states(sweep: Sweep) -> dict[str, str]:
    """Return where the trials of each arm stand, by what the latest plan calls it; not those of which all are simply done."""
    by_arm = {label: status(members) for label, members in groups(trial_views(sweep))}
    return {label: text for label, text in by_arm.items() if text != "done"}


def read_arms(sweep: Sweep) -> list[Arm]:
    """Return what each arm answered before and after each edit, over all its trials; points without an end are left out."""
    answers = _Answers.of_sweep(sweep)
    arms = []
    for name, keys in trial_keys_by_arm(sweep, INDEPENDENT).items():
        edited: list[EvalPoint] = []
        before, after, scorings = [], [], []
        for key in keys:
            rows = answers.of_trial(key)
            # Step 0 is asked before any edit; `last_step` marks the end of each edit, whatever its length.
            first = _by_record(rows.filter(pc.equal(rows["step"], 0)))
            last = _by_record(rows.filter(rows["last_step"]))
            for record, point in answers.points.get(key, {}).items():
                # A point that was begun and not ended would count as an edit that did nothing.
                if record in first and record in last:
                    edited.append(point)
                    before.append(first[record])
                    after.append(last[record])
                    scorings.append(answers.scoring[key][record])
        if edited:
            arms.append(Arm(name, edited, before, after, state=answers.states.get(name, ""), scoring=scorings))
    return arms


def read_panels(sweep: Sweep, arm: Arm, chosen: Sequence[int]) -> list[Panel]:
    """Return what *arm* answered along the edits of the points numbered *chosen* (in its first trial).

    Args:
        sweep: the results.
        arm: of :func:`read_arms`.
        chosen: positions in ``arm.points``.
    """
    key = trial_keys_by_arm(sweep, INDEPENDENT)[arm.name][0]
    beliefs = sweep.beliefs()
    trial_rows = beliefs.filter(pc.equal(beliefs["trial_key"], key))
    # A point's id is its own; rows name the record that the trial made of it.
    records = {point.id: record for record, point in _points(sweep)[key].items()}
    panels: list[Panel] = []
    for i in chosen:
        of_point = pc.equal(trial_rows["record_id"], records[arm.points[i].id])
        rows = trial_rows.filter(of_point).to_pylist()
        # By step of the edit, then by question.
        steps: dict[int, dict[str, Reply]] = {}
        for row in rows:
            steps.setdefault(row["inner_step"], {})[row["question"]] = _reply(row)
        panels.append(dict(sorted(steps.items())))
    return panels


@dataclass(frozen=True, slots=True)
class TrialRun:
    """One trial of the ``belief`` study: its setting, and what its models answered along each edit.

    Attributes:
        arm, key, model: of the trial.
        spec: the setting.
        relations: of its graph.
        points: those whose edit was asked about before and after.
        steps: what was answered about each.
        scoring: how each is scored.
        log: of the model's training.
    """

    arm: str
    key: str
    model: str
    spec: BeliefSpec
    relations: int
    points: Sequence[EvalPoint]
    steps: Sequence[Panel]
    scoring: Sequence[LogicalScoring]
    log: Sequence[Mapping[str, float]]


def read_runs(sweep: Sweep) -> list[TrialRun]:
    """Return every trial that edited points apart and whose results hold their setting, in the order of the plan."""
    beliefs, points, rows = sweep.beliefs(), _points(sweep), _point_rows(sweep)
    scoring, logs = _scoring(sweep, points), _logs(sweep)
    models = {row["trial_key"]: row["model"] for row in sweep.trials().select(["trial_key", "model"]).to_pylist()}
    runs = []
    for arm, keys in trial_keys_by_arm(sweep, INDEPENDENT).items():
        # Trials that have begun and hold no points yet have nothing to read.
        for key in (k for k in keys if k in rows):
            testbed, spec = rows[key][0]["testbed"], setting_of_row(rows[key][0])
            trial_rows = beliefs.filter(pc.equal(beliefs["trial_key"], key))
            ended = set(trial_rows.filter(trial_rows["last_step"])["record_id"].to_pylist())
            panels: dict[str, dict[int, dict[str, Reply]]] = {}
            for row in trial_rows.to_pylist():
                panels.setdefault(row["record_id"], {}).setdefault(row["inner_step"], {})[row["question"]] = _reply(row)
            # Asked before its edit and after it.
            records = [r for r in points[key] if r in ended and 0 in panels[r]]
            if testbed is None or spec is None or not records:
                continue
            # The number of relations is part of the published file name.
            relations = int(json.loads(testbed)["relations"])
            edited, scorings = [points[key][r] for r in records], [scoring[key][r] for r in records]
            steps = [panels[r] for r in records]
            log = logs.get(key, [])
            runs.append(TrialRun(arm, key, models[key], spec, relations, edited, steps, scorings, log))
    return runs


def read_stages(sweep: Sweep) -> list[Stage]:
    """Return what each arm of a lifelong belief sweep answered at each step, about the points edited so far (step 0: about all)."""
    answers = _Answers.of_sweep(sweep)
    stages = []
    for arm, keys in trial_keys_by_arm(sweep, LIFELONG).items():
        tables = {key: answers.of_trial(key) for key in keys}
        # Seeds may be at different steps while the sweep runs; a step has those that have come to it.
        for step in sorted({s for table in tables.values() for s in pc.unique(table["step"]).to_pylist()}):
            edited: list[EvalPoint] = []
            replies: list[Mapping[str, Reply]] = []
            expected: list[Mapping[str, float]] = []
            targets: list[Mapping[str, str]] = []
            scorings: list[LogicalScoring] = []
            for key, table in tables.items():
                for record, rows in _rows_by_record(table, step).items():
                    # Its edit was refused, and another point has taken its place since.
                    if record not in answers.points[key]:
                        continue
                    edited.append(answers.points[key][record])
                    replies.append({r["question"]: _reply(r) for r in rows})
                    expected.append({r["question"]: r["expected"] for r in rows if r["expected"] is not None})
                    targets.append({r["question"]: r["target"] for r in rows})
                    scorings.append(answers.scoring[key][record])
            status_text = answers.states.get(arm, "")
            stages.append(Stage(arm, step, edited, replies, expected, targets, state=status_text, scoring=scorings))
    return stages


def _rows_by_record(beliefs: pa.Table, step: int) -> dict[str, list[AnswerRow]]:
    """Return the rows of *beliefs* at *step*, after the last step of each edit, by record."""
    rows = beliefs.filter(pc.equal(beliefs["step"], step))
    rows = rows.filter(rows["last_step"]) if step else rows
    by_record: dict[str, list[AnswerRow]] = {}
    for row in rows.to_pylist():
        by_record.setdefault(row["record_id"], []).append(row)
    return by_record


def _scoring(sweep: Sweep, points: Mapping[str, Mapping[str, EvalPoint]]) -> dict[str, dict[str, LogicalScoring]]:
    """Return how each point's logical coherence is scored, by trial and record, as the trial's setting says (``parity``).

    A batch is ``protocol.eval_batch`` points in the trial's order. Results that do not hold their setting are scored as corrected.
    """
    batches = {row["trial_key"]: row["spec.protocol.eval_batch"] for row in sweep.trials().to_pylist()}
    by_trial = {}
    for key, rows in _point_rows(sweep).items():
        setting = setting_of_row(rows[0])
        parity = setting.parity if setting is not None else None
        scorings = scoring_of_points(list(points[key].values()), parity, int(batches[key]))
        by_trial[key] = dict(zip(points[key], scorings, strict=True))
    return by_trial


def setting_of_row(row: PointRow) -> BeliefSpec | None:
    """Return the setting that a row of ``points`` comes from; None if it was written before rows said so."""
    return None if row["testbed"] is None else BeliefSpec.model_validate(json.loads(row["testbed"])["spec"])


def read_point_choice(sweep: Sweep) -> list[Row]:
    """Return, trial by trial, how the points came about: how many there are, how many facts were passed over when they were drawn,
    how many were replaced when they were edited, and why.
    """
    rows = _point_rows(sweep)
    trials = [
        (arm, key)
        for study in (INDEPENDENT, LIFELONG)
        for arm, keys in trial_keys_by_arm(sweep, study).items()
        for key in keys
    ]
    choices: list[Row] = []
    for arm, key in trials:
        points = rows.get(key, [])
        # Every row of a trial tells the same testbed, so the first is enough.
        testbed = json.loads(points[0]["testbed"] or "{}") if points else {}
        passed, refused = testbed.get("passed_over", {}), Counter(r["refusal"] for r in points if r["refusal"])
        why = "; ".join(f"{reason} ({n})" for reason, n in (*passed.items(), *refused.items()))
        counts = {"points": len(points), "passed over": sum(passed.values()), "replaced": refused.total(), "why": why}
        choices.append({"arm": arm, "trial_key": key, **counts})
    return choices


def read_training(sweep: Sweep) -> dict[str, list[Mapping[str, float]]]:
    """Return the training logs, each a list of rows, by model and setting (what a log comes to depends on who reads it)."""
    names = ["trial_key", "model_digest", "data_digest"]
    trials = {row["trial_key"]: row for row in sweep.trials().select(names).to_pylist()}
    # Seeds share a model, and so its log; the first one stands for all of them.
    logs: dict[str, list[Mapping[str, float]]] = {}
    for key, log in _logs(sweep).items():
        logs.setdefault(f"{trials[key]['model_digest']} {trials[key]['data_digest']}", log)
    return logs


def _logs(sweep: Sweep) -> dict[str, list[Mapping[str, float]]]:
    """Return the log of each trial's model, by trial in the order of the plan."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for row in sweep.training().to_pylist():
        rows.setdefault(row["trial_key"], {}).setdefault(row["row"], {})[row["name"]] = row["value"]
    return {key: [rows[key][i] for i in sorted(rows[key])] for key in sweep.keys if key in rows}


def _points(sweep: Sweep) -> dict[str, dict[str, EvalPoint]]:
    """Return the points that were edited, or will be, by trial and record, in the trial's order."""
    by_trial: dict[str, dict[str, EvalPoint]] = {}
    parsed: dict[str, EvalPoint] = {}  # trials share points, so each line is read once
    for key, rows in _point_rows(sweep).items():
        for row in rows:
            if row["point"] not in parsed:
                parsed[row["point"]] = from_line(row["point"])
            by_trial.setdefault(key, {})[row["record_id"]] = parsed[row["point"]]
    return by_trial


def _point_rows(sweep: Sweep) -> dict[str, list[PointRow]]:
    """Return the rows of points by trial, by rising position; one that was refused is not among them, what replaced it is."""
    by_trial: dict[str, dict[int, PointRow]] = {}
    names = ["trial_key", "record_id", "edit_step", "point", "replaces", "refusal", "testbed"]
    for row in sweep.points().select(names).to_pylist():
        by_position = by_trial.setdefault(row["trial_key"], {})
        # The row that replaces another one has its position, and comes later.
        if row["edit_step"] not in by_position or row["replaces"] is not None:
            by_position[row["edit_step"]] = row
    return {key: [rows[i] for i in sorted(rows)] for key, rows in by_trial.items()}


def _by_record(rows: pa.Table) -> dict[str, dict[str, Reply]]:
    """Return the replies of *rows* by record, then by question."""
    replies: dict[str, dict[str, Reply]] = {}
    for row in rows.to_pylist():
        replies.setdefault(row["record_id"], {})[row["question"]] = _reply(row)
    return replies


def _reply(row: AnswerRow) -> Reply:
    return Reply(row["probability"], row["output"], row["correct"], row["exact"])
