"""A belief sweep's rows as the values that its tables and figures are made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import LogicalScoring, scoring_of_points
from raysweep.belief.points.jsonl import from_line
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.report.tables import Arm, Stage
from raysweep.belief.spec import BeliefSpec
from raysweep.config.names import labels, without_seed
from raysweep.reports.rounds import status
from raysweep.reports.views import groups, trial_views
from raysweep.results.tables import Sweep

APART, LIFELONG = "belief", "belief_lifelong"
Panel = Mapping[int, Mapping[str, Reply]]  # by inner step, then by question


def trials_of(sweep: Sweep, study: str) -> dict[str, list[str]]:
    """Return the keys of the trials of *study* that have begun, by what the latest plan calls them, in its order.

    An arm whose swept keys vary has a name for each of its configurations, as in ``raysweep show``.
    """
    studies = {row["trial_key"]: row["study"] for row in sweep.trials().select(["trial_key", "study"]).to_pylist()}
    names = [name for name in sweep.places if name.planned]
    texts = labels([(name.arm, without_seed(name.point)) for name in names])
    arms: dict[str, list[str]] = {}
    for name, text in zip(names, texts, strict=True):
        if studies.get(name.key) == study:
            arms.setdefault(text, []).append(name.key)
    return arms


def states(sweep: Sweep) -> dict[str, str]:
    """Return where the trials of each arm stand, by what the latest plan calls it; not those of which all are simply done."""
    found = {label: status(members) for label, members in groups(trial_views(sweep))}
    return {label: text for label, text in found.items() if text != "done"}


def read_arms(sweep: Sweep) -> list[Arm]:
    """Return what each arm answered before and after each edit, over all its trials; points without an end are left out."""
    beliefs = sweep.beliefs()
    points = _points(sweep)
    state = states(sweep)
    scoring = _scoring(sweep, points)
    found = []
    for arm, keys in trials_of(sweep, APART).items():
        asked: list[EvalPoint] = []
        before, after, how = [], [], []
        for key in keys:
            own = beliefs.filter(pc.equal(beliefs["trial_key"], key))
            first = _by_record(own.filter(pc.equal(own["step"], 0)))
            last = _by_record(own.filter(own["last_step"]))
            for record, point in points.get(key, {}).items():
                if record in first and record in last:
                    asked.append(point)
                    before.append(first[record])
                    after.append(last[record])
                    how.append(scoring[key][record])
        if asked:
            found.append(Arm(arm, asked, before, after, state=state.get(arm, ""), scoring=how))
    return found


def read_panels(sweep: Sweep, arm: Arm, chosen: Sequence[int]) -> list[Panel]:
    """Return what *arm* answered along the edits of the points numbered *chosen* (in its first trial)."""
    key = trials_of(sweep, APART)[arm.name][0]
    beliefs = sweep.beliefs()
    own = beliefs.filter(pc.equal(beliefs["trial_key"], key))
    records = {point.id: record for record, point in _points(sweep)[key].items()}
    panels: list[Panel] = []
    for i in chosen:
        rows = own.filter(pc.equal(own["record_id"], records[arm.points[i].id])).to_pylist()
        steps: dict[int, dict[str, Reply]] = {}
        for row in rows:
            steps.setdefault(row["inner_step"], {})[row["question"]] = _reply(row)
        panels.append(dict(sorted(steps.items())))
    return panels


@dataclass(frozen=True, slots=True)
class Run:
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


def read_runs(sweep: Sweep) -> list[Run]:
    """Return every trial that edited points apart and whose results hold their setting, in the order of the plan."""
    beliefs, points, rows = sweep.beliefs(), _points(sweep), _point_rows(sweep)
    scoring, logs = _scoring(sweep, points), _logs(sweep)
    models = {row["trial_key"]: row["model"] for row in sweep.trials().select(["trial_key", "model"]).to_pylist()}
    found = []
    for arm, keys in trials_of(sweep, APART).items():
        for key in (k for k in keys if k in rows):
            spec = read_setting_of(rows[key][0])
            own = beliefs.filter(pc.equal(beliefs["trial_key"], key))
            ended = set(own.filter(own["last_step"])["record_id"].to_pylist())
            panels: dict[str, dict[int, dict[str, Reply]]] = {}
            for row in own.to_pylist():
                panels.setdefault(row["record_id"], {}).setdefault(row["inner_step"], {})[row["question"]] = _reply(row)
            records = [r for r in points[key] if r in ended and 0 in panels[r]]
            if spec is None or not records:
                continue
            relations = int(json.loads(rows[key][0]["testbed"])["relations"])
            chosen, how = [points[key][r] for r in records], [scoring[key][r] for r in records]
            steps = [panels[r] for r in records]
            found.append(Run(arm, key, models[key], spec, relations, chosen, steps, how, logs.get(key, [])))
    return found


def read_stages(sweep: Sweep) -> list[Stage]:
    """Return what each arm of a lifelong belief sweep answered at each step, about the points edited so far (step 0: about all)."""
    beliefs = sweep.beliefs()
    points = _points(sweep)
    state = states(sweep)
    scoring = _scoring(sweep, points)
    found = []
    for arm, keys in trials_of(sweep, LIFELONG).items():
        tables = {key: beliefs.filter(pc.equal(beliefs["trial_key"], key)) for key in keys}
        for step in sorted({s for own in tables.values() for s in pc.unique(own["step"]).to_pylist()}):
            asked: list[EvalPoint] = []
            replies: list[Mapping[str, Reply]] = []
            expected: list[Mapping[str, float]] = []
            targets: list[Mapping[str, str]] = []
            how: list[LogicalScoring] = []
            for key, own in tables.items():
                rows = own.filter(pc.equal(own["step"], step))
                rows = rows.filter(rows["last_step"]) if step else rows
                by_record: dict[str, list[dict[str, Any]]] = {}
                for row in rows.to_pylist():
                    by_record.setdefault(row["record_id"], []).append(row)
                for record, mine in by_record.items():
                    if record not in points[key]:  # refused, and replaced since
                        continue
                    asked.append(points[key][record])
                    replies.append({r["question"]: _reply(r) for r in mine})
                    expected.append({r["question"]: r["expected"] for r in mine if r["expected"] is not None})
                    targets.append({r["question"]: r["target"] for r in mine})
                    how.append(scoring[key][record])
            found.append(Stage(arm, step, asked, replies, expected, targets, state=state.get(arm, ""), scoring=how))
    return found


def _scoring(sweep: Sweep, points: Mapping[str, Mapping[str, EvalPoint]]) -> dict[str, dict[str, LogicalScoring]]:
    """Return how each point's logical coherence is scored, by trial and record, as the trial's setting says (``parity``).

    A batch is ``protocol.eval_batch`` points in the trial's order. Results that do not hold their setting are scored as corrected.
    """
    batches = {row["trial_key"]: row["spec.protocol.eval_batch"] for row in sweep.trials().to_pylist()}
    found = {}
    for key, rows in _point_rows(sweep).items():
        setting = read_setting_of(rows[0])
        parity = setting.parity if setting is not None else None
        how = scoring_of_points(list(points[key].values()), parity, int(batches[key]))
        found[key] = dict(zip(points[key], how, strict=True))
    return found


def read_setting_of(row: Mapping[str, Any]) -> BeliefSpec | None:
    """Return the setting that a row of ``points`` comes from; None if it was written before rows said so."""
    return None if row["testbed"] is None else BeliefSpec.model_validate(json.loads(row["testbed"])["spec"])


def read_choice(sweep: Sweep) -> list[Mapping[str, Any]]:
    """Return, trial by trial, how the points came about: how many there are, how many facts were passed over when they were drawn,
    how many were replaced when they were edited, and why.
    """
    rows = _point_rows(sweep)
    named = [(arm, key) for study in (APART, LIFELONG) for arm, keys in trials_of(sweep, study).items() for key in keys]
    found: list[Mapping[str, Any]] = []
    for arm, key in named:
        own = rows.get(key, [])
        about = json.loads(own[0]["testbed"] or "{}") if own else {}
        passed, refused = about.get("passed_over", {}), Counter(r["refusal"] for r in own if r["refusal"])
        why = "; ".join(f"{reason} ({n})" for reason, n in (*passed.items(), *refused.items()))
        counts = {"points": len(own), "passed over": sum(passed.values()), "replaced": refused.total(), "why": why}
        found.append({"arm": arm, "trial_key": key, **counts})
    return found


def read_training(sweep: Sweep) -> dict[str, list[Mapping[str, float]]]:
    """Return the training logs, each a list of rows, by model and setting (what a log comes to depends on who reads it)."""
    names = ["trial_key", "model_digest", "data_digest"]
    trials = {row["trial_key"]: row for row in sweep.trials().select(names).to_pylist()}
    found: dict[str, list[Mapping[str, float]]] = {}
    for key, log in _logs(sweep).items():
        found.setdefault(f"{trials[key]['model_digest']} {trials[key]['data_digest']}", log)
    return found


def _logs(sweep: Sweep) -> dict[str, list[Mapping[str, float]]]:
    """Return the log of each trial's model, by trial in the order of the plan."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for row in sweep.training().to_pylist():
        rows.setdefault(row["trial_key"], {}).setdefault(row["row"], {})[row["name"]] = row["value"]
    return {key: [rows[key][i] for i in sorted(rows[key])] for key in sweep.keys if key in rows}


