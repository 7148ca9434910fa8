"""Evaluation points as JSON lines (``points/2``): one point per line, numbers that are not defined are null.

A target is a list in the order of the fields of ``TargetProbabilities``; facts and objects are indices into the graph's tables,
with the names beside them where a reader needs them. Lines of ``points/1`` are read too; they say nothing of the claims A and B.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict

from raysweep.belief.corpus.evidence import Triple
from raysweep.belief.points.types import (
    Claim,
    EditFlags,
    EvalPoint,
    PointQuestion,
    TargetProbabilities,
    UpdateRequest,
    UpdateStrength,
    WatchedFact,
)
from raysweep.errors import DataError

SCHEMA = "points/2"
_READ = ("points/1", SCHEMA)


class _ClaimLine(TypedDict):
    fact: list[int]
    truth: bool
    beliefs: dict[str, float]


class _StrengthLine(TypedDict):
    kind: Literal["none", "item", "mass"]
    amount: float


class _RequestLine(TypedDict):
    object: int
    reinforces: bool
    updates: dict[str, _StrengthLine]


class _WatchedLine(TypedDict):
    fact: list[int]
    objects: dict[str, int]
    targets: dict[str, dict[str, list[float]]]  # by state, then by object; in the order of TargetProbabilities


def to_line(point: EvalPoint) -> str:
    """Return *point* as one line of JSON."""
    data: dict[str, object] = {
        "schema": SCHEMA,
        "id": point.id,
        "fact": point.fact,
        "names": point.names,
        "known": point.known,
        "has_relevant_property": point.has_relevant_property,
        "targets": point.targets,
        "questions": {name: asdict(question) for name, question in point.questions.items()},
        "sentences": point.sentences,
        "claims": {name: asdict(claim) for name, claim in point.claims.items()},
    }
    # A point has all three or none.
    if point.request and point.watched and point.flags:
        data["request"] = asdict(point.request)
        data["watched"] = {
            name: {"fact": w.fact, "objects": w.objects, "targets": w.targets} for name, w in point.watched.items()
        }
        data["flags"] = asdict(point.flags)
    # NaN is no JSON; what is undefined is null.
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def from_line(line: str) -> EvalPoint:
    """Return the point written as *line*.

    Raises:
        DataError: the line is no point of this schema.
    """
    try:
        data: Mapping[str, Any] = json.loads(line)
        # Older lines lack the claims only; anything else is refused.
        if data["schema"] not in _READ:
            raise DataError(
                f"evaluation points of schema {data['schema']!r}, expected {SCHEMA!r}", hint="build them again"
            )
        # Request, watched facts and flags are written together or not at all.
        has_edit = "request" in data
        return EvalPoint(
            id=data["id"],
            fact=Triple(*data["fact"]),
            names=tuple(data["names"]),
            known=data["known"],
            has_relevant_property=data["has_relevant_property"],
            targets=TargetProbabilities(*data["targets"]),
            questions={name: PointQuestion(**fields) for name, fields in data["questions"].items()},
            sentences=tuple(data["sentences"]),
            request=_request(data["request"]) if has_edit else None,
            watched={name: _watched(fields) for name, fields in data["watched"].items()} if has_edit else None,
            flags=EditFlags(**data["flags"]) if has_edit else None,
            claims={name: _claim(fields) for name, fields in data.get("claims", {}).items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not an evaluation point: {line[:60]!r}", hint=f"build them again ({error})") from error


def _claim(data: _ClaimLine) -> Claim:
    return Claim(Triple(*data["fact"]), data["truth"], data["beliefs"])


def _request(data: _RequestLine) -> UpdateRequest:
    updates = {state: UpdateStrength(**fields) for state, fields in data["updates"].items()}
    return UpdateRequest(data["object"], data["reinforces"], updates)


def _watched(data: _WatchedLine) -> WatchedFact:
    targets = {
        s: {name: TargetProbabilities(*values) for name, values in roles.items()}
        for s, roles in data["targets"].items()
    }
    return WatchedFact(Triple(*data["fact"]), data["objects"], targets)


def read_points(path: Path) -> Iterator[EvalPoint]:
    """Yield the points of a file.

    Raises:
        DataError: it is missing, or a line is no point.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", hint="raysweep belief points writes it")
    with path.open(encoding="utf-8") as lines:
        # A broken line is named by its number.
        for number, line in enumerate(lines, 1):
            try:
                yield from_line(line)
            except DataError as error:
                raise DataError(f"{path}:{number}: {error.message}", hint=error.hint) from error
