"""Two belief studies on the points of a testbed (§8): ``belief`` edits each from the pristine model, ``belief_lifelong`` one
after the other. One loop: the edits are the lifelong study's; here the model is asked what it believes, beside what the ideal
agent does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

from raysweep import __version__
from raysweep.belief.asking import Reply, Select, ask_points
from raysweep.belief.pointfile import to_line
from raysweep.belief.points import EvalPoint, Question
from raysweep.belief.revision import expectations, revised, revisions
from raysweep.belief.testbed import Testbed
from raysweep.config.schema import ProtocolSpec, TrialSpec
from raysweep.data.belief import record_id
from raysweep.editors.base import Stepwise
from raysweep.errors import Problem
from raysweep.lazy import lazy
from raysweep.records import EditRecord
from raysweep.rows import BeliefRow, EvalRound, PointRow, ProbeRow, Snapshot, StatRow, TimingRow, TrainingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Progress
from raysweep.studies.lifelong import Lifelong, ordered, probe_rows
from raysweep.studies.refusals import check_records
from raysweep.summarize import summary

if TYPE_CHECKING:
    import torch

    from raysweep.editors import build
    from raysweep.evals import scoring
    from raysweep.models.lm import LanguageModel
else:
    torch, build, scoring = lazy("torch"), lazy("raysweep.editors.build"), lazy("raysweep.evals.scoring")

_FIELDS = tuple(ProbeRow.__dataclass_fields__)


class BeliefLifelong:
    """Edit T points one after the other in one model; at each round ask about them, beside the agent given all edits so far."""

    name: ClassVar[str] = "belief_lifelong"
    version: ClassVar[int] = 1

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: what a lifelong run would refuse, and records that are no points."""
        return [*Lifelong().check(trial, available), *_no_points(trial)]

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*."""
        asker = _Asker.open(trial, deps)
        agents = list(revisions(asker.testbed.basis.agent, asker.points, asker.testbed.spec.points.target))
        objects = asker.testbed.basis.graph.objects

        def observe(lm: LanguageModel, step: int) -> None:
            everything = step == 0 or trial.protocol.scope == "all"
            own = range(asker.size if everything else step)
            told = [revised(asker.points[i], agents[step], objects, edited=i < step) for i in own]
            points = [
                replace(asker.points[i], questions=questions) for i, (questions, _) in zip(own, told, strict=True)
            ]
            replies = ask_points(lm, points, new_tokens=asker.new_tokens, batch=asker.batch)
            for i, point, said, (_, expected) in zip(own, points, replies, told, strict=True):
                asker.note(i, point.questions, said, expected, step=step, inner=int(i < step), last=i < step)

        for found in Lifelong().execute(trial, replace(deps, observe=observe), resume):
            yield asker.joined(found)


class Belief:
    """Edit each of T points apart, from the pristine model, and ask about it before, along the way where the editor can, and after.

    Row ``step`` = ``edit_step`` = the point's position; step 0 is the pristine model.
    """

    name: ClassVar[str] = "belief"
    version: ClassVar[int] = 1

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
        run = _Apart(trial, deps, _Asker.open(trial, deps))
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


def _no_points(trial: TrialSpec) -> list[Problem]:
    if trial.data.name == "belief":
        return []
    told = f"the {trial.study} study asks about the points of a testbed; '{trial.data.name}' has none"
    return [Problem(code="E-DATA", message=told, hint="data: {name: belief}")]


@dataclass(slots=True)
class _Asker:
    """The points of a trial in its order, and what was answered since the last round."""

    trial: TrialSpec
    testbed: Testbed
    records: Sequence[EditRecord]
    points: Sequence[EvalPoint]
    rows: list[BeliefRow] = field(default_factory=list)

    @classmethod
    def open(cls, trial: TrialSpec, deps: Deps) -> _Asker:
        testbed = deps.open_testbed(trial.data)
        by_record = {record_id(point): point for point in testbed.points}
        records = ordered(trial, deps)
        return cls(trial, testbed, records, [by_record[record.id] for record in records])

    @property
    def size(self) -> int:
        return self.trial.protocol.rounds[-1] or len(self.records)

    @property
    def new_tokens(self) -> int:
        return self.testbed.spec.graph.max_object_tokens

    @property
    def batch(self) -> int:
        return self.trial.protocol.eval_batch

    def note(
        self,
        position: int,
        questions: Mapping[str, Question],
        replies: Mapping[str, Reply],
        expected: Mapping[str, float],
        *,
        step: int,
        inner: int,
        last: bool,
    ) -> None:
        """Keep the replies about one point."""
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

    def joined(self, found: EvalRound) -> EvalRound:
        """Return *found* with the answers since the last round; the first one also has the points and the model's log."""
        rows, self.rows = self.rows, []
        first = found.step == self.trial.protocol.rounds[0]
        return replace(
            found,
            beliefs=tuple(rows),
            points=self._points() if first else (),
            training=self._training() if first else (),
        )

    def _points(self) -> tuple[PointRow, ...]:
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
                point=to_line(point),
            )
            for i, point in enumerate(self.points[: self.size])
        )

    def _training(self) -> tuple[TrainingRow, ...]:
        if self.testbed.spec.pretrain is None or self.trial.model.digest != self.testbed.model_digest:
            return ()
        return tuple(
            TrainingRow(trial_key=self.trial.key, row=i, n_tokens=int(row["n_tokens"]), name=name, value=float(value))
            for i, row in enumerate(self.testbed.training_log())
            for name, value in row.items()
        )


