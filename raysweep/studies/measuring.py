"""What is asked of the model at a round, and the rows that come of it.

A *question* is one probe of one record. At a round every question in scope is asked of the model as it stands; the answers of the
unedited model are asked once, at the start, since some metrics compare with them (locality) and since round 0 is made of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from raysweep.hashing import text_digest
from raysweep.lazy import lazy
from raysweep.metrics import Answer, metric_of
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.rows import ProbeRow

if TYPE_CHECKING:
    from raysweep.artifacts import ArtifactStore
    from raysweep.config.schema import TrialSpec
    from raysweep.evals import generation, scoring
    from raysweep.models.lm import LanguageModel
    from raysweep.studies import baseline
else:
    scoring, generation = lazy("raysweep.evals.scoring"), lazy("raysweep.evals.generation")
    baseline = lazy("raysweep.studies.baseline")


class Question(NamedTuple):
    """One probe of one record.

    Attributes:
        position: of the record in the run, from 0.
        record: it.
        probe_index: which of the record's probes.
        probe: it.
    """

    position: int
    record: EditRecord
    probe_index: int
    probe: Probe

    @property
    def place(self) -> tuple[int, int]:
        """Position of the record and index of the probe."""
        return self.position, self.probe_index


@dataclass(slots=True)
class Questionnaire:
    """Asks the questions of a run, the way its protocol says.

    Attributes:
        trial: whose protocol, probes and batch size.
        lm: the model that is asked, as it stands.
        records: of the run, in its order.
        unedited: what the unedited model answered, by :attr:`Question.place`.
        unknown: places of the probes that do not count, since the unedited model does not know what it must.
        superseded: by position, the step at which a later record overwrites this one.
    """

    trial: TrialSpec
    lm: LanguageModel
    records: Sequence[EditRecord]
    unedited: dict[tuple[int, int], scoring.Scores] = field(default_factory=dict)
    unknown: set[tuple[int, int]] = field(default_factory=set)
    superseded: Mapping[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.superseded = superseded_steps(self.records)

    @property
    def size(self) -> int:
        """How many records the run edits or, without edits, asks about."""
        return self.trial.protocol.rounds[-1] or len(self.records)

    def questions(self, positions: Iterable[int]) -> list[Question]:
        """Return the questions about the records at *positions*, of the kinds that the protocol asks."""
        kinds = set(self.trial.protocol.probes)
        return [
            Question(i, self.records[i], j, probe)
            for i in positions
            for j, probe in enumerate(self.records[i].probes)
            if probe.kind in kinds
        ]

    def baseline_questions(self) -> list[Question]:
        """Return what the unedited model is asked: everything of round 0, or what is compared with its own answers."""
        everything = 0 in self.trial.protocol.rounds
        return [q for q in self.questions(range(self.size)) if everything or q.probe.against == "base"]

    def ask_baseline(self, questions: Sequence[Question], artifacts: ArtifactStore) -> None:
        """Ask the unedited model *questions*, or find its answers in the store; they are kept for all rounds."""
        self.unedited = dict(
            zip([q.place for q in questions], self._unedited([q.probe for q in questions], artifacts), strict=True)
        )
        if ANY_MATCH in self.trial.protocol.metrics:
            self._ask_what_is_known(artifacts)

    def _unedited(self, probes: Sequence[Probe], artifacts: ArtifactStore) -> list[scoring.Scores]:
        """Return what the unedited model answers to *probes*: asked now, or found in the store."""
        protocol = self.trial.protocol
        return baseline.answers(
            self.lm, probes, self.ask, artifacts,
            asking=protocol.asking, batch=protocol.eval_batch, threads=self.trial.threads,
        )  # fmt: skip

    def _ask_what_is_known(self, artifacts: ArtifactStore) -> None:
        """Note which probes do not count, since the unedited model lacks something that it must know."""
        asked = [
            (q.place, number, pair)
            for q in self.questions(range(self.size))
            for number, pairs in enumerate(q.probe.known)
            for pair in pairs
        ]
        scores = self._unedited([_plain(pair) for _, _, pair in asked], artifacts)
        known: dict[tuple[tuple[int, int], int], bool] = {}
        for (place, number, _), score in zip(asked, scores, strict=True):
            known[place, number] = known.get((place, number), False) or _is_right(score)
        self.unknown = {place for (place, _), is_known in known.items() if not is_known}

    def ask(self, probes: Sequence[Probe]) -> list[scoring.Scores]:
        """Ask *probes* of the model as it stands."""
        protocol = self.trial.protocol
        if protocol.asking == "teacher_forced":
            return scoring.score(self.lm, probes, batch=protocol.eval_batch)
        published = protocol.asking == "generation_ref"
        return generation.score_generated(self.lm, probes, batch=protocol.eval_batch, published=published)

    def rows(self, key: str, questions: Sequence[Question], step: int) -> list[ProbeRow]:
        """Return the rows of trial *key* about *questions*, asked of the model as it stands after *step* records."""
        # Round 0 is the unedited model, which was asked before the first edit.
        scores = self.ask([q.probe for q in questions]) if step else [self.unedited[q.place] for q in questions]
        unedited = {place: found.answers for place, found in self.unedited.items()}
        metrics = self.trial.protocol.metrics
        matched = self._matched(questions) if ANY_MATCH in metrics else frozenset[tuple[int, int]]()
        return probe_rows(key, step, questions, scores, unedited, self.superseded, metrics, matched, self.unknown)

    def _matched(self, questions: Sequence[Question]) -> frozenset[tuple[int, int]]:
        """Return the places of those of *questions* one of whose alternatives the model answers as it stands."""
        asked = [(q.place, pair) for q in questions for pair in q.probe.alternatives]
        scores = self.ask([_plain(pair) for _, pair in asked]) if asked else []
        return frozenset(place for (place, _), score in zip(asked, scores, strict=True) if _is_right(score))


ANY_MATCH = "any_match"  # the metric that asks for more than the probe itself


def _plain(pair: tuple[str, str]) -> Probe:
    """Return a question with an answer as a probe; its kind is never looked at."""
    return Probe(kind=ProbeKind.PORTABILITY, prompt=pair[0], target=pair[1])


def _is_right(score: scoring.Scores) -> bool:
    """Whether every token of the target was answered."""
    return bool(score.labels) and score.answers == score.labels


def probe_rows(
    key: str,
    step: int,
    questions: Sequence[Question],
    scores: Sequence[scoring.Scores],
    unedited: Mapping[tuple[int, int], tuple[int, ...]],
    superseded: Mapping[int, int],
    metrics: Sequence[str],
    matched: Collection[tuple[int, int]] = (),
    unknown: Collection[tuple[int, int]] = (),
) -> list[ProbeRow]:
    """Return one row per question and metric.

    Args:
        key: of the trial.
        step: records edited so far.
        questions: what was asked.
        scores: what came back, question by question.
        unedited: the unedited model's answers (token ids), by position of the record and index of the probe.
        superseded: see :class:`raysweep.rows.ProbeRow`, by position.
        metrics: names of those to compute; each applies to the probes that are compared with what it needs.
        matched: places of the probes one of whose alternatives was answered.
        unknown: places of the probes that do not count.
    """
    rows, computed = [], [metric_of(name) for name in metrics]
    for question, score in zip(questions, scores, strict=True):
        probe, place = question.probe, columns_of(key, step, question, superseded)
        # () where the unedited model was not asked: only metrics that need "base" look there.
        base = unedited.get(question.place, ())
        answer = Answer(
            score.labels, score.answers, base, score.logprob, question.place in matched, question.place not in unknown
        )
        for metric in computed:
            # A metric applies to the probes that are compared with what it needs: the target, or the unedited model's answer.
            if metric.needs != probe.against:
                continue
            rows.append(
                ProbeRow(
                    **place,
                    metric=metric.name,
                    value=metric(answer),
                    n_tokens=len(score.labels),
                    prompt_digest=prompt_digest(probe),
                    answer=score.text,
                )
            )
    return rows


def columns_of(key: str, step: int, question: Question, superseded: Mapping[int, int]) -> dict[str, Any]:
    """Return what rows of trial *key* about *question* at *step* begin with (:class:`raysweep.rows.ProbePlace`), by column."""
    return {
        "trial_key": key,
        "step": step,
        "record_id": question.record.id,
        "edit_step": question.position + 1,
        "superseded_step": superseded.get(question.position),
        "probe_kind": str(question.probe.kind),
        "probe_name": question.probe.name,
        "probe_index": question.probe_index,
    }


def prompt_digest(probe: Probe) -> str:
    """Return 16 hex digits over prompt and target of *probe*."""
    return text_digest(f"{probe.prompt}\x1f{probe.target}")


def superseded_steps(records: Sequence[EditRecord]) -> dict[int, int]:
    """Return, by position, the step at which a later record with the same prompt and another target is written."""
    # From the last record backwards: by prompt, the nearest record that is written later, its answer, and when that is overwritten.
    later: dict[str, tuple[int, str, int | None]] = {}
    steps: dict[int, int] = {}
    for i in range(len(records) - 1, -1, -1):
        ends = []
        for edit in records[i].edits:
            step, target, end = later.get(edit.prompt, (0, edit.target, None))
            # The same answer once more: it holds until that one is overwritten.
            own = end if target == edit.target else step
            ends += [own] if own else []
            later[edit.prompt] = i + 1, edit.target, own
        if ends:
            steps[i] = min(ends)
    return steps
