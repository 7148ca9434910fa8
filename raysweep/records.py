"""A record: one fact to write, with the probes that test it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from raysweep.errors import RecordError
from raysweep.hashing import ADDED, UNHASHED


class ProbeKind(StrEnum):
    """What a probe asks about (closed set, documented in ``docs/columns.md``)."""

    EFFICACY = "efficacy"
    PARAPHRASE = "paraphrase"
    LOCALITY = "locality"
    PORTABILITY = "portability"
    BELIEF = "belief"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question put to the model.

    ``against="target"`` compares with *target*; ``"base"`` compares with the unedited model's own answer
    to the same prompt (the target then only fixes how many positions are compared).

    Attributes:
        kind: what it asks about.
        prompt: the question.
        target: the answer.
        against: what the model's answer is compared with.
        name: tells probes of one kind apart.
        alternatives: pairs of a question and an answer, each of which counts as much as *prompt* and *target* (metric
            ``any_match``): aliases of the answer, or the question in other words.
        known: what the unedited model must know for the probe to count (metric ``any_match``); each entry lists pairs of a
            question and an answer, one of which it must give.
    """

    kind: ProbeKind
    prompt: str
    target: str
    against: Literal["target", "base"] = "target"
    name: str = ""
    # ADDED: at their defaults these stand in no hash, so datasets read before have the digest they had.
    alternatives: tuple[tuple[str, str], ...] = field(default=(), metadata=ADDED)
    known: tuple[tuple[tuple[str, str], ...], ...] = field(default=(), metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A fact that is written together with that of its record.

    Attributes:
        subject: a part of *prompt*, or empty.
        prompt: what the model is given.
        target: what it shall answer.
    """

    subject: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRecord:
    """One fact to write, or several that only make sense together.

    ``subject`` is a part of ``prompt``, or empty where the dataset names none; editors that look it up need it exactly once
    (:func:`subject_error`). ``target`` is kept as the dataset has it (joining rules live in ``models/tokens.py``). ``unrelated``
    is text some editors need as a negative; empty if there is none. ``further`` facts are written in the same call of the editor,
    as records of their own (:attr:`edits`). ``target_true`` is what was true before the edit, where the dataset says it; the
    protocol ``memit_compat`` compares with it.
    """

    id: str
    subject: str
    prompt: str
    target: str
    probes: tuple[Probe, ...]
    unrelated: str = ""
    further: tuple[Fact, ...] = field(default=(), metadata=ADDED)
    # only memit_compat reads it, whose trials hold the digest of the file: records read before have the hash they had
    target_true: str = field(default="", metadata=UNHASHED)

    @property
    def edits(self) -> tuple[EditRecord, ...]:
        """The record as an editor is given it: one for each fact, all with its id and its probes."""
        if not self.further:
            return (self,)
        # Each without `further`, or what it holds would be written once more with every fact.
        rest = (replace(self, subject=f.subject, prompt=f.prompt, target=f.target, further=()) for f in self.further)
        return replace(self, further=()), *rest

    @property
    def template(self) -> str:
        """The prompt with its subject replaced by ``{}``.

        Raises:
            RecordError: the subject cannot be located.
        """
        error = subject_error(self)
        if error is not None:
            raise error
        # It occurs exactly once, as was just made sure, so one place is replaced.
        return self.prompt.replace(self.subject, "{}")


def check_record(record: EditRecord, *, where: str = "") -> tuple[str, ...]:
    """Raise :class:`RecordError` if no editor could write *record*; return warnings.

    Args:
        record: the record to examine.
        where: ``file:index`` for the message.

    Raises:
        RecordError: empty prompt, target or probe field.
    """
    at = f"{where} ({record.id})" if where else record.id
    for fact in (record, *record.further):
        for name in ("prompt", "target"):
            if not getattr(fact, name).strip():
                raise RecordError(f"{at}: {name} is empty", hint="every record needs prompt and target")
    for probe in record.probes:
        for name in ("prompt", "target"):
            if not getattr(probe, name).strip():
                raise RecordError(f"{at}: {probe.kind} probe has an empty {name}", hint="drop the probe or fill it")
    # Odd, but what the file says: prompts and targets are never changed (`Dataset`, promise 2).
    warnings = []
    if record.target[:1].isspace():
        warnings.append(f"{at}: target begins with a space")
    if record.prompt[-1:].isspace():
        warnings.append(f"{at}: prompt ends with a space")
    return tuple(warnings)


def subject_error(record: EditRecord) -> RecordError | None:
    """Return why the subject of *record* cannot be located in its prompt; None if it can.

    An editor that reads the model at the subject's last token needs the subject exactly once, and no brace, since a template
    marks its place by ``{}``.
    """
    at, subject, prompt = record.id, record.subject, record.prompt
    if not subject.strip():
        return RecordError(
            f"{at}: there is no subject",
            hint="name the part of the prompt that the fact is about, or use an editor that needs no subject",
        )
    for name in ("prompt", "subject"):
        if "{" in getattr(record, name) or "}" in getattr(record, name):
            return RecordError(f"{at}: {name} contains a brace: {getattr(record, name)!r}", hint="templates use '{}'")
    count = prompt.count(subject)
    if count == 1:
        return None
    return RecordError(
        f"{at}: subject {subject!r} occurs {count} times in prompt {prompt!r}", hint=_spelling(subject, prompt, count)
    )


def _spelling(subject: str, prompt: str, count: int) -> str:
    """Return what to do about a *subject* that occurs *count* times in *prompt*: often it is there, spelled otherwise."""
    if count:
        return "the subject must occur exactly once: reword the prompt, or make the subject longer"
    # Compared from strict to lax, so that the hint names the least change that helps.
    one_form = [unicodedata.normalize("NFC", text) for text in (subject, prompt)]
    if one_form[0] in one_form[1]:
        return "both spell it alike, but in different Unicode forms: convert the file to NFC"
    folded = [" ".join(text.casefold().split()) for text in one_form]
    if folded[0] in folded[1]:
        return "it is there with other capitals or spaces: spell it as the prompt does"
    return "the subject must occur exactly once, spelled the same"


_SPECIAL = 8  # tokens that a tokenizer may put around a text


def length_error(
    record: EditRecord, positions: int, count: Callable[[str], int] | None, *, before: int = 0
) -> RecordError | None:
    """Return why *record* is too long for a model; None if it is not, or if nobody can tell.

    A row longer than the positions that a model was made for either breaks it or gives numbers that mean nothing.

    Args:
        record: its edit and every probe are looked at, each as prompt, space and target.
        positions: the longest row in tokens; 0 = not known.
        count: counts the tokens of a text, with special ones; None = cannot be counted here.
        before: tokens that the editor puts before the prompt.
    """
    if not positions:
        return None
    texts = [("its edit", f"{edit.prompt} {edit.target}", before) for edit in record.edits]
    for probe in record.probes:
        pairs = ((probe.prompt, probe.target), *probe.alternatives, *(pair for pairs in probe.known for pair in pairs))
        texts += [(f"its {probe.kind} probe", f"{prompt} {target}", 0) for prompt, target in pairs]
    for what, text, extra in texts:
        # A bound that needs no tokenizer, which is slow over thousands of records.
        if len(text.encode(errors="replace")) + extra + _SPECIAL <= positions:
            continue  # a token is at least a byte, so there is nothing to count
        length = (count(text) if count else 0) + extra
        if length > positions:
            return RecordError(
                f"{record.id}: {what} is {length:,} tokens long, the model has {positions:,} positions",
                hint="shorten or drop the record, or use a model with more positions",
            )
    return None
