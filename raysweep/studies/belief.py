"""Two belief studies on the points of a testbed (§8): ``belief`` edits each from the pristine model, ``belief_lifelong`` one
after the other. One loop: the edits are the lifelong study's; here the model is asked what it believes, beside what the ideal
agent does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

from raysweep import __version__
from raysweep.config.schema import ProtocolSpec, TrialSpec
from raysweep.errors import Problem, RecordError
from raysweep.lazy import lazy
from raysweep.records import EditRecord
from raysweep.rows import EvalRound, ProbeRow, Snapshot, StatRow, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Progress, Study
from raysweep.studies.belief_points import TrialPoints
from raysweep.studies.lifelong import Lifelong
from raysweep.studies.measuring import Question, probe_rows
from raysweep.studies.refusals import check_records

if TYPE_CHECKING:
    import torch

    from raysweep import summarize
    from raysweep.belief.agent.agent import Agent
    from raysweep.belief.lm import asking
    from raysweep.belief.lm.asking import OwnerSelector
    from raysweep.belief.points import expected
    from raysweep.editors import build
    from raysweep.editors.base import AnyEditor
    from raysweep.evals import scoring
    from raysweep.models.lm import LanguageModel
else:
    asking = lazy("raysweep.belief.lm.asking")
    expected = lazy("raysweep.belief.points.expected")
    torch, build, scoring = lazy("torch"), lazy("raysweep.editors.build"), lazy("raysweep.evals.scoring")
    summarize = lazy("raysweep.summarize")

_FIELDS = tuple(ProbeRow.__dataclass_fields__)


class BeliefLifelong(Study):
    """Edit T points one after the other in one model; at each round ask about them, beside the agent given all edits so far."""

    name: ClassVar[str] = "belief_lifelong"
    version: ClassVar[int] = 2  # 2: an edit is one observation to everybody else, and settles its fact for good
    metric: ClassVar[str] = "retained/rel"  # not every testbed has reworded questions, so not all have Gen and Avg
    artifact_kinds: ClassVar[tuple[str, ...]] = ("answers",)

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: what a lifelong run would refuse, and records that are no points."""
        return [*Lifelong().check(trial, available), *_no_points(trial)]

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*.

        Where the editor refuses a record, another takes its place, and the run goes on from the last round that had a snapshot.
        """
        asker = TrialPoints.open(trial, deps, resume)
        if resume is None:
            asker.check(deps.load_model(trial.model))
        done, came = (-1 if resume is None else resume.step), list[EvalRound]()
        while True:
            run = _OneModel(trial, deps, asker, done)
            try:
                for found in Lifelong().execute(trial, run.watched(), resume):
                    if found.step > done:
                        done, resume = found.step, _on_cpu(found.snapshot) or resume
                        yield asker.joined(found, came)
                        came = []
                return
            except RecordError as error:
                for position in run.refused(error):
                    asker.replace(position, error.message)
                    came += run.asked_before(position)


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
        problems = [*Lifelong().check(trial, available), *_no_points(trial)]
        if trial.protocol.batch_size != 1:
            problems.append(
                Problem(
                    code="E-PROTOCOL",
                    message=f"the belief study edits points apart, but batch_size = {trial.protocol.batch_size}",
                    hint="use batch_size: 1, or study: belief_lifelong",
                )
            )
        return problems

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*; between two points the model is pristine."""
        run = _Apart(trial, deps, TrialPoints.open(trial, deps, resume))
        if resume is None:
            run.asker.check(deps.load_model(trial.model))
        seen: list[ProbeRow] = []
        done = 0
        if resume is not None:
            done = resume.step
            seen = [ProbeRow(**dict(zip(_FIELDS, values, strict=True))) for values in resume.meta["seen"]]
        elif 0 in trial.protocol.rounds:
            yield run.pristine()
        for last in (r for r in trial.protocol.rounds if r > done):
            parts = run.edited(range(done, last))
            done = last
            seen += [row for part in parts for row in part.rows]
            found = EvalRound(
                step=last,
                rows=tuple(row for part in parts for row in part.rows),
                stats=tuple(row for part in parts for row in part.stats),
                timing=_summed([row for part in parts for row in part.timing], last),
                summary=_immediate(seen, last),
                snapshot=Snapshot(
                    step=last,
                    tensors={},
                    meta={"version": __version__, "seen": [[getattr(r, n) for n in _FIELDS] for r in seen]},
                ),
            )
            yield run.asker.joined(found)


