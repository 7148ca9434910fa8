"""From rows of probes to what each trial has measured: many rows are grouped at once, with few passes over them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysweep.measures import VIEWS
from raysweep.reports.values import ORDER, Entries, Facts, Floats, Ints, Measurements, Records

VIEW_OF = {(kind, metric): i for i, (kind, metric) in enumerate(VIEWS.values())}
DENSE = 4  # numbers per row up to which groups are counted in an array of all of them, rather than sorted
LOOKED_UP = 8_000_000  # pairs of trial and step up to which they are looked up in an array


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

    facts = _facts(trial, record, edit, gone, len(probes), numbers)
    out, first = [], 0
    for t, own in enumerate(reached):
        out.append(Measurements(records, own, retained, first, fresh, t, facts[t]))
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


def _facts(trial: Ints, record: Ints, edit: Ints, gone: Ints, trials: int, numbers: NDArray[np.int32]) -> list[Facts]:
    """Return when the records of each trial were written; all rows of a record say the same."""
    many = max(len(numbers), 1)
    group, span = trial * many + record, trials * many
    if span <= DENSE * len(group) + 1024:
        # The last row's index of each group that has one: quicker than sorting.
        table = np.full(span, -1, np.int64)
        table[group] = np.arange(len(group))
        present = np.flatnonzero(table >= 0)
        row = table[present]
    else:
        present, row = np.unique(group, return_index=True)
    begins = np.searchsorted(present, np.arange(trials + 1) * many)
    out = []
    for begin, end in itertools.pairwise(begins.tolist()):
        number = numbers[present[begin:end] % many] if len(numbers) else np.zeros(0, np.int32)
        order = np.argsort(number, kind="stable")
        rows = row[begin:end][order]
        out.append(Facts(number[order], edit[rows], gone[rows]))
    return out


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
