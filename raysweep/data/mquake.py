"""MQuAKE: edits and the multi-hop question whose answer follows from them (``MQuAKE-CF-3k-v2.json``, and the other files)."""

from __future__ import annotations

from typing import ClassVar

from raysweep.data.fields import Row, field, filled, objects, optional, texts
from raysweep.data.files import JsonDataset
from raysweep.errors import RecordError
from raysweep.records import EditRecord, Fact, Probe, ProbeKind

_REWRITES = "requested_rewrite"
_FILES = ("CF-3k-v2", "CF-3k", "CF", "T")


class MQuAKE(JsonDataset):
    """Cases of one to four edits, which are written together.

    Each edit has an efficacy probe and, as a paraphrase, its question; the three multi-hop questions are one portability probe: the
    first with the new answer, and as alternatives every question with the new answer or an alias of it. So ``port_any`` is the
    published success: any of the three questions answered.
    """

    name: ClassVar[str] = "mquake"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "MQuAKE, edits and the multi-hop question that follows (JSON); several edits in a record"
    places: ClassVar[tuple[str, ...]] = tuple(f"MQuAKE/MQuAKE-{file}.json" for file in _FILES)
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({_REWRITES, "questions"}),)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``requested_rewrite[…], questions[3], new_answer, new_answer_alias``."""
        rewrites = objects(row, _REWRITES)
        if not rewrites:
            raise RecordError(f"'{_REWRITES}' is empty: there is nothing to edit")
        facts = [_fact(rewrite) for rewrite in rewrites]
        probes = []
        for number, (fact, rewrite) in enumerate(zip(facts, rewrites, strict=True)):
            name = str(number)
            probes.append(Probe(kind=ProbeKind.EFFICACY, prompt=fact.prompt, target=fact.target, name=name))
            question = optional(rewrite, "question")
            if question.strip():
                probes.append(Probe(kind=ProbeKind.PARAPHRASE, prompt=question, target=fact.target, name=name))
        first, *further = facts
        return EditRecord(
            id=uid,
            subject=first.subject,
            prompt=first.prompt,
            target=first.target,
            probes=(*probes, _multi_hop(row)),
            further=tuple(further),
        )


def _fact(rewrite: Row) -> Fact:
    subject = field(rewrite, "subject")
    prompt = filled(field(rewrite, "prompt"), subject, f"{_REWRITES}.prompt")
    return Fact(subject=subject, prompt=prompt, target=field(rewrite, "target_new", "str"))


def _multi_hop(row: Row) -> Probe:
    questions = texts(row, "questions")
    if not questions:
        raise RecordError("'questions' is empty: a case needs a multi-hop question")
    answers = (field(row, "new_answer"), *texts(row, "new_answer_alias"))
    pairs = [(question, answer) for question in questions for answer in dict.fromkeys(answers) if answer.strip()]
    return Probe(
        kind=ProbeKind.PORTABILITY,
        prompt=questions[0],
        target=answers[0],
        name="multi_hop",
        alternatives=tuple(pair for pair in dict.fromkeys(pairs) if pair != (questions[0], answers[0])),
    )
