"""What was measured of each record, as arrays: fifty million rows in less than a gigabyte, read like nested dictionaries.

Shape legend: ``m`` entries of a batch of trials, each one record's mean over its probes of one view at one place; ``R`` records,
``S`` seeds. Entries are sorted by place, view and record, so that all records of a view at a place lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raysweep.measures import PHASES, VIEWS
from raysweep.summarize import matrix

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Where = tuple[str, int]  # phase and step
Values = Mapping[str, Mapping[str, float]]  # view → record → value
Undefined = dict[Where, frozenset[str]]

ORDER = tuple(VIEWS)
PARTS = ("rel", "gen", "loc")
PRISTINE = "pristine"


class Records:
    """The ids of the records of several trials, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ranks: Ints = np.zeros(0, np.int64)

    def number(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the number of each name; new ones get one."""
        numbers = self._numbers
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32)

    @property
    def names(self) -> list[str]:
        """The ids by number."""
        return list(self._numbers)

    def ranks(self, numbers: NDArray[np.int32]) -> Ints:
        """Return where each of *numbers* stands among all ids in alphabetical order."""
        if len(self._ranks) < len(self._numbers):
            order = sorted(range(len(self._numbers)), key=self.names.__getitem__)
            self._ranks = np.empty(len(order), np.int64)
            self._ranks[order] = np.arange(len(order))
        return self._ranks[numbers]


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of a batch.

    Attributes:
        begins: where the records of each (place, view) begin, [places · views + 1].
        record: the record's number, [m].
        value: its mean, [m]; not finite where a value is not.
        first: the lowest step of its rows, [m]; empty where nobody asks.
    """

    begins: Ints
    record: NDArray[np.int32]
    value: Floats
    first: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def of(self, place: int, view: int) -> slice:
        """Return where the entries of a view at a place are."""
        at = place * len(ORDER) + view
        return slice(int(self.begins[at]), int(self.begins[at + 1]))

    def views(self, place: int) -> list[int]:
        """Return the views that have entries at a place."""
        at = self.begins[place * len(ORDER) : (place + 1) * len(ORDER) + 1]
        return np.flatnonzero(np.diff(at)).tolist()


@dataclass(frozen=True, slots=True)
class Facts:
    """When the records of one trial were written.

    Attributes:
        record: their numbers, rising, [R].
        edit_step: the step at which each was written, [R].
        superseded_step: the step at which a later one took its place, [R]; beyond every step where none did.
    """

    record: NDArray[np.int32]
    edit_step: Ints
    superseded_step: Ints


class Measurements(Mapping[Where, Values]):
    """One trial's ``{(phase, step): {view: {record: value}}}``; undefined views are left out, and named apart.

    Attributes:
        undefined: the undefined views per (phase, step), where there are some.
        facts: when its records were written.
    """

    def __init__(
        self,
        records: Records,
        rounds: Sequence[int],
        retained: Entries,
        first_place: int,
        fresh: Entries,
        trial: int,
        facts: Facts,
    ) -> None:
        """Take the trial's parts of a batch.

        Args:
            records: what numbers mean.
            rounds: its rounds as far as it came, rising.
            retained: entries at rounds.
            first_place: the place of its first round there.
            fresh: entries right after the edit, of which the places are trials.
            trial: its place there.
            facts: when its records were written.
        """
        self.facts = facts
        self._records, self._retained, self._fresh, self._trial = records, retained, fresh, trial
        places = {r: first_place + i for i, r in enumerate(rounds)}
        self._places = {r: place for r, place in places.items() if retained.views(place)}
        self._phases: frozenset[str] | None = None
        self.undefined: Undefined = {}
        self._dropped: dict[Where, frozenset[str]] = {}
        # Looked for once: nearly all trials have none.
        self._odd = self._odd_steps()
        self._keys = tuple(self._present())
        for where in self._keys:
            undefined = self._undefined_at(where)
            if undefined:
                self.undefined[where] = undefined

    def of_phases(self, phases: set[str]) -> Measurements:
        """Return it without the places of other *phases*."""
        self._keys = tuple(where for where in self._keys if where[0] in phases)
        return self

    def _odd_steps(self) -> dict[int, int]:
        """Return, of the values right after an edit, the lowest step with one that is not finite, by view."""
        out = {}
        for view in self._fresh.views(self._trial):
            part = self._fresh.of(self._trial, view)
            odd = ~np.isfinite(self._fresh.value[part])
            if odd.any():
                out[view] = int(self._fresh.first[part][odd].min())
        return out

    def _present(self) -> Iterator[Where]:
        lowest = [int(self._fresh.first[self._fresh.of(self._trial, v)].min()) for v in self._fresh.views(self._trial)]
        for r in self._places:
            yield (PHASES[0], r) if r else (PRISTINE, 0)
        for r in self._places:
            # An immediate value stands at every round from its own on, but at none that was not measured.
            if r and min(lowest, default=r + 1) <= r:
                yield PHASES[1], r

    def _entries(self, where: Where, view: int) -> tuple[NDArray[np.int32], Floats]:
        phase, step = where
        if phase != PHASES[1]:
            part = self._retained.of(self._places[step], view)
            return self._retained.record[part], self._retained.value[part]
        part = self._fresh.of(self._trial, view)
        reached = self._fresh.first[part] <= step
        if reached.all():
            return self._fresh.record[part], self._fresh.value[part]
        return self._fresh.record[part][reached], self._fresh.value[part][reached]

    def _undefined_at(self, where: Where) -> frozenset[str]:
        phase, step = where
        if phase == PHASES[1]:
            odd = {ORDER[view] for view, first in self._odd.items() if first <= step}
        else:
            place = self._places[step]
            views = self._retained.views(place)
            whole = slice(self._retained.of(place, views[0]).start, self._retained.of(place, views[-1]).stop)
            if np.isfinite(self._retained.value[whole]).all():
                return frozenset()
            odd = {ORDER[v] for v in views if not np.isfinite(self._retained.value[self._retained.of(place, v)]).all()}
        if not odd:
            return frozenset()
        self._dropped[where] = frozenset(odd)
        if odd & {*PARTS} and all(view in odd or len(self._entries(where, ORDER.index(view))[0]) for view in PARTS):
            odd |= {"avg", "geo"}
        return frozenset(odd | ({"ppl_median", "ppl_expmean"} if "ppl" in odd else set()))

    def arrays(self, where: Where, view: str) -> tuple[NDArray[np.int32], Floats] | None:
        """Return the numbers of the records of *view* at *where*, [R], and their values, [R]; None where there are none."""
        dropped = self._dropped.get(where, frozenset())
        if view == "avg":
            parts = [self._entries(where, ORDER.index(part)) for part in PARTS]
            if dropped & {*PARTS}:
                return None
            found = _averages(parts)
        elif view in ORDER and view not in dropped:
            found = self._entries(where, ORDER.index(view))
        else:
            return None
        return found if len(found[0]) else None

    def __getitem__(self, where: Where) -> Values:
        if where not in self._keys:
            raise KeyError(where)
        return _At(self, where)

    def __iter__(self) -> Iterator[Where]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def records(self) -> Records:
        """What the numbers of records mean."""
        return self._records


def _averages(parts: Sequence[tuple[NDArray[np.int32], Floats]]) -> tuple[NDArray[np.int32], Floats]:
    """Return the mean of the three values of each record that has all of them (:func:`raysweep.summarize.averages`)."""
    (records, rel), (of_gen, gen), (of_loc, loc) = parts
    if not (np.array_equal(records, of_gen) and np.array_equal(records, of_loc)):
        common = np.intersect1d(np.intersect1d(records, of_gen), of_loc)
        rel, gen, loc = (value[np.isin(record, common)] for record, value in parts)
        records = records[np.isin(records, common)]
        if any(len(value) != len(records) for value in (rel, gen, loc)):  # numbers of records are sorted in each part
            raise AssertionError("a record has two values of one view")
    return records, (rel + gen + loc) / 3


@dataclass(frozen=True, slots=True, eq=False)
class _At(Mapping[str, Mapping[str, float]]):
    """What is measured at one place, by view; dictionaries are made when they are asked for."""

    measurements: Measurements
    where: Where

    def __getitem__(self, view: str) -> dict[str, float]:
        found = self.measurements.arrays(self.where, view)
        if found is None:
            raise KeyError(view)
        names = self.measurements.records.names
        return {names[i]: value for i, value in zip(found[0].tolist(), found[1].tolist(), strict=True)}

    def __iter__(self) -> Iterator[str]:
        return (view for view in (*ORDER, "avg") if self.measurements.arrays(self.where, view) is not None)

    def __contains__(self, view: object) -> bool:
        return isinstance(view, str) and self.measurements.arrays(self.where, view) is not None

    def __len__(self) -> int:
        return sum(1 for _ in self)


def stacked(trials: Sequence[Mapping[Where, Values]], where: Where, *views: str) -> list[Floats]:
    """Return the values of each of *views* at *where* as [R, S], one column for each of *trials*; NaN where a trial lacks a record.

    All have the same rows, those of records that some trial has in some of the views, in the order of their ids, whatever order
    they were numbered in.
    """
    known = [trial for trial in trials if isinstance(trial, Measurements)]
    if known and len(known) == len(trials) and len({id(trial.records) for trial in known}) == 1:
        columns = [trial.arrays(where, view) or _NOTHING for view in views for trial in known]
        whole = _columns(known[0].records, columns)
    else:
        whole = matrix([trial[where].get(view, {}) for view in views for trial in trials])
    return np.split(whole, len(views), axis=1)


def stacked_differences(
    pairs: Sequence[tuple[Mapping[Where, Values], Mapping[Where, Values]]], where: Where, view: str
) -> Floats:
    """Return the second minus the first of each of *pairs* for the records that both have, [R, S]; nothing without a shared one."""
    parts, by_name = [], []
    for first, second in pairs:
        if isinstance(first, Measurements) and isinstance(second, Measurements) and first.records is second.records:
            a, b = first.arrays(where, view) or _NOTHING, second.arrays(where, view) or _NOTHING
            common, at_a, at_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
            parts.append((common.astype(np.int32), b[1][at_b] - a[1][at_a], first.records))
        else:
            of_a, of_b = first[where].get(view, {}), second[where].get(view, {})
            by_name.append({record: of_b[record] - of_a[record] for record in sorted(of_a.keys() & of_b.keys())})
    if by_name or len({id(records) for _, _, records in parts}) > 1:
        named = [dict(zip((records.names[i] for i in n.tolist()), v.tolist(), strict=True)) for n, v, records in parts]
        return matrix([values for values in (*named, *by_name) if values])
    parts = [part for part in parts if len(part[0])]
    return _columns(parts[0][2], [(n, v) for n, v, _ in parts]) if parts else np.zeros((0, 0))


_NOTHING: tuple[NDArray[np.int32], Floats] = (np.zeros(0, np.int32), np.zeros(0))


def _columns(records: Records, parts: Sequence[tuple[NDArray[np.int32], Floats]]) -> Floats:
    ranks = [records.ranks(numbers) for numbers, _ in parts]
    rows = np.unique(np.concatenate(ranks))
    out = np.full((len(rows), len(parts)), np.nan)
    for column, (rank, (_, values)) in enumerate(zip(ranks, parts, strict=True)):
        out[np.searchsorted(rows, rank), column] = values
    return out
