"""The points of a trial of a belief study, in its order: what takes the place of one that cannot be edited, what was answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from raysweep.config.schema import TrialSpec
from raysweep.data.belief_points import edit_record, record_id
from raysweep.errors import RecordError
from raysweep.lazy import lazy
from raysweep.records import EditRecord
from raysweep.rows import BeliefRow, EvalRound, PointRow, Snapshot, TrainingRow
from raysweep.studies.base import Deps
from raysweep.studies.edit_group import ordered_records

if TYPE_CHECKING:
    from raysweep.belief.graph import artifact as graph_artifact
    from raysweep.belief.lm.asking import Reply
    from raysweep.belief.points import jsonl as points_jsonl
    from raysweep.belief.points.types import EvalPoint, PointQuestion
    from raysweep.belief.testbed import Testbed
    from raysweep.models import tokens
    from raysweep.models.lm import LanguageModel
else:
    graph_artifact = lazy("raysweep.belief.graph.artifact")
    points_jsonl = lazy("raysweep.belief.points.jsonl")
    tokens = lazy("raysweep.models.tokens")

log = logging.getLogger(__name__)
# key of a snapshot's meta
_REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Replacement:
    """A point that was put in the place of another: its position, the records of both, and why."""

    position: int
    refused: str
    chosen: str
    reason: str


@dataclass(slots=True)
class TrialPoints:
    """The points of a trial and what was answered about them since the last round.

    A point that the model's tokenizer or the editor refuses is replaced by the testbed's next spare one, so that the planned number
    of edits is the number made. Which spare comes where depends on the trial alone; a resumed trial learns it from its snapshot.

    Attributes:
        trial: whose points they are.
        testbed: where they come from.
        records: the records in the trial's order.
        points: the same as points.
        spares: those that are left.
        replacements: in the order in which they came.
        rows: the answers since the last round.
    """

    trial: TrialSpec
    testbed: Testbed
    records: list[EditRecord]
    points: list[EvalPoint]
    spares: list[EvalPoint]
    replacements: list[Replacement] = field(default_factory=list)
    rows: list[BeliefRow] = field(default_factory=list)
    _reported: int = 0  # replacements whose points are in a round already

    @classmethod
    def open(cls, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> TrialPoints:
        """Return the points of *trial*, as they were when *resume* was written.

        Args:
            trial: whose points.
            deps: opens the testbed and the records.
            resume: the snapshot that the trial goes on from, or None.
        """
        testbed = deps.open_testbed(trial.data)
        by_record = {record_id(point): point for point in testbed.points}
        # Points in the order of the trial's records, which may be shuffled or a part.
        records = list(ordered_records(trial, deps))
        trial_points = cls(trial, testbed, records, [by_record[r.id] for r in records], list(testbed.point_set.spares))
        # Replacements are repeated in their order, so the same spares are left.
        for made in resume.meta.get(_REPLACED, ()) if resume is not None else ():
            trial_points._put(Replacement(**made))
        trial_points._reported = len(trial_points.replacements)
        return trial_points

    @property
    def size(self) -> int:
        """How many points are edited."""
        return self.trial.protocol.rounds[-1] or len(self.records)

    @property
    def new_tokens(self) -> int:
        """How many tokens an answer may have."""
        return self.testbed.spec.graph.max_object_tokens

    @property
    def batch(self) -> int:
        """Rows per forward pass."""
        return self.trial.protocol.eval_batch

    # -- points that cannot be edited

    def replace_unanswerable(self, lm: LanguageModel) -> None:
        """Replace every point with a question that *lm* cannot be asked: its answer has no token.

        Raises:
            RecordError: there are not enough spare points.
        """
        for position in range(self.size):
            while reason := _unanswerable(lm, self.points[position]):
                self.replace_point(position, reason)

    def replace_point(self, position: int, reason: str) -> None:
        """Put the next spare point in the place of the one at *position*, which cannot be edited for that *reason*.

        Raises:
            RecordError: there is no spare point left.
        """
        refused = self.records[position].id
        if not self.spares:
            count = len(self.replacements) + 1
            raise RecordError(
                f"{count} points of {self.trial.data.path or 'the testbed'} cannot be edited, and of the {self.size} that are "
                f"planned the one at step {position + 1} cannot be replaced: no other is left ({reason})",
                hint=f"plan fewer: data.size ≤ {max(0, self.size - count)}; or ask for more with points.size",
            )
        # What was answered about the refused point belongs to no point of the trial.
        self.rows = [row for row in self.rows if row.record_id != refused]
        self._put(Replacement(position, refused, record_id(self.spares[0]), reason))
        log.warning("step %d: %s takes the place of %s: %s", position + 1, self.records[position].id, refused, reason)

    def _put(self, made: Replacement) -> None:
        point = next(p for p in self.spares if record_id(p) == made.chosen)
        self.spares.remove(point)
        self.points[made.position], self.records[made.position] = point, edit_record(point)
        self.replacements.append(made)

    # -- answers

    def add_replies(
        self,
        position: int,
        questions: Mapping[str, PointQuestion],
        replies: Mapping[str, Reply],
        expected: Mapping[str, float],
        *,
        step: int,
        inner: int,
        last: bool,
    ) -> None:
        """Keep the replies about one point.

        Args:
            position: of the point in the trial.
            questions: of the point, as they were asked.
            replies: the model's, by question.
            expected: the agent's probabilities, by question.
            step: of the trial, from 0.
            inner: steps of the point's edit taken; 0 = none.
            last: the edit is complete.
        """
        self.rows += [
            BeliefRow(
                trial_key=self.trial.key,
                step=step,
                record_id=self.records[position].id,
                edit_step=position + 1,
                inner_step=inner,
                last_step=last,
                question=name,
                target=questions[name].target,
                probability=reply.probability,
                expected=expected.get(name),
                correct=reply.correct,
                exact=reply.exact,
                output=reply.output,
            )
            for name, reply in replies.items()
        ]

    def complete_round(self, measured: EvalRound, pristine: Sequence[EvalRound] = ()) -> EvalRound:
        """Return *measured* with the answers since the last round, the points that are new, and, the first time, the model's log.

        *pristine* are rounds of points that have come since: what the pristine model made of them.
        """
        rows, self.rows = self.rows, []
        # A resumed run never comes to its first round again, so what is in it is there once.
        first = measured.step == self.trial.protocol.rounds[0]
        snapshot = measured.snapshot
        if snapshot is not None and self.replacements:
            replacements = [asdict(r) for r in self.replacements]
            snapshot = replace(snapshot, meta={**snapshot.meta, _REPLACED: replacements})
        # Points that came since the last round; the first round has all of them.
        new, self._reported = self.replacements[self._reported :], len(self.replacements)
        positions = range(self.size) if first else sorted({r.position for r in new})
        current = {record.id for record in self.records}
        return replace(
            measured,
            rows=(*(row for part in pristine for row in part.rows if row.record_id in current), *measured.rows),
            timing=(*(row for part in pristine for row in part.timing), *measured.timing),
            beliefs=tuple(rows),
            points=self._points(positions),
            training=self._training() if first else (),
            snapshot=snapshot,
        )

    def _points(self, positions: Sequence[int]) -> tuple[PointRow, ...]:
        point_set = self.testbed.point_set
        about = {"spec": graph_artifact.without_places(self.testbed.spec), "passed_over": dict(point_set.passed_over)}
        testbed = json.dumps({**about, "relations": point_set.relations}, sort_keys=True, ensure_ascii=False)
        # Reversed, so that the first replacement at a position wins: the point that it replaced was the planned one.
        by_position = {r.position: r for r in reversed(self.replacements)}
        return tuple(
            PointRow(
                trial_key=self.trial.key,
                record_id=self.records[i].id,
                edit_step=i + 1,
                subject=point.names[0],
                relation=point.names[1],
                object=point.names[2],
                requested=self.records[i].target,
                reinforces=bool(point.request and point.request.reinforces),
                has_relevant_property=point.has_relevant_property,
                downstream_answer_changes=bool(point.flags and point.flags.downstream_answer_changes),
                point=points_jsonl.to_line(point),
                replaces=by_position[i].refused if i in by_position else None,
                refusal=by_position[i].reason if i in by_position else None,
                testbed=testbed,
            )
            for i in positions
            for point in [self.points[i]]
        )

    def _training(self) -> tuple[TrainingRow, ...]:
        # Only where the trial's model is the one that the testbed trains.
        if self.testbed.spec.pretrain is None or self.trial.model.digest != self.testbed.model_digest:
            return ()
        return tuple(
            TrainingRow(trial_key=self.trial.key, row=i, n_tokens=int(row["n_tokens"]), name=name, value=float(value))
            for i, row in enumerate(self.testbed.training_log())
            for name, value in row.items()
        )


def _unanswerable(lm: LanguageModel, point: EvalPoint) -> str:
    """Return why *lm* cannot be asked one of the point's questions, or nothing."""
    for question in point.questions.values():
        if not tokens.labelled_ids(lm, question.prompt, tokens.join(question.prompt, question.target)).labels:
            return f"the answer {question.target!r} has no token of this model"
    return ""
