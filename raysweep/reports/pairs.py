"""What each configuration is compared with: one reference, the same arm at another value, or the editor without its wrapper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysweep.config.space import Scalar
from raysweep.errors import SpecError, nearest
from raysweep.reports.views import SummaryRow, TrialView
from raysweep.results.tables import Sweep

WRAPPERS = "editor.wrap"
MEASURED_BY = "protocol.measured_by"
UNPAIRED = ("seed", "key", "versions", "protocol.rounds")
"""Parts of a trial that may differ between an editor and the same editor in a wrapper: they pair by seed, the versions count the
wrapper's, and rounds are chosen when the lines are made."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One configuration at the round that is compared.

    Attributes:
        line: what was measured there.
        sweep: what tells its sweep from the others; empty if there is one.
        trial: the first of its trials, measured or not.
        content: the resolved values of that trial under dotted names; empty if it has not begun.
    """

    line: SummaryRow
    sweep: str
    trial: TrialView
    content: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Pair:
    """A line and the one that it is compared with; None = it is a reference itself, or there is none."""

    line: SummaryRow
    reference: SummaryRow | None


def contents(sweep: Sweep) -> dict[str, dict[str, object]]:
    """Return the resolved values of each trial that has begun, by key."""
    rows = sweep.trials().to_pylist()
    return {
        row["trial_key"]: {k.removeprefix("spec."): v for k, v in row.items() if k.startswith("spec.")} for row in rows
    }


def first_measured(lines: Sequence[SummaryRow]) -> SummaryRow | None:
    """Return the first line with a defined value, else the first that was measured."""
    return next((line for line in lines if line.cells), None) or next((line for line in lines if line.trials), None)


def to_one(entries: Sequence[Entry], name: str = "") -> list[Pair]:
    """Return every line with one reference: the arm or configuration *name*, or the first that was measured.

    Raises:
        SpecError: there is no such arm, it has several configurations, or it was not measured there.
    """
    lines = [entry.line for entry in entries]
    reference = _named(entries, name) if name else first_measured(lines)
    return [Pair(line, None if line is reference else reference) for line in lines]


def _named(entries: Sequence[Entry], name: str) -> SummaryRow:
    called = [entry.line for entry in entries if entry.line.label == name]
    # A label names one configuration; an arm, with or without its sweep, may have several.
    called = called or [e.line for e in entries if name in (e.line.arm, f"{e.sweep}{e.line.arm}")]
    if not called:
        arms = [entry.line.arm for entry in entries]
        raise SpecError(f"no arm is called '{name}'", hint=nearest(name, [*arms, *(e.line.label for e in entries)]))
    if len(called) > 1:
        labels = ", ".join(f"'{line.label}'" for line in called[:8])
        raise SpecError(f"'{name}' has {len(called)} configurations", hint=f"name one of them: {labels}")
    if not called[0].trials:
        raise SpecError(
            f"'{name}' was not measured there ({called[0].status})", hint="choose another with --at or --to"
        )
    return called[0]


def of_one_protocol(entries: Sequence[Entry], pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """Return *pairs* without references that were measured in another way than their lines, and a note on each protocol left alone.

    Values of an imported trial (``raysweep import``) are another program's, by its own protocol.
    """
    ways = {id(entry.line): str(entry.content.get(MEASURED_BY) or "") for entry in entries}
    kept: list[Pair] = []
    left: dict[str, None] = {}
    for pair in pairs:
        way = ways.get(id(pair.line), "")
        alike = pair.reference is None or ways.get(id(pair.reference), "") == way
        kept.append(pair if alike else Pair(pair.line, None))
        if not alike:
            left[pair.line.label] = None
    notes = (
        [f"measured by another protocol than the reference, so there is no difference: {', '.join(left)}"]
        if left
        else []
    )
    return kept, notes


def by_value(entries: Sequence[Entry], key: str, value: str = "") -> list[Pair]:
    """Return every line with the one of the same arm, equal in all other swept keys, at the reference value of *key*.

    Args:
        entries: what is compared; each has the key.
        key: the swept key.
        value: the reference value as it is written; empty = each arm's first that was measured, in the order of *entries*.

    Raises:
        SpecError: no configuration has the value.
    """
    if value and not any(same_value(entry.trial.point[key], value) for entry in entries):
        known = list(dict.fromkeys(str(entry.trial.point[key]) for entry in entries))
        raise SpecError(f"no configuration has {key} = {value}", hint=f"values: {', '.join(known)}")
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        rest = {k: v for k, v in entry.trial.point.items() if k != key}
        groups.setdefault(json.dumps([entry.trial.row["arm"], rest], sort_keys=True), []).append(entry)
    references: dict[int, SummaryRow] = {}
    for group in groups.values():
        candidates = [e for e in group if not value or same_value(e.trial.point[key], value)]
        for sweep in dict.fromkeys(e.sweep for e in group):  # a sweep's own reference, else another sweep's
            near = [e.line for e in candidates if e.sweep == sweep]
            reference = first_measured(near) or first_measured([e.line for e in candidates])
            references |= {id(e.line): reference for e in group if e.sweep == sweep and reference is not None}
    chosen = [(entry.line, references.get(id(entry.line))) for entry in entries]
    return [Pair(line, None if line is reference else reference) for line, reference in chosen]


def same_value(value: Scalar, written: str) -> bool:
    """Tell whether *written* is *value*, as text or as a number: ``1``, ``1.0`` and ``1e0`` are one.

    >>> same_value(1.0, "1"), same_value("gcv", "gcv"), same_value(True, "1")
    (True, True, False)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(written) == float(value)
        except ValueError:
            return False
    return written in (str(value), json.dumps(value))


def by_wrapper(entries: Sequence[Entry]) -> list[Pair]:
    """Return every wrapped line with the one of the same editor and configuration, model, data and protocol without a wrapper.

    A line without such a partner has None. Lines without a wrapper are references only.

    Raises:
        SpecError: nothing is wrapped, or nothing that is wrapped has a partner.
    """
    plain: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.content and not _wrapped(entry):
            plain.setdefault(_unwrapped(entry), []).append(entry)
    pairs = []
    for entry in filter(_wrapped, entries):
        partners = plain.get(_unwrapped(entry), [])
        near = [e.line for e in partners if e.sweep == entry.sweep]
        pairs.append(Pair(entry.line, first_measured(near) or first_measured([e.line for e in partners])))
    if not pairs:
        raise SpecError("no arm here has a wrapper", hint="add arms with `wrap:`, or leave out --pair")
    if all(pair.reference is None for pair in pairs):
        what = "no wrapped arm has a measured partner: the same editor and configuration without the wrapper"
        raise SpecError(what, hint="add the plain arm to the search space, or leave out --pair")
    return pairs


def _wrapped(entry: Entry) -> bool:
    return any(name.startswith(f"{WRAPPERS}.") and value is not None for name, value in entry.content.items())


def _unwrapped(entry: Entry) -> str:
    """Return what must be equal in an editor and in the same editor in a wrapper."""
    # What is left must be equal for the difference to be the wrapper's.
    left_out = (WRAPPERS, *UNPAIRED)
    same = {
        name: value
        for name, value in entry.content.items()
        if value is not None
        and not any(name == part or name.startswith(f"{part}.") for part in left_out)
        # A file that lies elsewhere is the same file, if its digest says so.
        and not (name.endswith(".path") and f"{name.removesuffix('path')}digest" in entry.content)
    }
    return json.dumps(same, sort_keys=True)
