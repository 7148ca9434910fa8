"""The lifelong study: edit record after record, measure at rounds. The only place that calls ``Editor.edit``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep import __version__, pytree
from raysweep.config.schema import TrialSpec
from raysweep.data.sampling import order
from raysweep.editors.base import GroupProposer, Proposer, Viewer
from raysweep.errors import Problem
from raysweep.evals.metrics import METRICS, Answer
from raysweep.hashing import text_digest
from raysweep.lazy import lazy
from raysweep.records import EditRecord, Probe
from raysweep.rows import NON_FINITE_STAT, SHARED, EvalRound, ProbeRow, Snapshot, StatRow, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Ask, Deps, MemberError, Progress, Proposal
from raysweep.studies.refusals import check_records

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep import summarize
    from raysweep.editors import build
    from raysweep.editors.base import BaseEditor
    from raysweep.evals import boundaries, generation, scoring
    from raysweep.models import ledger as weight_ledger
    from raysweep.models.lm import LanguageModel
    from raysweep.studies import baseline as pristine
else:
    torch, build = lazy("torch"), lazy("raysweep.editors.build")
    scoring, weight_ledger = lazy("raysweep.evals.scoring"), lazy("raysweep.models.ledger")
    boundaries = lazy("raysweep.evals.boundaries")
    generation = lazy("raysweep.evals.generation")
    pristine, summarize = lazy("raysweep.studies.baseline"), lazy("raysweep.summarize")

Clock = dict[str, list[float]]  # seconds and count by phase
Question = tuple[int, EditRecord, int, Probe]  # position in the run, record, index of the probe, probe


class Lifelong:
    """Edit T records in order; at each round measure every record in scope on the model as it stands."""

    name: ClassVar[str] = "lifelong"
    version: ClassVar[int] = 1
    artifacts: ClassVar[tuple[str, ...]] = ("answers",)

    def check(self, trial: TrialSpec, available: int) -> list[Problem]:
        """Return what does not fit: too few records, rounds beyond the run."""
        size = trial.data.size or available
        problems = []
        if size > available:
            problems.append(
                Problem(
                    code="E-DATA",
                    message=f"data.size = {size}, but '{trial.data.name}' has {available} records after skip = {trial.data.skip}",
                    hint=f"use data.size ≤ {available}",
                )
            )
        beyond = [r for r in trial.protocol.rounds if r > size]
        if beyond:
            problems.append(
                Problem(
                    code="E-PROTOCOL",
                    message=f"rounds beyond the data: {beyond}, but the run has {size} records",
                    hint=f"use rounds ≤ {size}, or a larger data.size",
                )
            )
        return problems

    def execute(self, trial: TrialSpec, deps: Deps, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Run *trial*, or go on from *resume*; the model is pristine again when the generator ends."""
        for _, found in self.together([trial], deps, {trial.key: resume} if resume else {}):
            yield found

    def together(
        self, trials: Sequence[TrialSpec], deps: Deps, resumes: Mapping[str, Snapshot]
    ) -> Iterator[tuple[str, EvalRound]]:
        """Run *trials*, which may take their edits from one pass, or go on from *resumes*; yield rounds with the trial's key.

        The edits start where every trial has a snapshot; of each, only the rounds after its own snapshot are measured.
        """
        run = _Run.open(trials, deps)
        try:
            yield from run.rounds(resumes)
        finally:
            run.ledger.restore()

    def proposer(self, trial: TrialSpec, deps: Deps) -> Ask:
        """Return what computes proposals of *trial* in this process, for a run of it in another."""
        return _Run.open([trial], deps).propose


