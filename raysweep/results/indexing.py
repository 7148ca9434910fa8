"""Writing the index of a sweep (:mod:`raysweep.results.index`): each finished trial that is not in it yet is read once."""

from __future__ import annotations

import time

from raysweep.errors import DamagedError, NewerFormatError
from raysweep.lazy import without_collection
from raysweep.results.finite import first_non_finite_of
from raysweep.results.folder import each
from raysweep.results.fragments import read_fragments
from raysweep.results.index import LEAST, MOST, IndexedTrial, write_index
from raysweep.results.schema import PROBES, STATS, TABLES, TIMING
from raysweep.results.state import State
from raysweep.results.store import files_of_table
from raysweep.results.tables import SUMMARY_COLUMNS, Sweep, seconds_by_phase

_READ = (PROBES, STATS, TIMING)  # what every trial has; one with rows of other tables is read from its own files


@without_collection()
def index_finished(sweep: Sweep) -> None:
    """Write what the folders of finished trials of *sweep* hold into a few files, if they are many."""
    done = [key for key in sweep.keys if sweep.state(key) is State.DONE]
    if len(done) < LEAST:
        return
    now = time.time()
    known = {key: trial for key in done if (trial := sweep.indexed(key)) is not None}
    settled = [k for k in done if k not in known and k in sweep.stamps and sweep.stamps[k].is_settled(now)]
    read = each(sweep.store.folder, settled, lambda key: _read(sweep, key))
    found = {key: known.get(key) or read.get(key) for key in done}
    trials = {key: trial for key, trial in found.items() if trial is not None}
    if settled and len(trials) >= LEAST:
        write_index(sweep.store.folder, trials)


def _read(sweep: Sweep, key: str) -> IndexedTrial | None:
    """Return a finished trial for the index; None if it is too large for it, or damaged."""
    names = sweep.store.folder.files(key)
    if any(files_of_table(names, table) for table in TABLES if table not in _READ):
        return None
    try:
        probes, stats, timing = (read_fragments(sweep.store, table, files_of_table(names, table)) for table in _READ)
    except (DamagedError, NewerFormatError) as error:
        sweep.damaged[key] = error.message
        return None
    # The trials table is written next, and need not read the trial again.
    sweep.note(key, first_non_finite_of(probes, stats))
    if len(probes) > MOST:
        return None
    return IndexedTrial(
        record=sweep.records[key],
        stamp=sweep.stamps[key].digest,
        content=sweep.content(key),
        seconds=seconds_by_phase(timing).get(key, {}),
        probes=probes.select(SUMMARY_COLUMNS),
    )
