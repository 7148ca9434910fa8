"""What one record came to in another program's result file, by section; every mistake in a file is noted with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raysweep.errors import Problem, StoreError
from raysweep.jsontypes import Json, mapping_of

EFFICACY, PARAPHRASE, LOCALITY, PORTABILITY = "efficacy", "paraphrase", "locality", "portability"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of theirs.

    Attributes:
        kind: of which kind of probe.
        name: tells probes of one kind apart.
        index: its number within the record.
        metric: what was computed; ``generated`` = nothing, there is only the text.
        value: the number; None without one.
        text: what the model wrote; empty where the file does not say.
    """

    kind: str
    name: str
    index: int
    metric: str
    value: float | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One record.

    Attributes:
        record: their ``case_id``.
        target: prompt and target, for the digest of the question.
        before: values of the unedited model.
        after: values of the edited one.
        protocol: id of how they were measured.
        step: how many records the model had been edited with; 0 = the file does not say.
    """

    record: str
    target: str
    before: tuple[Value, ...]
    after: tuple[Value, ...]
    protocol: str
    step: int = 0


@dataclass(slots=True)
class Notes:
    """Mistakes in one file."""

    file: str
    problems: list[Problem] = field(default_factory=list)

    def say(self, where: str, message: str, hint: str = "") -> None:
        """Keep the mistake *message* at *where*, such as ``[3].post``."""
        self.problems.append(Problem(code=StoreError.code, message=f"{self.file}:{where}  {message}", hint=hint))

    def numbers(self, value: Json, where: str) -> list[float]:
        """Return *value*, a number or a list of them, maybe in lists, as numbers between 0 and 1 or beyond; noting what is none."""
        # some of their versions wrap a single number in a list, or in two
        if isinstance(value, list):
            return [n for i, one in enumerate(value) for n in self.numbers(one, f"{where}[{i}]")]
        # NaN is how they write a question that could not be asked; here a missing row says that
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return [float(value)]
        self.say(where, f"must be a number, got {str(value)[:60]!r}")
        return []


def entries(path: Path, notes: Notes) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Yield the records of a JSON list, of one JSON object, or of JSON lines, each with its place; noting what is none."""
    try:
        # files that went through Windows begin with a byte order mark
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        notes.say("", f"cannot be read: {error}")
        return
    if path.suffix == ".jsonl":
        listed = [(f"{i}:", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        for where, line in listed:
            try:
                # line by line, so that one bad line does not hide the others
                yield from _mapping(json.loads(line), where, notes)
            except ValueError as error:
                notes.say(where, f"is no JSON: {error}", "the last line of a run that was cut off? remove it")
        return
    try:
        whole: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        notes.say("", f"is no JSON: {error}", "the file of a run that was cut off?")
        return
    if isinstance(whole, list):
        for i, one in enumerate(whole):
            yield from _mapping(one, f"[{i}]", notes)
    else:
        yield from _mapping(whole, "", notes)


def _mapping(value: Json, where: str, notes: Notes) -> Iterator[tuple[str, Mapping[str, Json]]]:
    if isinstance(value, dict):
        yield where, value
    else:
        notes.say(where, f"must be a mapping with case_id, requested_rewrite and post, got {str(value)[:60]!r}")


def question(entry: Mapping[str, Json]) -> str:
    """Return prompt and target of *entry*, as the digest of a question is made of them."""
    asked = mapping_of(entry.get("requested_rewrite"))
    target = asked.get("target_new")
    # MEMIT's files have {"str": …, "id": …} where EasyEdit's have the text
    text = mapping_of(target).get("str") if isinstance(target, dict) else target
    prompt = str(asked.get("prompt", ""))
    subject = asked.get("subject")
    filled = prompt.replace("{}", str(subject)) if subject is not None else prompt
    # a unit separator, which stands in no prompt, keeps ("a b", "c") and ("a", "b c") apart
    return f"{filled}\x1f{text}"