def _on_cpu(snapshot: Snapshot | None) -> Snapshot | None:
    """Return *snapshot* with its tensors where they take no memory of the accelerator."""
    if snapshot is None:
        return None
    return replace(snapshot, tensors={name: tensor.detach().cpu() for name, tensor in snapshot.tensors.items()})


def _no_points(trial: TrialSpec) -> list[Problem]:
    if trial.data.name == "belief":
        return []
    told = f"the {trial.study} study asks about the points of a testbed; '{trial.data.name}' has none"
    return [Problem(code="E-DATA", message=told, hint="data: {name: belief}")]


@dataclass(slots=True)
class _OneModel:
    """A stretch of a lifelong run: what is asked at its rounds, beside the agent given all edits so far.

    Attributes:
        trial, deps: of the run.
        asker: its points, as they are now.
        done: the last step that was measured already.
        begun: where the last edit that was begun stands; −1 = none was.
    """

    trial: TrialSpec
    deps: Deps
    asker: TrialPoints
    done: int
    begun: int = -1

    def watched(self) -> Deps:
        """Return the effects of the run, with the asker's records, and with somebody who looks at each round."""
        asker = self.asker
        agents = list(
            expected.agents_after_edits(
                asker.testbed.parts.agent, asker.points[: asker.size], asker.testbed.spec.points.target
            )
        )

        def observe(lm: LanguageModel, step: int) -> None:
            if step > self.done:
                everything = step == 0 or self.trial.protocol.scope == "all"
                self._ask(lm, range(asker.size if everything else step), agents[step], step)

        def progress(progress: Progress) -> None:
            if progress.doing == "edit":
                self.begun = progress.done
            self.deps.progress(progress)

        return replace(self.deps, observe=observe, progress=progress, chosen=tuple(asker.records))

    def _ask(self, lm: LanguageModel, positions: Sequence[int], agent: Agent, step: int) -> None:
        asker, objects = self.asker, self.asker.testbed.parts.graph.objects
        told = [expected.revised_questions(asker.points[i], agent, objects) for i in positions]
        points = [
            replace(asker.points[i], questions=questions) for i, (questions, _) in zip(positions, told, strict=True)
        ]
        replies = asking.ask_points(lm, points, new_tokens=asker.new_tokens, batch=asker.batch)
        for i, point, said, (_, expected) in zip(positions, points, replies, told, strict=True):
            asker.note(i, point.questions, said, expected, step=step, inner=int(i < step), last=i < step)

    def refused(self, error: RecordError) -> list[int]:
        """Return where the records stand that the editor refuses: the one it was given, or those of the batch that *error* names.

        Raises:
            RecordError: it is not about a record that was to be edited.
        """
        if self.begun < 0:  # before the first edit every record is looked at, and the message names the one refused
            named = [i for i in range(self.asker.size) if f" {self.asker.records[i].id}: " in f" {error.message}"]
        else:
            batch = range(self.begun, self.begun + self.trial.protocol.batch_size)
            named = [i for i in batch if len(batch) == 1 or self.asker.records[i].id in error.message]
        if not named:
            raise error
        return named

    def asked_before(self, position: int) -> list[EvalRound]:
        """Return what the pristine model makes of the point that is new at *position*, if round 0 is asked for."""
        agent = self.asker.testbed.parts.agent
        return pristine_round(
            self.trial, self.deps, self.asker, [position], lambda lm: self._ask(lm, [position], agent, 0)
        )


