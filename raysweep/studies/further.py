"""Protocols that are asked at the rounds beside the main asking (``protocol.also``), and the rows that come of them.

They are asked at rounds only, never right after each edit: fifty tokens of every probe take as long as an edit does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raysweep import protocols
from raysweep.artifact_kinds import VERSIONS
from raysweep.artifacts import ArtifactRequest, ArtifactStore, Built
from raysweep.errors import DataError, ModelError
from raysweep.hashing import digest
from raysweep.lazy import lazy
from raysweep.protocols import ACCURACY, MARGIN, NORMALISED, PROTOCOLS, SAME, SUCCESS, WHOLE, metric_name
from raysweep.records import Probe, ProbeKind
from raysweep.rows import AnswerRow, ProbeRow
from raysweep.studies.measuring import Question, Questionnaire, columns_of, prompt_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.config.schema import AlsoSpec
    from raysweep.evals import free, likelihood
    from raysweep.models import tokens
    from raysweep.models.lm import LanguageModel
else:
    torch, tokens = lazy("torch"), lazy("raysweep.models.tokens")
    free, likelihood = lazy("raysweep.evals.free"), lazy("raysweep.evals.likelihood")

NEAR_TIES = "near_ties/"
"""Begins the name of a StatRow that counts the answers of a protocol whose smallest margin is within rounding."""
_STOPS: tuple[protocols.Stop, ...] = ("eos", "string", "length", "non_finite")
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Further:
    """What the protocols measured at one round: values, answers written freely, and counts of near ties."""

    rows: Sequence[ProbeRow] = ()
    answers: Sequence[AnswerRow] = ()
    stats: Mapping[str, float] = field(default_factory=dict)

    def of(self, key: str) -> Further:
        """Return the same as measured by the trial *key*."""
        rows = [replace(row, trial_key=key) for row in self.rows]
        return Further(rows, [replace(row, trial_key=key) for row in self.answers], self.stats)


@dataclass(slots=True)
class FurtherAsking:
    """Asks the questions of a run under further protocols.

    Attributes:
        questionnaire: of the run; it says of whom, and of which records.
        unedited: what the unedited model wrote, by protocol and place.
    """

    questionnaire: Questionnaire
    unedited: dict[str, dict[Place, free.Written]] = field(default_factory=dict)

    def ask_baseline(self, questions: Sequence[Question], artifacts: ArtifactStore) -> None:
        """Let the unedited model write its answers to *questions*, or find them in the store; they are kept for all rounds.

        Raises:
            DataError: a record lacks what a protocol compares with.
            ModelError: the tokenizer has no chat template, or a question leaves no room for an answer.
        """
        everything = self.questionnaire.questions(range(self.questionnaire.size))
        for one in self.questionnaire.trial.protocol.also:
            protocol = PROTOCOLS[one.id]
            # Everything is looked at before the first edit, which may be hours before the round that needs it.
            asked = [q for q in everything if q.probe.kind in protocol.kinds]
            if protocol.needs_true:
                _check_true(asked, self.questionnaire.trial.data.name)
            if protocol.max_tokens:
                _check_room(self.questionnaire.lm, one, asked)
                chosen = [q for q in questions if q.probe.kind in protocol.kinds]
                found = _kept(self.questionnaire, one, [q.probe for q in chosen], artifacts)
                self.unedited[one.label] = dict(zip([q.place for q in chosen], found, strict=True))

    def measure(self, key: str, questions: Sequence[Question], step: int) -> Further:
        """Return what every further protocol makes of *questions*, asked of the model as it stands after *step* records."""
        rows: list[ProbeRow] = []
        answers: list[AnswerRow] = []
        stats: dict[str, float] = {}
        for one in self.questionnaire.trial.protocol.also:
            protocol = PROTOCOLS[one.id]
            asked = [q for q in questions if q.probe.kind in protocol.kinds]
            if not protocol.max_tokens:
                rows += self._compared(key, one, asked, step)
                continue
            kept = self.unedited[one.label]
            # Round 0 is the unedited model, which was asked before the first edit.
            found = (
                [kept[q.place] for q in asked] if not step else write(self.questionnaire, one, [q.probe for q in asked])
            )
            written = [self._answer(key, one, q, w, step) for q, w in zip(asked, found, strict=True)]
            answers += written
            for question, answer in zip(asked, written, strict=True):
                rows += _values(question, answer)
            # also where it is 0: a reader tells "none" from "not counted"
            stats[f"{NEAR_TIES}{one.label}"] = float(sum(a.near_tie for a in written))
        return Further(rows, answers, stats)

    def _answer(self, key: str, one: AlsoSpec, question: Question, written: free.Written, step: int) -> AnswerRow:
        """Return the row of what was *written* to *question*."""
        lm, probe = self.questionnaire.lm, question.probe
        raw, whole = (tokens.decode(lm, written.ids[: extent.length]) for extent in (written.published, written.whole))
        eos = str(lm.tokenizer.eos_token or "")
        answer = protocols.cleaned(raw, eos)
        scored = probe.against == "target" and written.published.stop != "non_finite"
        # Locality needs no right answer: what counts is that it is the answer from before.
        before = self.unedited[one.label].get(question.place) if probe.against == "base" else None
        compared = before is not None and "non_finite" not in (written.published.stop, before.published.stop)
        whole_scored = scored and written.whole.stop != "non_finite"
        return AnswerRow(
            **columns_of(key, step, question, self.questionnaire.superseded),
            protocol=one.label,
            prompt=sent(lm, one, probe),
            target=probe.target,
            raw=raw,
            stop=written.published.stop,
            n_tokens=written.published.length,
            answer=answer,
            affected=protocols.inner_full_stops(probe.target) > 0,
            raw_whole=None if written.whole == written.published else whole,
            normalised_match=float(protocols.is_match(answer, probe.target)) if scored else None,
            whole_match=float(protocols.is_match(protocols.cleaned(whole, eos), probe.target))
            if whole_scored
            else None,
            same_answer=float(before.text_ids == written.text_ids) if before is not None and compared else None,
            margin=None if written.margin != written.margin else written.margin,
            near_tie=written.near_tie,
        )

    def _compared(self, key: str, one: AlsoSpec, questions: Sequence[Question], step: int) -> list[ProbeRow]:
        """Return the rows of a protocol that compares the likelihoods of two answers."""
        batch = self.questionnaire.trial.protocol.eval_batch
        found = likelihood.compare(self.questionnaire.lm, [_two_answers(q) for q in questions], batch=batch)
        rows = []
        for question, answers in zip(questions, found, strict=True):
            values = {SUCCESS: answers.success, ACCURACY: answers.accuracy, MARGIN: answers.right - answers.wrong}
            rows += [
                ProbeRow(
                    **columns_of(key, step, question, self.questionnaire.superseded),
                    metric=metric_name(name, one.label),
                    value=value if answers.n_tokens else None,
                    n_tokens=answers.n_tokens,
                    prompt_digest=prompt_digest(question.probe),
                    answer=answers.text,
                )
                for name, value in values.items()
            ]
        return rows


def _values(question: Question, answer: AnswerRow) -> list[ProbeRow]:
    """Return what was computed of *answer*, as rows of ``probes``; a value is NaN where the logits were not finite."""
    if question.probe.against == "base":
        values = {SAME: answer.same_answer}
    else:
        values = {NORMALISED.name: answer.normalised_match, WHOLE.name: answer.whole_match}
    # the columns that both tables have, n_tokens and answer among them
    place = {name: getattr(answer, name) for name in ProbeRow.__dataclass_fields__ if hasattr(answer, name)}
    return [
        ProbeRow(
            **place | {"metric": metric_name(name, answer.protocol), "value": float("nan") if value is None else value},
            prompt_digest=prompt_digest(question.probe),
        )
        for name, value in values.items()
    ]


def sent(lm: LanguageModel, one: AlsoSpec, probe: Probe) -> str:
    """Return the text that *probe* is asked with."""
    return tokens.as_chat(lm, probe.prompt) if one.prompt == "chat" else protocols.question(one.prompt, probe)


def _asked(lm: LanguageModel, one: AlsoSpec, probe: Probe) -> free.Asked:
    text = sent(lm, one, probe)
    # a chat template writes BOS out as text
    encode: Callable[[LanguageModel, str], list[int]] = tokens.encode_alone if one.prompt == "chat" else tokens.encode
    return free.Asked(tuple(encode(lm, text)), protocols.inner_full_stops(probe.target))


def write(questionnaire: Questionnaire, one: AlsoSpec, probes: Iterable[Probe]) -> list[free.Written]:
    """Return what the model as it stands writes to *probes* under the protocol *one*."""
    lm, batch = questionnaire.lm, questionnaire.trial.protocol.eval_batch
    return free.write(lm, [_asked(lm, one, p) for p in probes], most=PROTOCOLS[one.id].max_tokens, batch=batch)


def _kept(
    questionnaire: Questionnaire, one: AlsoSpec, probes: Sequence[Probe], artifacts: ArtifactStore
) -> list[free.Written]:
    """Return what the unedited model writes to *probes*: written now, or found in the store."""
    if not probes:
        return []
    lm, trial = questionnaire.lm, questionnaire.trial
    # What is asked does not depend on the target, but where an answer ends may (its inner full stops).
    asked = {p: _asked(lm, one, p) for p in probes}
    # Sorted, so that trials that differ in the order of their records share what is kept.
    distinct = sorted(set(asked.values()))
    request = ArtifactRequest(
        kind="answers",
        inputs={"asking": one.label, "batch": trial.protocol.eval_batch, "questions": digest(distinct)},
        builder=f"{__name__}:write",
        model=lm.identity,
        version=VERSIONS["answers"],
        threads=trial.threads,
    )
    most = PROTOCOLS[one.id].max_tokens
    kept = artifacts.get_or_build(
        request, lambda: _packed(free.write(lm, distinct, most=most, batch=trial.protocol.eval_batch))
    )
    found = dict(zip(distinct, _unpacked(kept.tensors), strict=True))
    return [found[asked[p]] for p in probes]


def _packed(written: Sequence[free.Written]) -> Built:
    # Answers differ in length: all ids in one tensor behind each other, and the lengths to cut it by.
    numbers = [
        [len(w.ids), w.published.length, _STOPS.index(w.published.stop), _STOPS.index(w.whole.stop), int(w.near_tie)]
        for w in written
    ]
    return {
        "ids": torch.tensor([i for w in written for i in w.ids], dtype=torch.int64),
        "numbers": torch.tensor(numbers, dtype=torch.int64),
        "margin": torch.tensor([w.margin for w in written], dtype=torch.float64),
    }, {}


def _unpacked(tensors: Mapping[str, Tensor]) -> list[free.Written]:
    numbers, margins = tensors["numbers"].tolist(), tensors["margin"].tolist()
    parts = torch.split(tensors["ids"], [row[0] for row in numbers])
    return [
        free.Written(
            tuple(ids.tolist()), free.Extent(short, _STOPS[stop]), free.Extent(length, _STOPS[end]), margin, bool(near)
        )
        for ids, (length, short, stop, end, near), margin in zip(parts, numbers, margins, strict=True)
    ]


def _two_answers(question: Question) -> tuple[str, str, str]:
    """Return prompt, the answer that should be likelier, and the other one."""
    probe, record = question.probe, question.record
    # Neighbours keep the true answer that they share with the record; what was written must not spread to them.
    other = record.target if probe.kind == ProbeKind.LOCALITY else record.target_true
    return probe.prompt, probe.target, other


def _check_true(questions: Sequence[Question], dataset: str) -> None:
    """Raise :class:`DataError` unless every record says what was true before."""
    lacking = list(dict.fromkeys(q.record.id for q in questions if not q.record.target_true.strip()))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"memit_compat compares with the true answer, which dataset '{dataset}' does not give for {lacking[0]}{more}",
            hint="use data that has it (docs/protocols.md lists them), or leave memit_compat out of protocol.also",
        )


def _check_room(lm: LanguageModel, one: AlsoSpec, questions: Sequence[Question]) -> None:
    """Raise :class:`ModelError` where a question and as many tokens as an answer may have are more than the model's positions."""
    # The planner looks at prompts and targets; an answer may be longer than any target.
    most, limit = PROTOCOLS[one.id].max_tokens, lm.positions
    longest = max(((len(_asked(lm, one, q.probe).ids), q.record.id) for q in questions), default=(0, ""))
    if limit and longest[0] + most > limit:
        raise ModelError(
            f"{one.label} asks {longest[1]} with {longest[0]} tokens and lets the model write {most}; it has {limit} positions",
            hint="shorten or drop the record, or use a model with more positions",
        )
