"""The edits of the belief studies: many in one model, or each from the pristine one; after each the model is asked.

No editor is called here but by :class:`raysweep.studies.lifelong.Lifelong` — a run of one record, where points are edited apart —
and by :meth:`~raysweep.editors.base.BaseEditor.edit_with_checkpoints`, for editors that edit many records at once and apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from raysweep.config.schema import ProtocolSpec, TrialSpec
from raysweep.errors import RecordError
from raysweep.lazy import lazy
from raysweep.records import EditRecord
from raysweep.rows import EvalRound, ProbeRow, StatRow, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Progress
from raysweep.studies.belief_points import TrialPoints
from raysweep.studies.lifelong import Lifelong
from raysweep.studies.measuring import Question, probe_rows
from raysweep.studies.refusals import check_records

if TYPE_CHECKING:
    import torch

    from raysweep.belief.agent.agent import Agent
    from raysweep.belief.lm import asking as lm_asking
    from raysweep.belief.lm.asking import OwnerSelector
    from raysweep.belief.points import expected as expected_answers
    from raysweep.editors import build
    from raysweep.editors.base import AnyEditor
    from raysweep.evals import scoring
    from raysweep.models.lm import LanguageModel
else:
    lm_asking = lazy("raysweep.belief.lm.asking")
    expected_answers = lazy("raysweep.belief.points.expected")
    torch, build, scoring = lazy("torch"), lazy("raysweep.editors.build"), lazy("raysweep.evals.scoring")


@dataclass(slots=True)
class SequentialEdits:
    """A stretch of a lifelong run: what is asked at its rounds, beside the agent given all edits so far.

    Attributes:
        trial, deps: of the run.
        points: its points, as they are now.
        done: the last step that was measured already.
        begun: position of the last edit that was begun; −1 = none was.
    """

    trial: TrialSpec
    deps: Deps
    points: TrialPoints
    done: int
    begun: int = -1

    def observing_deps(self) -> Deps:
        """Return the effects of the run, with the records of its points, and with an observer that asks at each round."""
        points = self.points
        agent, target = points.testbed.parts.agent, points.testbed.spec.points.target
        agents = list(expected_answers.agents_after_edits(agent, points.points[: points.size], target))

        def observe(lm: LanguageModel, step: int) -> None:
            # A run that goes on from a snapshot measures the rounds up to it again; they were asked about before.
            if step > self.done:
                everything = step == 0 or self.trial.protocol.scope == "all"
                self._ask(lm, range(points.size if everything else step), agents[step], step)

        def progress(progress: Progress) -> None:
            if progress.doing == "edit":
                self.begun = progress.done
            self.deps.progress(progress)

        return replace(self.deps, observe=observe, progress=progress, chosen=tuple(points.records))

    def _ask(self, lm: LanguageModel, positions: Sequence[int], agent: Agent, step: int) -> None:
        """Ask about the points at *positions* after *step* edits, beside *agent*, which was given all of them."""
        points, objects = self.points, self.points.testbed.parts.graph.objects
        revised = [expected_answers.revised_questions(points.points[i], agent, objects) for i in positions]
        current = [
            replace(points.points[i], questions=questions) for i, (questions, _) in zip(positions, revised, strict=True)
        ]
        replies = lm_asking.ask_points(lm, current, new_tokens=points.new_tokens, batch=points.batch)
        for i, point, reply, (_, expected) in zip(positions, current, replies, revised, strict=True):
            # Of a point that is edited later, this is the answer before its edit.
            is_edited = i < step
            points.add_replies(i, point.questions, reply, expected, step=step, inner=int(is_edited), last=is_edited)

    def refused_positions(self, error: RecordError) -> list[int]:
        """Return where the records stand that the editor refuses: the one it was given, or those of the batch that *error* names.

        Raises:
            RecordError: it is not about a record that was to be edited.
        """
        records = self.points.records
        # Before the first edit every record is looked at, and the message names the one refused.
        if self.begun < 0:
            refused = [i for i in range(self.points.size) if f" {records[i].id}: " in f" {error.message}"]
        else:
            batch = range(self.begun, self.begun + self.trial.protocol.batch_size)
            refused = [i for i in batch if len(batch) == 1 or records[i].id in error.message]
        if not refused:
            raise error
        return refused

    def pristine_round(self, position: int) -> list[EvalRound]:
        """Return what the pristine model makes of the point that is new at *position*, if round 0 is asked for."""
        agent = self.points.testbed.parts.agent
        return pristine_round(
            self.trial, self.deps, self.points, [position], lambda lm: self._ask(lm, [position], agent, 0)
        )


@dataclass(slots=True)
class IndependentEdits:
    """Edits from the pristine model: one at a time by the lifelong loop, or many at once where the editor can.

    Attributes:
        trial, deps: of the run.
        points: its points, as they are now.
    """

    trial: TrialSpec
    deps: Deps
    points: TrialPoints

    def pristine(self) -> EvalRound:
        """Ask the pristine model everything."""
        (measured,) = self._pristine_round(range(self.points.size))
        return self.points.complete_round(measured)

    def _pristine_round(self, positions: Sequence[int]) -> list[EvalRound]:
        """Return what the pristine model makes of the points at *positions*, if round 0 is asked for."""
        return pristine_round(
            self.trial, self.deps, self.points, positions, lambda lm: self._ask(lm, positions, "pre", 0, False, None)
        )

    def edit(self, positions: range) -> list[EvalRound]:
        """Edit and ask the points at *positions*; return the rounds that this comes to."""
        editor = build.build_editor(self.trial.editor)
        if editor.checkpoint_batch:
            starts = range(positions.start, positions.stop, editor.checkpoint_batch)
            groups = [range(s, min(s + editor.checkpoint_batch, positions.stop)) for s in starts]
            edit_group = lambda group: self._edit_together(editor, group)  # noqa: E731
            return [part for group in groups for part in self._replacing_refused(group, edit_group)]
        return [part for i in positions for part in self._replacing_refused(range(i, i + 1), self._edit_one)]

    def _replacing_refused(self, positions: range, edit: Callable[[range], EvalRound]) -> list[EvalRound]:
        """Return what *edit* makes of the points at *positions*; those that the editor refuses are replaced before."""
        # By position, so that a point that is replaced twice leaves only the last one's answers.
        pristine: dict[int, list[EvalRound]] = {}
        while True:
            count = len(self.points.rows)
            try:
                return [*(part for parts in pristine.values() for part in parts), edit(positions)]
            # Answers of the edit that failed are dropped; each point is then tried alone, to learn who was refused and why.
            except RecordError:
                del self.points.rows[count:]
                refusals = [(i, reason) for i in positions if (reason := self._refusal(range(i, i + 1), edit))]
                if not refusals:
                    raise
                for i, reason in refusals:
                    self.points.replace_point(i, reason)
                    pristine[i] = self._pristine_round([i])

    def _refusal(self, position: range, edit: Callable[[range], EvalRound]) -> str:
        """Return why the editor refuses the one point at *position*, or nothing."""
        count = len(self.points.rows)
        try:
            edit(position)
        except RecordError as error:
            return error.message
        finally:
            del self.points.rows[count:]
        return ""

    def _edit_one(self, position: range) -> EvalRound:
        """Edit and ask the one point at *position* by the lifelong loop."""
        i = position.start
        self.deps.progress(Progress(i, self.trial.protocol.rounds[-1], "edit"))

        def observe(lm: LanguageModel, step: int) -> None:
            self._ask(lm, [i], "target", 1, True, None)

        measured = _lifelong_round(self.trial, self.deps, self.points.records[i : i + 1], 1, observe)
        return _at_step(measured, i + 1)

    def _edit_together(self, editor: AnyEditor, positions: range) -> EvalRound:
        """Edit the points at *positions* at once, each apart, and ask along the way."""
        trial, records = self.trial, [self.points.records[i] for i in positions]
        batch = trial.protocol.eval_batch
        self.deps.progress(Progress(positions.start, trial.protocol.rounds[-1], "edit"))
        torch.set_num_threads(trial.threads)
        lm = self.deps.load_model(trial.model)
        check_records(lm, editor, records)
        began = perf_counter()
        questions = [
            [Question(i, r, j, p) for j, p in enumerate(r.probes) if p.kind in trial.protocol.probes]
            for i, r in zip(positions, records, strict=True)
        ]
        # Probes that are compared with the unedited model's answers are asked of it first.
        compared = {q.place: q.probe for of_point in questions for q in of_point if q.probe.against == "base"}
        unedited_scores = scoring.score(lm, list(compared.values()), batch=batch)
        unedited = {place: score.answers for place, score in zip(compared, unedited_scores, strict=True)}
        rows: list[ProbeRow] = []
        stats: list[StatRow] = []
        seeds = [derive(trial.seed, "edit", r.id) for r in records]
        for checkpoint in editor.edit_with_checkpoints(lm, records, seeds=seeds):
            with checkpoint.attached():
                self._ask(lm, positions, "target", checkpoint.step, checkpoint.last, checkpoint.select)
                if not checkpoint.last:
                    continue
                for at, (i, of_point) in enumerate(zip(positions, questions, strict=True)):
                    # Each record's probes are asked of the model with that record's edit.
                    checkpoint.select(torch.tensor([at], device=lm.device))
                    scores = scoring.score(lm, [q.probe for q in of_point], batch=batch)
                    rows += probe_rows(trial.key, i + 1, of_point, scores, unedited, {}, trial.protocol.metrics)
            stats = [
                StatRow(trial_key=trial.key, step=i + 1, name="loss", value=loss)
                for i, loss in zip(positions, checkpoint.losses, strict=True)
            ]
        time = TimingRow(
            trial_key=trial.key, step=positions.stop, phase="edit", seconds=perf_counter() - began, count=len(records)
        )
        return EvalRound(step=positions.stop, rows=tuple(rows), stats=tuple(stats), timing=(time,))

    def _ask(
        self,
        lm: LanguageModel,
        positions: Sequence[int],
        state: str,
        inner: int,
        last: bool,
        select: OwnerSelector | None,
    ) -> None:
        """Ask about the points at *positions* after *inner* steps of their edits; none: of the pristine model."""
        points = self.points
        current = [points.points[i] for i in positions]
        replies = lm_asking.ask_points(lm, current, new_tokens=points.new_tokens, batch=points.batch, select=select)
        for i, point, reply in zip(positions, current, replies, strict=True):
            step = i + 1 if inner else 0
            expected = expected_answers.expected_probabilities(point, state)
            points.add_replies(i, point.questions, reply, expected, step=step, inner=inner, last=last)


def pristine_round(
    trial: TrialSpec, deps: Deps, points: TrialPoints, positions: Sequence[int], ask: Callable[[LanguageModel], None]
) -> list[EvalRound]:
    """Return the rows at step 0 of the points at *positions*, which *ask* asks of the pristine model; none without round 0.

    Args:
        trial: whose protocol and editor.
        deps: its effects.
        points: its points.
        positions: which of them.
        ask: asks the model that it is given.
    """
    if 0 not in trial.protocol.rounds:
        return []
    measured = _lifelong_round(trial, deps, [points.records[i] for i in positions], 0, lambda lm, step: ask(lm))
    # In that run the records stood at 1, 2, …; in this trial they stand at their positions.
    rows = tuple(replace(row, edit_step=positions[row.edit_step - 1] + 1) for row in measured.rows)
    return [replace(measured, rows=rows, snapshot=None)]


def _lifelong_round(
    trial: TrialSpec,
    deps: Deps,
    records: Sequence[EditRecord],
    step: int,
    observe: Callable[[LanguageModel, int], None],
) -> EvalRound:
    """Return the round at *step* (0 or 1) of a lifelong run of *records* alone."""
    # The same trial, but for the round and the records: same editor, seed and model.
    protocol = trial.protocol.model_dump() | {"rounds": (step,), "immediate": False}
    part = trial.model_copy(
        update={
            "protocol": ProtocolSpec.model_validate(protocol),
            "data": trial.data.model_copy(update={"order": "file", "size": len(records), "skip": 0}),
        }
    )
    # Nobody is told of progress, and no proposal is shared: to everybody else this is a part of one edit.
    part_deps = replace(
        deps,
        open_dataset=lambda spec: records if spec == part.data else deps.open_dataset(spec),
        progress=lambda progress: None,
        proposal_scheduler=None,
        proposal_cache=None,
        observe=observe,
    )
    (measured,) = Lifelong().execute(part, part_deps, None)
    key = trial.key
    return replace(
        measured,
        rows=tuple(replace(r, trial_key=key) for r in measured.rows),
        stats=tuple(replace(r, trial_key=key) for r in measured.stats),
        timing=tuple(replace(r, trial_key=key) for r in measured.timing),
    )


def _at_step(measured: EvalRound, step: int) -> EvalRound:
    """Return the round of a record's own run as that of *step* in the whole."""
    return replace(
        measured,
        rows=tuple(replace(r, step=step, edit_step=step) for r in measured.rows),
        stats=tuple(replace(r, step=step) for r in measured.stats),
    )