@dataclass(slots=True)
class _Member:
    """One trial of a pass: its own editor (for its view of the shared state), and what it has measured since its last round.

    ``behind`` is the step up to which its rounds are known; −1 = none are.
    """

    trial: TrialSpec
    editor: BaseEditor[Any]
    behind: int = -1
    rows: list[ProbeRow] = field(default_factory=list)
    seen: list[ProbeRow] = field(default_factory=list)
    stats: list[StatRow] = field(default_factory=list)
    clock: Clock = field(default_factory=dict)

    def note(self, step: int, stats: Mapping[str, float]) -> None:
        """Keep *stats* as rows of this trial."""
        key = self.trial.key
        self.stats += [StatRow(trial_key=key, step=step, name=n, value=float(v)) for n, v in sorted(stats.items())]

    def keep(self, rows: Sequence[ProbeRow]) -> None:
        """Keep what was measured."""
        last = self.trial.protocol.batch_size
        self.rows += rows
        self.seen += [r for r in rows if r.step and 0 <= r.step - r.edit_step < last]

    def hand_over(self, step: int, timing: Clock, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> EvalRound:
        """Return the round of *step* with everything that has accumulated."""
        snapshot = Snapshot(
            step=step, tensors=tensors, meta={**meta, "immediate": [_as_list(r) for r in self.seen]}
        )  # fmt: skip
        found = EvalRound(
            step=step,
            rows=tuple(self.rows),
            stats=tuple(self.stats),
            timing=tuple(
                TimingRow(trial_key=self.trial.key, step=step, phase=phase, seconds=seconds, count=int(count))
                for phase, (seconds, count) in sorted({**timing, **self.clock}.items())
            ),
            summary=summarize.summary(_columns([*self.seen, *self.rows]), step, self.trial.protocol.batch_size),
            snapshot=snapshot if step else None,
        )
        self.rows, self.stats, self.clock = [], [], {}
        return found


@dataclass(slots=True)
class _Run:
    """One pass: what stays (records, artifacts), the edits made once for all members, and the members.

    All members are equal but for what their editors declare as not shared, so the first one's trial and editor edit.
    """

    members: Sequence[_Member]
    deps: Deps
    lm: LanguageModel
    records: Sequence[EditRecord]
    superseded: Mapping[int, int]
    artifacts: Mapping[str, Any]
    ledger: weight_ledger.Ledger
    pristine: dict[tuple[int, int], scoring.Scores] = field(default_factory=dict)
    clock: Clock = field(default_factory=dict)

    @classmethod
    def open(cls, trials: Sequence[TrialSpec], deps: Deps) -> _Run:
        trial = trials[0]
        torch.set_num_threads(trial.threads)
        began = perf_counter()
        lm = deps.load_model(trial.model)
        loaded = perf_counter()
        records = ordered(trial, deps)
        members = [_Member(t, build.build_editor(t.editor)) for t in trials]
        check_records(lm, members[0].editor, records[: trial.protocol.rounds[-1]])
        deps.progress(Progress(0, trial.protocol.rounds[-1], "artifacts"))
        run = cls(
            members, deps, lm, records, _superseded(records), _provided(members[0].editor, trial, lm, deps),
            weight_ledger.Ledger(lm),
        )  # fmt: skip
        run.clock["load"] = [loaded - began, 1]
        run.clock["artifacts"] = [perf_counter() - loaded, 1]
        return run

    @property
    def trial(self) -> TrialSpec:
        return self.members[0].trial

    @property
    def editor(self) -> BaseEditor[Any]:
        return self.members[0].editor

    def rounds(self, resumes: Mapping[str, Snapshot]) -> Iterator[tuple[str, EvalRound]]:
        """Yield a round of each member at each step of the protocol."""
        protocol = self.trial.protocol
        self._ask_pristine()
        boundaries.report(self.lm, self.records[: self._size], [q[3] for q in self._questions(range(self._size))])
        state = self.editor.begin(self.lm, self.artifacts)
        step = 0
        for member in self.members:
            found = resumes.get(member.trial.key)
            if found is not None:
                member.behind = found.step
                member.seen = [ProbeRow(**dict(zip(_FIELDS, row, strict=True))) for row in found.meta["immediate"]]
        if all(m.behind >= 0 for m in self.members):
            resume = min(resumes.values(), key=lambda found: found.step)
            step, state = resume.step, self._wake(resume)
        elif 0 in protocol.rounds:
            yield from self._round(0, state)
        steps = self._steps(step)
        proposals = self._proposals(steps)
        for step in steps:
            batch = self._batch(step)
            state = self._edit(step, state, proposals)
            if step in protocol.rounds:
                yield from self._round(step, state)
            elif protocol.immediate:
                questions = self._questions(range(step - len(batch), step))
                for member in self._due(step):
                    with (
                        self._blamed(member),
                        _timed(member.clock, "immediate", len(batch)),
                        self._view(member, state, step, keep=False),
                    ):
                        self._measure(member, questions, step)

    def _due(self, step: int) -> list[_Member]:
        return [m for m in self.members if m.behind < step]

    def _steps(self, behind: int) -> list[int]:
        """Return the steps that the batches after *behind* edits reach."""
        last, size = self.trial.protocol.rounds[-1], self.trial.protocol.batch_size
        return list(range(behind + size, last + 1, size))

    def _batch(self, step: int) -> Sequence[EditRecord]:
        return self.records[step - self.trial.protocol.batch_size : step]

    def _edit(self, step: int, state: Any, proposals: Iterator[Proposal] | None) -> Any:
        batch = self._batch(step)
        self.deps.progress(Progress(step - len(batch), self.trial.protocol.rounds[-1], "edit"))
        with _timed(self.clock, "edit", len(batch)):
            if proposals is not None:
                proposal = pytree.moved(next(proposals), self.lm.device)
                done = self.editor.absorb(self.lm, state, proposal)  # type: ignore[attr-defined]
            else:
                done = self.editor.edit(self.lm, batch, state, artifacts=self.artifacts, rng=self._rng(step))
        with _timed(self.clock, "apply", len(batch)):
            self.ledger.apply(done.patch)
        for member in self._due(step):
            member.note(step, done.stats)
        return done.state

    def _rng(self, step: int) -> torch.Generator:
        return torch.Generator(device="cpu").manual_seed(derive(self.trial.seed, "edit", step))

    def _proposals(self, steps: Sequence[int]) -> Iterator[Proposal] | None:
        """Return the proposals of *steps*, or None where the editor has none or nobody would gain by them."""
        if not (isinstance(self.editor, Proposer) and self.editor.apart()):
            return None
        size = self._group()
        asked = steps if size == 1 else list(dict.fromkeys(self._grouped(step)[-1] for step in steps))
        if self.deps.spread is not None:
            found = self.deps.spread(self.trial, asked, self.propose)
        elif size > 1 or self.deps.kept is not None:
            found = map(self.propose, asked)
        else:
            return None
        return found if size == 1 else self._singles(found, asked, steps)

    def _group(self) -> int:
        """Return how many steps' proposals are computed together."""
        alone = self.trial.protocol.batch_size == 1
        return self.editor.group if alone and isinstance(self.editor, GroupProposer) else 1

    def _grouped(self, step: int) -> range:
        """Return the steps whose proposals are computed with that of *step*: the same ones wherever and whenever asked for."""
        size, last = self._group(), self.trial.protocol.rounds[-1]
        first = (step - 1) // size * size + 1
        return range(first, min(first + size, last + 1))

    def _singles(self, groups: Iterator[Proposal], asked: Sequence[int], steps: Sequence[int]) -> Iterator[Proposal]:
        """Yield the proposals of *steps* out of those of their groups."""
        wanted = set(steps)
        for end in asked:
            group = next(groups)
            yield from (group[str(step)] for step in self._grouped(end) if step in wanted)

    def propose(self, step: int) -> Proposal:
        """Return what the batch that reaches *step* adds; or, by step, what those of its group do.

        A proposal of one record that took nothing from its generator depends on neither step nor seed, so it is kept. In a group it
        depends, by rounding, on the other members.
        """
        assert isinstance(self.editor, Proposer)
        if self._group() > 1:
            assert isinstance(self.editor, GroupProposer)
            steps = self._grouped(step)
            batches, rngs = [self._batch(s) for s in steps], [self._rng(s) for s in steps]
            each = self.editor.propose_group(self.lm, batches, artifacts=self.artifacts, rngs=rngs)
            return {str(s): p for s, p in zip(steps, each, strict=True)}
        batch, kept = self._batch(step), self.deps.kept
        known = kept.get(batch[0].id) if kept is not None and len(batch) == 1 else None
        if known is not None:
            return known
        rng = self._rng(step)
        before = rng.get_state()
        found: Proposal = self.editor.propose(self.lm, batch, artifacts=self.artifacts, rng=rng)
        if kept is not None and len(batch) == 1 and torch.equal(before, rng.get_state()):
            kept.put(batch[0].id, found)
        return found

    def _round(self, step: int, state: Any) -> Iterator[tuple[str, EvalRound]]:
        """Let each member measure everything in scope and hand over what has accumulated."""
        protocol = self.trial.protocol
        self.deps.progress(Progress(step, protocol.rounds[-1], "round"))
        everything = step == 0 or protocol.scope == "all"
        questions = self._questions(range(self._size if everything else step))
        count = self._size if everything else step
        due = self._due(step)
        if step == 0 and due:  # the unedited model is the same for all
            with _timed(self.clock if len(due) > 1 else due[0].clock, "round", count):
                self._measure(due[0], questions, 0)
                self._observed(0)
            for member in due[1:]:
                member.keep([replace(r, trial_key=member.trial.key) for r in due[0].rows])
        shared, self.clock = self._shared_clock(), {}
        tensors: dict[str, Tensor] | None = None
        for member in due:
            if step:
                with (
                    self._blamed(member),
                    _timed(member.clock, "round", count),
                    self._view(member, state, step, keep=True),
                ):
                    self._measure(member, questions, step)
                    self._observed(step)
                    member.note(step, {f"{NON_FINITE_STAT}{n}": float(c) for n, c in self.ledger.non_finite().items()})
            member.note(step, {f"drift/{name}": norm for name, norm in self.ledger.norms().items()})
            with _timed(member.clock, "snapshot", 1):
                if tensors is None:  # after the first view: only a lone member's may persist
                    kept, plain = pytree.flatten("state", state)
                    tensors = {f"weights/{n}": t for n, t in self.ledger.tensors().items()} | kept
                    meta = {"version": __version__, "state": plain}
            yield member.trial.key, member.hand_over(step, shared, tensors, meta)

    def _observed(self, step: int) -> None:
        if self.deps.observe is not None:
            self.deps.observe(self.lm, step)

    def _shared_clock(self) -> Clock:
        """Return what all members did together, under names that say so where there are several."""
        return {f"{phase}{SHARED if len(self.members) > 1 else ''}": slot for phase, slot in self.clock.items()}

    @contextmanager
    def _blamed(self, member: _Member) -> Iterator[None]:
        """Tell the others of a pass whose error it was."""
        try:
            yield
        except Exception as error:
            if len(self.members) == 1:
                raise
            raise MemberError(member.trial.key) from error

    @contextmanager
    def _view(self, member: _Member, state: Any, step: int, *, keep: bool) -> Iterator[None]:
        """Let the model be what the member wants to report inside the block; a persistent view stays if *keep*."""
        if not isinstance(member.editor, Viewer) or not step:
            yield
            return
        view = member.editor.view(self.lm, self.ledger.totals(), state)
        member.note(step, view.stats)
        if keep and member.editor.persists:
            self.ledger.apply(view.patch)
            yield
        else:
            with self.ledger.viewed(view.patch.deltas):
                yield

    @property
    def _size(self) -> int:
        return self.trial.protocol.rounds[-1] or len(self.records)

    def _questions(self, positions: range) -> list[Question]:
        kinds = set(self.trial.protocol.probes)
        return [
            (i, self.records[i], j, probe)
            for i in positions
            for j, probe in enumerate(self.records[i].probes)
            if probe.kind in kinds
        ]

    def _ask_pristine(self) -> None:
        """Ask the pristine model every question of round 0, or those that are compared with its own answers."""
        everything = 0 in self.trial.protocol.rounds
        asked = [q for q in self._questions(range(self._size)) if everything or q[3].against == "base"]
        protocol = self.trial.protocol
        with _timed(self.clock, "base", len(asked)):
            scores = pristine.answers(
                self.lm, [q[3] for q in asked], self._ask_probes, self.deps.artifacts,
                asking=protocol.asking, batch=protocol.eval_batch, threads=self.trial.threads,
            )  # fmt: skip
        self.pristine = {(i, j): s for (i, _, j, _), s in zip(asked, scores, strict=True)}

    def _ask(self, questions: Sequence[Question]) -> list[scoring.Scores]:
        """Ask *questions* of the model as it stands."""
        return self._ask_probes([q[3] for q in questions])

    def _ask_probes(self, probes: Sequence[Probe]) -> list[scoring.Scores]:
        """Ask *probes* of the model as it stands, the way the protocol says."""
        protocol = self.trial.protocol
        if protocol.asking == "teacher_forced":
            return scoring.score(self.lm, probes, batch=protocol.eval_batch)
        published = protocol.asking == "generation_ref"
        return generation.score_generated(self.lm, probes, batch=protocol.eval_batch, published=published)

    def _measure(self, member: _Member, questions: Sequence[Question], step: int) -> None:
        """Ask *questions* of the model as it stands; *member* keeps one row per metric."""
        scores = self._ask(questions) if step else [self.pristine[i, j] for i, _, j, _ in questions]
        base = {k: kept.answers for k, kept in self.pristine.items()}
        member.keep(probe_rows(member.trial.key, step, questions, scores, base, self.superseded))

    def _wake(self, resume: Snapshot) -> Any:
        """Bring weights and editor state of *resume* back; return the state."""
        self.ledger.load({n[8:]: t.to(self.lm.device) for n, t in resume.tensors.items() if n.startswith("weights/")})
        state = pytree.unflatten("state", resume.tensors, resume.meta["state"], self.lm.device)
        if self.editor.patch_kind == "modules":
            self.ledger.apply(self.editor.patch_of(self.lm, state))  # type: ignore[attr-defined]
        return state


def probe_rows(
    key: str,
    step: int,
    questions: Sequence[Question],
    scores: Sequence[scoring.Scores],
    base: Mapping[tuple[int, int], tuple[int, ...]],
    superseded: Mapping[int, int],
) -> list[ProbeRow]:
    """Return one row per question and metric.

    Args:
        key: of the trial.
        step: records edited so far.
        questions: what was asked.
        scores: what came back, question by question.
        base: the pristine model's answers, by position of the record and index of the probe.
        superseded: see :class:`ProbeRow`, by position.
    """
    rows = []
    for (i, record, j, probe), found in zip(questions, scores, strict=True):
        answer = Answer(found.labels, found.answers, base.get((i, j), ()), found.logprob)
        for name, metric in METRICS.items():
            if metric.needs != probe.against:
                continue
            rows.append(
                ProbeRow(
                    trial_key=key,
                    step=step,
                    record_id=record.id,
                    edit_step=i + 1,
                    superseded_step=superseded.get(i),
                    probe_kind=str(probe.kind),
                    probe_name=probe.name,
                    probe_index=j,
                    metric=name,
                    value=metric(answer),
                    n_tokens=len(found.labels),
                    prompt_digest=text_digest(f"{probe.prompt}\x1f{probe.target}"),
                    answer=found.text,
                )
            )
    return rows


def ordered(trial: TrialSpec, deps: Deps) -> Sequence[EditRecord]:
    """Return the records of *trial* in its order."""
    if deps.chosen is not None:
        return deps.chosen
    records = tuple(deps.open_dataset(trial.data))
    return order(records, derive(trial.seed, "order")) if trial.data.order == "seeded" else records


def _provided(editor: BaseEditor[Any], trial: TrialSpec, lm: LanguageModel, deps: Deps) -> Mapping[str, Any]:
    """Return the artifacts that *editor* needs."""
    return build.provide(
        lm,
        editor.needs(lm),
        deps.artifacts,
        lambda text: deps.texts(text, trial.data),
        records=deps.open_dataset,
        threads=trial.threads,
    )


def _timed(clock: Clock, phase: str, count: int) -> _Timer:
    return _Timer(clock.setdefault(phase, [0.0, 0]), count)


class _Timer:
    """Add the seconds of a block to a slot."""

    def __init__(self, slot: list[float], count: int) -> None:
        self.slot, self.count = slot, count

    def __enter__(self) -> None:
        self.began = perf_counter()

    def __exit__(self, *error: object) -> None:
        self.slot[0] += perf_counter() - self.began
        self.slot[1] += self.count


_FIELDS = tuple(ProbeRow.__dataclass_fields__)


def _as_list(row: ProbeRow) -> list[Any]:
    return [getattr(row, name) for name in _FIELDS]


def _columns(rows: Sequence[ProbeRow]) -> dict[str, list[object]]:
    unique = {(r.step, r.record_id, r.probe_index, r.metric): r for r in rows}
    return {name: [getattr(r, name) for r in unique.values()] for name in _FIELDS}


def _superseded(records: Sequence[EditRecord]) -> dict[int, int]:
    """Return, by position, the step at which a later record with the same prompt and another target is written."""
    latest: dict[str, int] = {}
    found: dict[int, int] = {}
    for i in range(len(records) - 1, -1, -1):
        later = latest.get(records[i].prompt)
        if later is not None and records[later].target != records[i].target:
            found[i] = later + 1
        if later is not None and records[later].target == records[i].target and later in found:
            found[i] = found[later]
        latest[records[i].prompt] = i
    return found