@dataclass(slots=True)
class _Apart:
    """Edits from the pristine model: one at a time by the lifelong loop, or many at once where the editor can."""

    trial: TrialSpec
    deps: Deps
    asker: _Asker

    def pristine(self) -> EvalRound:
        """Ask the pristine model everything."""
        size = self.asker.size

        def observe(lm: LanguageModel, step: int) -> None:
            self._ask(lm, range(size), "pre", 0, False, None)

        found = self._alone(self.asker.records[:size], 0, observe)
        return self.asker.joined(replace(found, snapshot=None))

    def edited(self, positions: range) -> list[EvalRound]:
        """Edit and ask the points at *positions*."""
        editor = build.build_editor(self.trial.editor)
        if isinstance(editor, Stepwise):
            starts = range(positions.start, positions.stop, editor.at_once)
            return [self._together(editor, range(s, min(s + editor.at_once, positions.stop))) for s in starts]
        parts = []
        for i in positions:
            self.deps.progress(Progress(i, self.trial.protocol.rounds[-1], "edit"))

            def observe(lm: LanguageModel, step: int, i: int = i) -> None:
                self._ask(lm, [i], "target", 1, True, None)

            parts.append(_moved(self._alone(self.asker.records[i : i + 1], 1, observe), i + 1))
        return parts

    def _together(self, editor: Stepwise, positions: range) -> EvalRound:
        """Edit the points at *positions* at once, each apart, and ask along the way."""
        trial, records = self.trial, [self.asker.records[i] for i in positions]
        self.deps.progress(Progress(positions.start, trial.protocol.rounds[-1], "edit"))
        torch.set_num_threads(trial.threads)
        lm = self.deps.load_model(trial.model)
        check_records(lm, editor, records)
        began = perf_counter()
        questions = [
            [(i, r, j, p) for j, p in enumerate(r.probes) if p.kind in trial.protocol.probes]
            for i, r in zip(positions, records, strict=True)
        ]
        asked = {(i, j): p for own in questions for i, _, j, p in own if p.against == "base"}
        plain = scoring.score(lm, list(asked.values()), batch=trial.protocol.eval_batch)
        base = {at: found.answers for at, found in zip(asked, plain, strict=True)}
        rows: list[ProbeRow] = []
        stats: list[StatRow] = []
        for now in editor.along(lm, records, seeds=[derive(trial.seed, "edit", r.id) for r in records]):
            with now.attached():
                self._ask(lm, positions, "target", now.step, now.last, now.select)
                if not now.last:
                    continue
                for at, (i, own) in enumerate(zip(positions, questions, strict=True)):
                    now.select(torch.tensor([at], device=lm.device))
                    scores = scoring.score(lm, [q[3] for q in own], batch=trial.protocol.eval_batch)
                    rows += probe_rows(trial.key, i + 1, own, scores, base, {})
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
        select: Select | None,
    ) -> None:
        """Ask about the points at *positions* after *inner* steps of their edits; none: of the pristine model."""
        asker = self.asker
        points = [asker.points[i] for i in positions]
        replies = ask_points(lm, points, new_tokens=asker.new_tokens, batch=asker.batch, select=select)
        for i, point, said in zip(positions, points, replies, strict=True):
            step = i + 1 if inner else 0
            asker.note(i, point.questions, said, expectations(point, state), step=step, inner=inner, last=last)

    def _alone(
        self, records: Sequence[EditRecord], step: int, observe: Callable[[LanguageModel, int], None]
    ) -> EvalRound:
        """Return the round at *step* (0 or 1) of a lifelong run of *records* alone."""
        trial, deps = self.trial, self.deps
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
            spread=None,
            kept=None,
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
    return {name: value for name, value in summary(columns, step, 1).items() if name.startswith("immediate/")}
