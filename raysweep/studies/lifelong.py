"""The lifelong study: edit record after record, measure at rounds. The only place that calls ``Editor.edit``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep import __version__
from raysweep.config.schema import TrialSpec
from raysweep.data.sampling import order
from raysweep.editors.base import Viewer
from raysweep.errors import Problem
from raysweep.evals.metrics import METRICS, Answer
from raysweep.hashing import text_digest
from raysweep.lazy import lazy
from raysweep.records import EditRecord, Probe
from raysweep.rows import EvalRound, ProbeRow, Snapshot, StatRow, TimingRow
from raysweep.seeds import derive
from raysweep.studies.base import Deps, Progress
from raysweep.summarize import summary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.editors import build
    from raysweep.editors.base import Editor
    from raysweep.evals import boundaries, generation, scoring
    from raysweep.models import patching
    from raysweep.models.lm import LanguageModel
else:
    torch, build = lazy("torch"), lazy("raysweep.editors.build")
    scoring, patching = lazy("raysweep.evals.scoring"), lazy("raysweep.models.patching")
    boundaries, generation = (lazy(f"raysweep.evals.{n}") for n in ("boundaries", "generation"))

Question = tuple[int, EditRecord, int, Probe]  # position in the run, record, index of the probe, probe


class Lifelong:
    """Edit T records in order; at each round measure every record in scope on the model as it stands."""

    name: ClassVar[str] = "lifelong"
    version: ClassVar[int] = 1

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
        run = _Run.open(trial, deps)
        try:
            yield from run.rounds(resume)
        finally:
            run.ledger.restore()


@dataclass(slots=True)
class _Run:
    """One execution: what stays (trial, records, editor) and what accumulates until the next round."""

    trial: TrialSpec
    deps: Deps
    lm: LanguageModel
    records: Sequence[EditRecord]
    superseded: Mapping[int, int]
    editor: Editor[Any]
    artifacts: Mapping[str, Any]
    ledger: patching.Ledger
    base: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    rows: list[ProbeRow] = field(default_factory=list)
    seen: list[ProbeRow] = field(default_factory=list)
    stats: list[StatRow] = field(default_factory=list)
    clock: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def open(cls, trial: TrialSpec, deps: Deps) -> _Run:
        torch.set_num_threads(trial.threads)
        began = perf_counter()
        lm = deps.load_model(trial.model)
        loaded = perf_counter()
        records = tuple(deps.open_dataset(trial.data))
        if trial.data.order == "seeded":
            records = order(records, derive(trial.seed, "order"))
        editor = build.build_editor(trial.editor)
        deps.progress(Progress(0, trial.protocol.rounds[-1], "artifacts"))
        needs = editor.needs(lm)
        artifacts = build.provide(
            lm, needs, deps.artifacts, lambda text: deps.texts(text, trial.data), records=deps.open_dataset
        )
        run = cls(trial, deps, lm, records, _superseded(records), editor, artifacts, patching.Ledger(lm))
        run.clock["load"] = [loaded - began, 1]
        run.clock["artifacts"] = [perf_counter() - loaded, 1]
        return run

    def rounds(self, resume: Snapshot | None) -> Iterator[EvalRound]:
        """Yield a round at each step of the protocol."""
        protocol = self.trial.protocol
        self._ask_base()
        probes = [q[3] for q in self._questions(range(self._size))]
        boundaries.report(self.lm, self.records[: self._size], probes)
        state = self.editor.begin(self.lm, self.artifacts)
        step = 0
        if resume is not None:
            step, state = resume.step, self._wake(resume)
        elif 0 in protocol.rounds:
            yield self._round(0, state)
        while step < protocol.rounds[-1]:
            batch = self.records[step : step + protocol.batch_size]
            step += len(batch)
            state = self._edit(batch, state, step)
            if step in protocol.rounds:
                yield self._round(step, state)
            elif protocol.immediate:
                with self._timed("immediate", len(batch)), self._view(state, step, keep=False):
                    self._measure(self._questions(range(step - len(batch), step)), step)

    def _edit(self, batch: Sequence[EditRecord], state: Any, step: int) -> Any:
        self.deps.progress(Progress(step - len(batch), self.trial.protocol.rounds[-1], "edit"))
        rng = torch.Generator(device="cpu").manual_seed(derive(self.trial.seed, "edit", step))
        with self._timed("edit", len(batch)):
            done = self.editor.edit(self.lm, batch, state, artifacts=self.artifacts, rng=rng)
        with self._timed("apply", len(batch)):
            self.ledger.apply(done.patch)
        self.stats += self._stat_rows(step, done.stats)
        return done.state

    def _round(self, step: int, state: Any) -> EvalRound:
        """Measure everything in scope and hand over what has accumulated."""
        protocol = self.trial.protocol
        self.deps.progress(Progress(step, protocol.rounds[-1], "round"))
        everything = step == 0 or protocol.scope == "all"
        chosen = range(self._size if everything else step)
        with self._timed("round", len(chosen)), self._view(state, step, keep=True):
            self._measure(self._questions(chosen), step)
        self.stats += self._stat_rows(step, {f"drift/{name}": norm for name, norm in self.ledger.norms().items()})
        with self._timed("snapshot", 1):
            snapshot = Snapshot(
                step=step,
                tensors={f"weights/{n}": t for n, t in self.ledger.tensors().items()} | _flatten("state", state)[0],
                meta={
                    "version": __version__,
                    "state": _flatten("state", state)[1],
                    "immediate": [_as_list(r) for r in self.seen],
                },
            )
        timing = [
            TimingRow(trial_key=self.trial.key, step=step, phase=phase, seconds=seconds, count=int(count))
            for phase, (seconds, count) in sorted(self.clock.items())
        ]
        columns = _columns([*self.seen, *self.rows])
        found = EvalRound(
            step=step,
            rows=tuple(self.rows),
            stats=tuple(self.stats),
            timing=tuple(timing),
            summary=summary(columns, step, protocol.batch_size),
            snapshot=snapshot if step else None,
        )
        self.rows, self.stats, self.clock = [], [], {}
        return found

    @contextmanager
    def _view(self, state: Any, step: int, *, keep: bool) -> Iterator[None]:
        """Let the model be what the editor wants to report inside the block; a persistent view stays if *keep*."""
        if not isinstance(self.editor, Viewer) or not step:
            yield
            return
        view = self.editor.view(self.lm, self.ledger.totals(), state)
        self.stats += self._stat_rows(step, view.stats)
        if keep and self.editor.persists:
            self.ledger.apply(view.patch)
            yield
        else:
            with self.ledger.viewed(view.patch.deltas):
                yield

    def _stat_rows(self, step: int, stats: Mapping[str, float]) -> list[StatRow]:
        return [
            StatRow(trial_key=self.trial.key, step=step, name=name, value=float(value))
            for name, value in sorted(stats.items())
        ]

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

    def _ask_base(self) -> None:
        """Ask the pristine model every question that is compared with its own answer."""
        asked = [q for q in self._questions(range(self._size)) if q[3].against == "base"]
        with self._timed("base", len(asked)):
            scores = self._ask(asked)
        self.base = {(i, j): s.answers for (i, _, j, _), s in zip(asked, scores, strict=True)}

    def _ask(self, questions: Sequence[Question]) -> list[scoring.Scores]:
        """Ask *questions* of the model as it stands, the way the protocol says."""
        protocol, probes = self.trial.protocol, [q[3] for q in questions]
        if protocol.asking == "teacher_forced":
            return scoring.score(self.lm, probes, batch=protocol.eval_batch)
        published = protocol.asking == "generation_ref"
        return generation.score_generated(self.lm, probes, batch=protocol.eval_batch, published=published)

    def _measure(self, questions: Sequence[Question], step: int) -> None:
        """Ask *questions* of the model as it stands and keep one row per metric."""
        scores = self._ask(questions)
        new = []
        for (i, record, j, probe), found in zip(questions, scores, strict=True):
            answer = Answer(found.labels, found.answers, self.base.get((i, j), ()), found.logprob)
            for name, metric in METRICS.items():
                if metric.needs != probe.against:
                    continue
                new.append(
                    ProbeRow(
                        trial_key=self.trial.key,
                        step=step,
                        record_id=record.id,
                        edit_step=i + 1,
                        superseded_step=self.superseded.get(i),
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
        self.rows += new
        last = self.trial.protocol.batch_size
        self.seen += [r for r in new if step and 0 <= step - r.edit_step < last]

    def _wake(self, resume: Snapshot) -> Any:
        """Bring weights, editor state and the immediate rows of *resume* back."""
        self.ledger.load({n[8:]: t.to(self.lm.device) for n, t in resume.tensors.items() if n.startswith("weights/")})
        state = _unflatten("state", resume.tensors, resume.meta["state"], self.lm.device)
        if self.editor.patch_kind == "modules":
            self.ledger.apply(self.editor.patch_of(self.lm, state))  # type: ignore[attr-defined]
        self.seen = [ProbeRow(**dict(zip(_FIELDS, values, strict=True))) for values in resume.meta["immediate"]]
        return state

    def _timed(self, phase: str, count: int) -> _Timer:
        return _Timer(self.clock.setdefault(phase, [0.0, 0]), count)


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


def _flatten(prefix: str, node: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested state into tensors by path and JSON with ``None``-like markers in their place."""
    if isinstance(node, torch.Tensor):
        return {prefix: node.clone()}, {"__tensor__": prefix}
    if isinstance(node, Mapping):
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for key, value in node.items():
            found, plain[str(key)] = _flatten(f"{prefix}/{key}", value)
            tensors |= found
        return tensors, plain
    if isinstance(node, list | tuple):
        pairs = [_flatten(f"{prefix}/{i}", value) for i, value in enumerate(node)]
        return {k: v for t, _ in pairs for k, v in t.items()}, [p for _, p in pairs]
    return {}, node


def _unflatten(prefix: str, tensors: Mapping[str, Tensor], node: Any, device: torch.device) -> Any:
    """Undo :func:`_flatten`."""
    if isinstance(node, Mapping):
        if "__tensor__" in node:
            return tensors[node["__tensor__"]].to(device)
        return {key: _unflatten(f"{prefix}/{key}", tensors, value, device) for key, value in node.items()}
    if isinstance(node, list):
        return [_unflatten(f"{prefix}/{i}", tensors, value, device) for i, value in enumerate(node)]
    return node
