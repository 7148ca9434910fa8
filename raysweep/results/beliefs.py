"""A belief sweep's rows as the values that its tables and figures are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysweep.belief.asking import Reply
from raysweep.belief.pointfile import from_line
from raysweep.belief.points import EvalPoint
from raysweep.belief.report import Arm, Stage
from raysweep.config.names import labels, without_seed
from raysweep.results.rounds import status
from raysweep.results.tables import Sweep
from raysweep.results.views import groups, trial_views

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
    found = []
    for arm, keys in trials_of(sweep, APART).items():
        asked: list[EvalPoint] = []
        before, after = [], []
        for key in keys:
            own = beliefs.filter(pc.equal(beliefs["trial_key"], key))
            first = _by_record(own.filter(pc.equal(own["step"], 0)))
            last = _by_record(own.filter(own["last_step"]))
            for record, point in points.get(key, {}).items():
                if record in first and record in last:
                    asked.append(point)
                    before.append(first[record])
                    after.append(last[record])
        if asked:
            found.append(Arm(arm, asked, before, after, state.get(arm, "")))
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


def read_stages(sweep: Sweep) -> list[Stage]:
    """Return what each arm of a lifelong belief sweep answered at each step, about the points edited so far (step 0: about all)."""
    beliefs = sweep.beliefs()
    points = _points(sweep)
    state = states(sweep)
    found = []
    for arm, keys in trials_of(sweep, LIFELONG).items():
        tables = {key: beliefs.filter(pc.equal(beliefs["trial_key"], key)) for key in keys}
        for step in sorted({s for own in tables.values() for s in pc.unique(own["step"]).to_pylist()}):
            asked: list[EvalPoint] = []
            replies: list[Mapping[str, Reply]] = []
            expected: list[Mapping[str, float]] = []
            targets: list[Mapping[str, str]] = []
            for key, own in tables.items():
                rows = own.filter(pc.equal(own["step"], step))
                rows = rows.filter(rows["last_step"]) if step else rows
                by_record: dict[str, list[dict[str, Any]]] = {}
                for row in rows.to_pylist():
                    by_record.setdefault(row["record_id"], []).append(row)
                for record, mine in by_record.items():
                    asked.append(points[key][record])
                    replies.append({r["question"]: _reply(r) for r in mine})
                    expected.append({r["question"]: r["expected"] for r in mine if r["expected"] is not None})
                    targets.append({r["question"]: r["target"] for r in mine})
            found.append(Stage(arm, step, asked, replies, expected, targets, state.get(arm, "")))
    return found


def read_training(sweep: Sweep) -> dict[str, list[Mapping[str, float]]]:
    """Return the training logs by model, each a list of rows, from the first trial of each model."""
    models = {
        row["trial_key"]: row["model_digest"]
        for row in sweep.trials().select(["trial_key", "model_digest"]).to_pylist()
    }
    first = {digest: key for key, digest in reversed(models.items())}
    logs: dict[str, dict[int, dict[str, float]]] = {}
    for row in sweep.training().to_pylist():
        digest = models[row["trial_key"]]
        if first[digest] == row["trial_key"]:
            logs.setdefault(digest, {}).setdefault(row["row"], {})[row["name"]] = row["value"]
    return {digest: [rows[i] for i in sorted(rows)] for digest, rows in logs.items()}


def _points(sweep: Sweep) -> dict[str, dict[str, EvalPoint]]:
    found: dict[str, dict[str, EvalPoint]] = {}
    parsed: dict[str, EvalPoint] = {}
    for row in sweep.points().select(["trial_key", "record_id", "point"]).to_pylist():
        if row["point"] not in parsed:
            parsed[row["point"]] = from_line(row["point"])
        found.setdefault(row["trial_key"], {})[row["record_id"]] = parsed[row["point"]]
    return found


def _by_record(rows: pa.Table) -> dict[str, dict[str, Reply]]:
    found: dict[str, dict[str, Reply]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["record_id"], {})[row["question"]] = _reply(row)
    return found


def _reply(row: Mapping[str, Any]) -> Reply:
    return Reply(row["probability"], row["output"], row["correct"], row["exact"])