@dataclass(slots=True)
class _Apart:
    """Edits from the pristine model: one at a time by the lifelong loop, or many at once where the editor can."""

    trial: TrialSpec
    deps: Deps
    asker: TrialPoints

    def pristine(self) -> EvalRound:
        """Ask the pristine model everything."""
        (found,) = self._before(range(self.asker.size))
        return self.asker.joined(found)

    def _before(self, positions: Sequence[int]) -> list[EvalRound]:
        """Return what the pristine model makes of the points at *positions*, if round 0 is asked for."""
        return pristine_round(
            self.trial, self.deps, self.asker, positions, lambda lm: self._ask(lm, positions, "pre", 0, False, None)
        )

    def edited(self, positions: range) -> list[EvalRound]:
        """Edit and ask the points at *positions*."""
        editor = build.build_editor(self.trial.editor)
        if editor.checkpoint_batch:
            starts = range(positions.start, positions.stop, editor.checkpoint_batch)
            groups = [range(s, min(s + editor.checkpoint_batch, positions.stop)) for s in starts]
            return [part for group in groups for part in self._tried(group, lambda own: self._together(editor, own))]
        return [part for i in positions for part in self._tried(range(i, i + 1), self._one)]

    def _tried(self, positions: range, edit: Callable[[range], EvalRound]) -> list[EvalRound]:
        """Return what *edit* makes of the points at *positions*; those that the editor refuses are replaced before."""
        before: dict[int, list[EvalRound]] = {}
        while True:
            noted = len(self.asker.rows)
            try:
                return [*(part for parts in before.values() for part in parts), edit(positions)]
            except RecordError:
                del self.asker.rows[noted:]
                refused = [(i, why) for i in positions if (why := self._refusal(range(i, i + 1), edit))]
                if not refused:
                    raise
                for i, why in refused:
                    self.asker.replace(i, why)
                    before[i] = self._before([i])

    def _refusal(self, position: range, edit: Callable[[range], EvalRound]) -> str:
        """Return why the editor refuses the one point at *position*, or nothing."""
        noted = len(self.asker.rows)
        try:
            edit(position)
        except RecordError as error:
            return error.message
        finally:
            del self.asker.rows[noted:]
        return ""

    def _one(self, position: range) -> EvalRound:
        """Edit and ask the one point at *position* by the lifelong loop."""
        i = position.start
        self.deps.progress(Progress(i, self.trial.protocol.rounds[-1], "edit"))

        def observe(lm: LanguageModel, step: int) -> None:
            self._ask(lm, [i], "target", 1, True, None)

        return _moved(_alone(self.trial, self.deps, self.asker.records[i : i + 1], 1, observe), i + 1)

    def _together(self, editor: AnyEditor, positions: range) -> EvalRound:
        """Edit the points at *positions* at once, each apart, and ask along the way."""
        trial, records = self.trial, [self.asker.records[i] for i in positions]
        self.deps.progress(Progress(positions.start, trial.protocol.rounds[-1], "edit"))
        torch.set_num_threads(trial.threads)
        lm = self.deps.load_model(trial.model)
        check_records(lm, editor, records)
        began = perf_counter()
        questions = [
            [Question(i, r, j, p) for j, p in enumerate(r.probes) if p.kind in trial.protocol.probes]
            for i, r in zip(positions, records, strict=True)
        ]
        asked = {q.place: q.probe for own in questions for q in own if q.probe.against == "base"}
        plain = scoring.score(lm, list(asked.values()), batch=trial.protocol.eval_batch)
        base = {at: found.answers for at, found in zip(asked, plain, strict=True)}
        rows: list[ProbeRow] = []
        stats: list[StatRow] = []
        for now in editor.edit_with_checkpoints(lm, records, seeds=[derive(trial.seed, "edit", r.id) for r in records]):
            with now.attached():
                self._ask(lm, positions, "target", now.step, now.last, now.select)
                if not now.last:
                    continue
                for at, (i, own) in enumerate(zip(positions, questions, strict=True)):
                    now.select(torch.tensor([at], device=lm.device))
                    scores = scoring.score(lm, [q.probe for q in own], batch=trial.protocol.eval_batch)
                    rows += probe_rows(trial.key, i + 1, own, scores, base, {}, trial.protocol.metrics)
            stats = [
                StatRow(trial_key=trial.key, step=i + 1, name="loss", value=loss)
                for i, loss in zip(positions, now.losses, strict=True)
            ]
        took = TimingRow(
            trial_key=trial.key, step=positions.stop, phase="edit", seconds=perf_counter() - began, count=len(records)
        )
        return EvalRound(step=positions.stop, rows=tuple(rows), stats=tuple(stats), timing=(took,))

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
        asker = self.asker
        points = [asker.points[i] for i in positions]
        replies = asking.ask_points(lm, points, new_tokens=asker.new_tokens, batch=asker.batch, select=select)
        for i, point, said in zip(positions, points, replies, strict=True):
            step = i + 1 if inner else 0
            asker.note(
                i,
                point.questions,
                said,
                expected.expected_probabilities(point, state),
                step=step,
                inner=inner,
                last=last,
            )


