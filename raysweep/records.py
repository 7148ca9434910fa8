"""A record: one fact to write, with the probes that test it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from raysweep.errors import RecordError


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
    """

    kind: ProbeKind
    prompt: str
    target: str
    against: Literal["target", "base"] = "target"
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRecord:
    """One fact to write.

    ``subject`` occurs exactly once in ``prompt``; ``target`` is kept as the dataset has it (joining rules live
    in ``models/tokens.py``). ``unrelated`` is text some editors need as a negative; empty if there is none.
    """

    id: str
    subject: str
    prompt: str
    target: str
    probes: tuple[Probe, ...]
    unrelated: str = ""

    @property
    def template(self) -> str:
        """The prompt with its subject replaced by ``{}``."""
        return self.prompt.replace(self.subject, "{}")


def check_record(record: EditRecord, *, where: str = "") -> tuple[str, ...]:
    """Raise :class:`RecordError` if *record* breaks a rule (editors.md §1.5); return warnings.

    Args:
        record: the record to examine.
        where: ``file:index`` for the message.

    Raises:
        RecordError: empty prompt, subject, target or probe field; a brace in prompt or subject; the subject
            does not occur exactly once in the prompt.
    """
    at = f"{where} ({record.id})" if where else record.id
    for field in ("prompt", "subject", "target"):
        if not getattr(record, field).strip():
            raise RecordError(f"{at}: {field} is empty", hint="every record needs prompt, subject and target")
    for field in ("prompt", "subject"):
        if "{" in getattr(record, field) or "}" in getattr(record, field):
            raise RecordError(f"{at}: {field} contains a brace: {getattr(record, field)!r}", hint="templates use '{}'")
    count = record.prompt.count(record.subject)
    if count != 1:
        raise RecordError(
            f"{at}: subject {record.subject!r} occurs {count} times in prompt {record.prompt!r}",
            hint="the subject must occur exactly once, spelled the same",
        )
    for probe in record.probes:
        for field in ("prompt", "target"):
            if not getattr(probe, field).strip():
                raise RecordError(f"{at}: {probe.kind} probe has an empty {field}", hint="drop the probe or fill it")
    warnings = []
    if record.target[:1].isspace():
        warnings.append(f"{at}: target begins with a space")
    if record.prompt[-1:].isspace():
        warnings.append(f"{at}: prompt ends with a space")
    return tuple(warnings)