def _points(sweep: Sweep) -> dict[str, dict[str, EvalPoint]]:
    """Return the points that were edited, or will be, by trial and record, in the trial's order."""
    found: dict[str, dict[str, EvalPoint]] = {}
    parsed: dict[str, EvalPoint] = {}
    for key, rows in _point_rows(sweep).items():
        for row in rows:
            if row["point"] not in parsed:
                parsed[row["point"]] = from_line(row["point"])
            found.setdefault(key, {})[row["record_id"]] = parsed[row["point"]]
    return found


def _point_rows(sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of points by trial, by rising position; one that was refused is not among them, what replaced it is."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    names = ["trial_key", "record_id", "edit_step", "point", "replaces", "refusal", "testbed"]
    for row in sweep.points().select(names).to_pylist():
        own = found.setdefault(row["trial_key"], {})
        if row["edit_step"] not in own or row["replaces"] is not None:
            own[row["edit_step"]] = row
    return {key: [rows[i] for i in sorted(rows)] for key, rows in found.items()}


def _by_record(rows: pa.Table) -> dict[str, dict[str, Reply]]:
    found: dict[str, dict[str, Reply]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["record_id"], {})[row["question"]] = _reply(row)
    return found


def _reply(row: Mapping[str, Any]) -> Reply:
    return Reply(row["probability"], row["output"], row["correct"], row["exact"])
