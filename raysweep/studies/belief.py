"""Two belief studies on the points of a testbed: ``belief`` edits each from the pristine model, ``belief_lifelong`` one after the
other in one model.

One loop: the edits are the lifelong study's; here the model is asked what it believes, beside what the ideal agent does. What one
run of either does is in :mod:`raysweep.studies.belief_runs`. See docs/methods/belief.md; Hase et al. 2024 (arXiv 2406.19354).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from raysweep import __version__
from raysweep.config.schema import TrialSpec
from raysweep.errors import Problem, RecordError
from raysweep.lazy import lazy
from raysweep.rows import EvalRound, ProbeRow, Snapshot, TimingRow
from raysweep.studies.base import Deps, Study
from raysweep.studies.belief_points import TrialPoints
from raysweep.studies.belief_runs import IndependentEdits, SequentialEdits
from raysweep.studies.lifelong import Lifelong

if TYPE_CHECKING:
    from raysweep import summarize
else:
    summarize = lazy("raysweep.summarize")

_PROBE_COLUMNS = tuple(ProbeRow.__dataclass_fields__)
# key of a snapshot's meta
_PROBE_ROWS = "seen"


class BeliefLifelong(Study):
    """Edit T points one after the other in one model; at each round ask about them, beside the agent given all edits so far."""

    name: ClassVar[str] = "belief_lifelong"
    version: ClassVar[int] = 2  # 2: an edit is one observation to everybody else, and settles its fact for good
    metric: ClassVar[str] = "retained/rel"  # not every testbed has reworded questions, so not all have Gen and Avg
    artifact_kinds: ClassVar[tuple[str, ...]] = ("answers",)

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: what a lifelong run would refuse, and records that are no points."""
        return [*Lifelong().check(trial, available), *_without_points(trial)]

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*.

        Where the editor refuses a record, another takes its place, and the run goes on from the last round that had a snapshot.
        """
        points = TrialPoints.open(trial, deps, resume)
        if resume is None:
            points.replace_unanswerable(deps.load_model(trial.model))
        done = -1 if resume is None else resume.step
        # what the pristine model makes of points that came since the last round
        late: list[EvalRound] = []
        while True:
            run = SequentialEdits(trial, deps, points, done)
            try:
                for measured in Lifelong().execute(trial, run.observing_deps(), resume):
                    # A run that began again repeats rounds that were yielded before.
                    if measured.step > done:
                        done, resume = measured.step, _on_cpu(measured.snapshot) or resume
                        yield points.complete_round(measured, late)
                        late = []
                return
            # The editor refused a record: put another in its place and run again from the last snapshot.
            except RecordError as error:
                for position in run.refused_positions(error):
                    points.replace_point(position, error.message)
                    late += run.pristine_round(position)


class Belief(Study):
    """Edit each of T points apart, from the pristine model, and ask about it before, along the way where the editor can, and after.

    Row ``step`` = ``edit_step`` = the point's position; step 0 is the pristine model. No edit outlives its point, so a round
    has no retained phase: its ``immediate`` values are those of every point edited so far.
    """

    name: ClassVar[str] = "belief"
    version: ClassVar[int] = 2  # 2: `expected` is filled for sentences, paraphrases and the original answer too
    phases: ClassVar[tuple[str, ...]] = ("immediate",)
    metric: ClassVar[str] = "immediate/rel"
    artifact_kinds: ClassVar[tuple[str, ...]] = ("answers",)

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: what a lifelong run would refuse, records that are no points, edits in batches."""
        problems = [*Lifelong().check(trial, available), *_without_points(trial)]
        if trial.protocol.batch_size != 1:
            problems.append(
                Problem(
                    code="E-PROTOCOL",
                    message=f"the belief study edits points apart, but batch_size = {trial.protocol.batch_size}",
                    hint="use batch_size: 1, or study: belief_lifelong",
                )
            )
        if trial.protocol.keep == "edited":
            problems.append(
                Problem(
                    code="E-PROTOCOL",
                    message="protocol.keep is edited, but the belief study has a model for each point and none at the end",
                    hint="use keep: results, or study: belief_lifelong",
                )
            )
        return problems

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*; between two points the model is pristine."""
        run = IndependentEdits(trial, deps, TrialPoints.open(trial, deps, resume))
        if resume is None:
            run.points.replace_unanswerable(deps.load_model(trial.model))
        probe_rows: list[ProbeRow] = []  # of every point edited so far
        done = 0
        if resume is not None:
            done = resume.step
            saved = resume.meta[_PROBE_ROWS]
            probe_rows = [ProbeRow(**dict(zip(_PROBE_COLUMNS, values, strict=True))) for values in saved]
        # A resumed trial has asked the pristine model before.
        elif 0 in trial.protocol.rounds:
            yield run.pristine()
        for step in (r for r in trial.protocol.rounds if r > done):
            parts = run.edit(range(done, step))
            done = step
            probe_rows += [row for part in parts for row in part.rows]
            measured = EvalRound(
                step=step,
                rows=tuple(row for part in parts for row in part.rows),
                stats=tuple(row for part in parts for row in part.stats),
                timing=_total_times([row for part in parts for row in part.timing], step),
                summary=_immediate_summary(probe_rows, step),
                # No weights: every point starts from the pristine model. The rows are what later summaries need.
                snapshot=Snapshot(
                    step=step,
                    tensors={},
                    meta={
                        "version": __version__,
                        _PROBE_ROWS: [[getattr(row, name) for name in _PROBE_COLUMNS] for row in probe_rows],
                    },
                ),
            )
            yield run.points.complete_round(measured)


def _on_cpu(snapshot: Snapshot | None) -> Snapshot | None:
    """Return *snapshot* with its tensors where they take no memory of the accelerator."""
    if snapshot is None:
        return None
    return replace(snapshot, tensors={name: tensor.detach().cpu() for name, tensor in snapshot.tensors.items()})


def _without_points(trial: TrialSpec) -> list[Problem]:
    """Return a problem where the dataset of *trial* is no belief testbed."""
    if trial.data.name == "belief":
        return []
    message = f"the {trial.study} study asks about the points of a testbed; '{trial.data.name}' has none"
    return [Problem(code="E-DATA", message=message, hint="data: {name: belief}")]


def _total_times(rows: Sequence[TimingRow], step: int) -> tuple[TimingRow, ...]:
    """Return one row per phase, with the seconds and counts of all *rows* of it."""
    by_phase: dict[str, list[TimingRow]] = {}
    for row in rows:
        by_phase.setdefault(row.phase, []).append(row)
    return tuple(
        replace(
            of_phase[0],
            step=step,
            seconds=sum(row.seconds for row in of_phase),
            count=sum(row.count for row in of_phase),
        )
        for _, of_phase in sorted(by_phase.items())
    )


def _immediate_summary(rows: Sequence[ProbeRow], step: int) -> Mapping[str, float]:
    """Return the summary of all points edited so far, each right after its own edit."""
    columns: dict[str, list[object]] = {name: [getattr(row, name) for row in rows] for name in _PROBE_COLUMNS}
    return summarize.summary(columns, step, 1, phases=Belief.phases)
