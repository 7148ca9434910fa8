"""What a row of a file holds → texts and probes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raysweep.data.jsonrows import type_name
from raysweep.errors import RecordError
from raysweep.records import EditRecord, Probe, ProbeKind

Row = Mapping[str, object]
# Half of a surrogate pair: JSON can spell it, UTF-8 cannot, and no tokenizer takes it.
_SURROGATE = re.compile("[\ud800-\udfff]")


def field(row: Row, *path: str) -> str:
    """Return the text at *path* in *row*.

    Raises:
        RecordError: it is missing, not text, or text that cannot be encoded.
    """
    # step by step, so that the message can name the whole path
    value: object = row
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            raise RecordError(f"field '{'.'.join(path)}' is missing", hint=f"the row has: {', '.join(map(str, row))}")
        value = value[key]
    if not isinstance(value, str):
        raise RecordError(f"field '{'.'.join(path)}' must be text, got {type_name(value)}")
    # JSON can spell half of a surrogate pair; no tokenizer can encode it.
    odd = _SURROGATE.search(value)
    if odd is not None:
        raise RecordError(
            f"field '{'.'.join(path)}' holds U+{ord(odd[0]):04X}, half of a character",
            hint="the text was cut or damaged",
        )
    return value


def optional(row: Row, *path: str) -> str:
    """Return the text at *path*, or "" where any step of it is missing or null."""
    value: object = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    # null and missing are the same; anything else must be text
    return "" if value is None else field(row, *path)


def standard_probes(prompt: str, target: str, rephrase: str, locality: Probe | None) -> tuple[Probe, ...]:
    """Return the efficacy probe, the paraphrase probe unless *rephrase* is empty, and the locality probe if there is one."""
    probes = [Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target)]
    if rephrase.strip():
        probes.append(Probe(kind=ProbeKind.PARAPHRASE, prompt=rephrase, target=target))
    return (*probes, *([locality] if locality else []))


def locality_probe(row: Row, question: str, answer: str) -> Probe | None:
    """Return the locality probe in the fields *question* and *answer*; None where a row has neither.

    Raises:
        RecordError: the row has only one of the two.
    """
    texts = {name: optional(row, name) for name in (question, answer)}
    present = [name for name, text in texts.items() if text.strip()]
    if not present:
        return None
    # Half a probe is a damaged row, not a row without a probe.
    if len(present) == 1:
        lost = answer if present == [question] else question
        raise RecordError(
            f"the locality probe has '{present[0]}' but no '{lost}'", hint="give both, or neither: then it is not asked"
        )
    return Probe(kind=ProbeKind.LOCALITY, prompt=texts[question], target=texts[answer], against="base")


def texts(row: Row, name: str) -> Sequence[str]:
    """Return the list of texts in the field *name*; empty where it is missing or null.

    Raises:
        RecordError: it is something else.
    """
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise RecordError(f"field '{name}' must be a list of texts")
    return [field({name: text}, name) for text in value]


def objects(row: Row, *path: str) -> Sequence[Row]:
    """Return the list of objects at *path* in *row*; empty where any step of it is missing or null.

    Raises:
        RecordError: there is something else.
    """
    value: object = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return []
    # where there is one, some sets leave the list out
    entries: list[object] = value if isinstance(value, list) else [value]
    rows = [one for one in entries if isinstance(one, Mapping)]
    if len(rows) < len(entries):
        raise RecordError(f"field '{'.'.join(path)}' must be a list of objects")
    return rows


def filled(template: str, subject: str, name: str) -> str:
    """Return *template*, the field *name*, with *subject* in place of its ``{}``.

    Raises:
        RecordError: it has none, or several: the subject's last token is where ROME and MEMIT write.
    """
    if template.count("{}") != 1:
        raise RecordError(f"'{name}' needs exactly one '{{}}': {template!r}")
    return template.replace("{}", subject)


def flattened(value: object, name: str) -> Iterator[str]:
    """Yield the texts of a text, a list of texts, or a list of such lists, without the empty ones.

    Raises:
        RecordError: there is something else.
    """
    if isinstance(value, list):
        for one in value:
            yield from flattened(one, name)
    elif value is not None:
        text = field({name: value}, name)
        if text.strip():
            yield text


def answered(kind: ProbeKind, prompt: str, answers: Sequence[str], name: str) -> Probe | None:
    """Return the probe whose target is the first of *answers* and whose alternatives are the others; None without an answer.

    Of a question about locality nothing but the unedited model's answer counts, so there are no alternatives.
    """
    if not answers:
        return None
    if kind is ProbeKind.LOCALITY:
        return Probe(kind=kind, prompt=prompt, target=answers[0], against="base", name=name)
    others = tuple((prompt, answer) for answer in dict.fromkeys(answers[1:]) if answer != answers[0])
    return Probe(kind=kind, prompt=prompt, target=answers[0], name=name, alternatives=others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of the fields of a flat row; only *prompt* and *target* must be there.

    Attributes:
        prompt: what the model is asked.
        target: what it shall answer.
        rephrase: the prompt in other words; empty = there are none.
        locality: a question about something else, and its answer.
        subject: the part of the prompt that the fact is about.
        true: what was true before the edit; empty = the dataset does not say it.
    """

    prompt: str
    target: str
    rephrase: str = "rephrase"
    locality: tuple[str, str] = ("loc", "loc_ans")
    subject: str = "subject"
    true: str = ""

    def record(self, row: Row, uid: str, *further: Probe) -> EditRecord:
        """Return the record of *row* with the probes of its fields and the *further* ones."""
        prompt, target = field(row, self.prompt), field(row, self.target)
        reworded = optional(row, self.rephrase) if self.rephrase else ""
        probes = standard_probes(prompt, target, reworded, locality_probe(row, *self.locality))
        subject, true = optional(row, self.subject), optional(row, self.true) if self.true else ""
        return EditRecord(
            id=uid, subject=subject, prompt=prompt, target=target, probes=(*probes, *further), target_true=true
        )


def follows(row: Row, name: str, question: Sequence[str], answer: Sequence[str]) -> Iterator[Probe]:
    """Yield the portability probe called *name* whose texts stand at the paths *question* and *answer*; half of one is none."""
    prompt, target = optional(row, *question), optional(row, *answer)
    if prompt.strip() and target.strip():
        yield Probe(kind=ProbeKind.PORTABILITY, prompt=prompt, target=target, name=name)
