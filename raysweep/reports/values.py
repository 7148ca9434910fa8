"""What was measured of each record, as arrays: fifty million rows in less than a gigabyte, read like nested dictionaries.

Shape legend: ``m`` entries of a batch of trials, each one record's mean over its probes of one view at one place; ``R`` records,
``S`` seeds. Entries are sorted by place, view and record, so that all records of a view at a place lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysweep.measures import PHASES, VIEWS
from raysweep.summarize import matrix

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Where = tuple[str, int]  # phase and step
Values = Mapping[str, Mapping[str, float]]  # view → record → value
Undefined = dict[Where, frozenset[str]]

ORDER = tuple(VIEWS)
VIEW_OF = {(kind, metric): i for i, (kind, metric) in enumerate(VIEWS.values())}
PARTS = ("rel", "gen", "loc")
PRISTINE = "pristine"
DENSE = 4  # numbers per row up to which groups are counted in an array of all of them, rather than sorted
LOOKED_UP = 8_000_000  # pairs of trial and step up to which they are looked up in an array


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


class Measurements(Mapping[Where, Values]):
    """One trial's ``{(phase, step): {view: {record: value}}}``; undefined views are left out, and named apart.

    Attributes:
        undefined: the undefined views per (phase, step), where there are some.
    """

    def __init__(
        self, records: Records, rounds: Sequence[int], retained: Entries, first_place: int, fresh: Entries, trial: int
    ) -> None:
        """Take the trial's parts of a batch.

        Args:
            records: what numbers mean.
            rounds: its rounds as far as it came, rising.
            retained: entries at rounds.
            first_place: the place of its first round there.
            fresh: entries right after the edit, of which the places are trials.
            trial: its place there.
        """
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


def measure_trials(
    probes: Sequence[pa.Table], rounds: Sequence[Sequence[int]], batch_sizes: Sequence[int], records: Records
) -> list[Measurements]:
    """Return what each trial has measured; grouping the rows of many small ones costs little more than those of one.

    Args:
        probes: rows of each trial, with ``SUMMARY_COLUMNS``.
        rounds: the steps of each trial's rounds.
        batch_sizes: records that each trial edits at once.
        records: numbers for their records.
    """
    whole = pa.concat_tables(_alike(probes))
    trial = np.repeat(np.arange(len(probes)), [len(table) for table in probes])
    record, names = codes(whole["record_id"])
    kind, kinds = codes(whole["probe_kind"])
    metric, metrics = codes(whole["metric"])
    views = np.array([[VIEW_OF.get((k, m), -1) for m in metrics] for k in kinds], np.int64).reshape(len(kinds), -1)
    view = views[kind, metric] if len(trial) else np.zeros(0, np.int64)
    # Null = not asked; NaN is a value, and makes its view undefined.
    use = pc.is_valid(whole["value"]).to_numpy() & (view >= 0)
    trial, record, view, value = trial[use], record[use], view[use], whole["value"].to_numpy()[use]
    step, edit = whole["step"].to_numpy()[use], whole["edit_step"].to_numpy()[use]
    gone = pc.fill_null(whole["superseded_step"], 2**62).to_numpy()[use]
    numbers = records.number(names)

    # A place is one trial's round. A round that nobody has come to yet is none: it would be that of a step of the next trial.
    steps = int(step.max(initial=0)) + 1
    reached = [sorted({r for r in own if r < steps}) for own in rounds]
    keys = np.array([t * steps + r for t, own in enumerate(reached) for r in own], np.int64)
    place = _places(keys, trial * steps + step, len(probes) * steps)
    kept = (place >= 0) & ((step == 0) | ((edit <= step) & (gone > step)))
    retained = _entries(place[kept], view[kept], record[kept], value[kept], len(keys), numbers)
    # A whole batch is written at once, and measured after it: all of its records are fresh.
    batch = np.asarray(batch_sizes, np.int64)[trial]
    new = (step >= edit) & (step - edit < batch) & (step > 0)
    fresh = _entries(trial[new], view[new], record[new], value[new], len(probes), numbers, step[new])

    out, first = [], 0
    for t, own in enumerate(reached):
        out.append(Measurements(records, own, retained, first, fresh, t))
        first += len(own)
    return out


def _alike(tables: Sequence[pa.Table]) -> Sequence[pa.Table]:
    """Return *tables* with texts all plain or all as dictionaries, as most of them are read where they are large."""
    if len({table.schema for table in tables}) == 1:
        return tables
    wanted = next(t.schema for t in tables if any(pa.types.is_dictionary(kind) for kind in t.schema.types))
    return [table if table.schema == wanted else table.cast(wanted) for table in tables]


def _places(keys: Ints, asked: Ints, span: int) -> Ints:
    """Return the index of each of *asked* in the sorted *keys*, which are below *span*; -1 where it is none of them."""
    if span <= LOOKED_UP:
        table = np.full(span, -1, np.int64)
        table[keys] = np.arange(len(keys))
        return table[asked]
    at = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    return np.where(keys[at] == asked, at, -1) if len(keys) else np.full(len(asked), -1)


def _entries(
    place: Ints,
    view: Ints,
    record: Ints,
    value: Floats,
    places: int,
    numbers: NDArray[np.int32],
    step: Ints | None = None,
) -> Entries:
    """Return the mean of each (place, view, record); values are added in the order of the rows, so no bit depends on the way."""
    many = max(len(numbers), 1)
    # Mixed-radix digits: one integer names all three, and sorts as they do.
    group = (place * len(ORDER) + view) * many + record
    span = places * len(ORDER) * many
    # With few numbers for the rows there are, an array of all of them is far quicker than sorting.
    if span <= DENSE * len(group) + 1024:
        count = np.bincount(group, minlength=span)
        present = np.flatnonzero(count)
        index, size, count = group, span, count[present]
    else:
        present, index, count = np.unique(group, return_inverse=True, return_counts=True)
        size = len(present)
    # Where groups were counted in an array of all numbers, those that are there are picked out of the sums.
    pick = present if size == span else slice(None)
    mean = np.bincount(index, value, size)[pick] / count
    first = np.zeros(0, np.int64)
    if step is not None:
        lowest = np.full(size, 2**62, np.int64)
        np.minimum.at(lowest, index, step)
        first = lowest[pick]
    begins = np.searchsorted(present, np.arange(places * len(ORDER) + 1) * many)
    number = numbers[present % many] if len(numbers) else np.zeros(0, np.int32)
    # Sorted by number in each (place, view), too: what two trials share is then found without sorting again.
    return _by_number(Entries(begins, number, mean, first))


def _by_number(entries: Entries) -> Entries:
    of = np.repeat(np.arange(len(entries.begins) - 1), np.diff(entries.begins))
    key = of * (int(entries.record.max(initial=0)) + 1) + entries.record
    if (np.diff(key) > 0).all():
        return entries
    order = np.argsort(key, kind="stable")
    first = entries.first[order] if len(entries.first) else entries.first
    return Entries(entries.begins, entries.record[order], entries.value[order], first)


def codes(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Return the column of texts as numbers, and the texts that these number."""
    # One chunk first: every chunk of a chunked column has a dictionary of its own.
    if pa.types.is_dictionary(column.type):
        encoded = column.unify_dictionaries().combine_chunks()
    else:
        encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):  # an empty column
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