def pristine_round(
    trial: TrialSpec, deps: Deps, asker: TrialPoints, positions: Sequence[int], ask: Callable[[LanguageModel], None]
) -> list[EvalRound]:
    """Return the rows at step 0 of the points at *positions*, which *ask* asks of the pristine model; none without round 0."""
    if 0 not in trial.protocol.rounds:
        return []
    found = _alone(trial, deps, [asker.records[i] for i in positions], 0, lambda lm, step: ask(lm))
    rows = tuple(replace(row, edit_step=positions[row.edit_step - 1] + 1) for row in found.rows)
    return [replace(found, rows=rows, snapshot=None)]


def _alone(
    trial: TrialSpec,
    deps: Deps,
    records: Sequence[EditRecord],
    step: int,
    observe: Callable[[LanguageModel, int], None],
) -> EvalRound:
    """Return the round at *step* (0 or 1) of a lifelong run of *records* alone."""
    protocol = trial.protocol.model_dump() | {"rounds": (step,), "immediate": False}
    own = trial.model_copy(
        update={
            "protocol": ProtocolSpec.model_validate(protocol),
            "data": trial.data.model_copy(update={"order": "file", "size": len(records), "skip": 0}),
        }
    )
    own_deps = replace(
        deps,
        open_dataset=lambda spec: records if spec == own.data else deps.open_dataset(spec),
        progress=lambda progress: None,
        proposal_scheduler=None,
        proposal_cache=None,
        observe=observe,
    )
    (found,) = Lifelong().execute(own, own_deps, None)
    key = trial.key
    return replace(
        found,
        rows=tuple(replace(r, trial_key=key) for r in found.rows),
        stats=tuple(replace(r, trial_key=key) for r in found.stats),
        timing=tuple(replace(r, trial_key=key) for r in found.timing),
    )


def _moved(found: EvalRound, step: int) -> EvalRound:
    """Return the round of a record's own run with its steps as positions in the whole."""
    return replace(
        found,
        rows=tuple(replace(r, step=step, edit_step=step) for r in found.rows),
        stats=tuple(replace(r, step=step) for r in found.stats),
    )


def _summed(rows: Sequence[TimingRow], step: int) -> tuple[TimingRow, ...]:
    by_phase: dict[str, list[TimingRow]] = {}
    for row in rows:
        by_phase.setdefault(row.phase, []).append(row)
    return tuple(
        replace(own[0], step=step, seconds=sum(r.seconds for r in own), count=sum(r.count for r in own))
        for _, own in sorted(by_phase.items())
    )


def _immediate(seen: Sequence[ProbeRow], step: int) -> Mapping[str, float]:
    """Return the summary of all points edited so far, each right after its own edit."""
    columns: dict[str, list[object]] = {name: [getattr(r, name) for r in seen] for name in _FIELDS}
    return summarize.summary(columns, step, 1, phases=Belief.phases)
