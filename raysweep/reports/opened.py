"""A sweep's results for people who write Python: rows as Arrow, the tables of ``show`` and ``compare`` as data frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import pyarrow as pa

from raysweep.errors import DamagedError, NewerFormatError, SpecError, nearest
from raysweep.reports import compare, pairs, sweep_table
from raysweep.reports.render import Row, flat
from raysweep.reports.standing import trial_labels
from raysweep.reports.views import rows_with_gaps, trial_views
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import TABLES, TRIALS
from raysweep.results.state import State
from raysweep.results.tables import Sweep, find_results
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

Phase = Literal["retained", "immediate"]
# What a row is called; everything else about its trial is in the table of trials, joined by trial_key.
_NAMED = [
    pa.field("arm", pa.string(), nullable=False),
    pa.field("seed", pa.int64()),
    pa.field("point", pa.string(), nullable=False),
]


@dataclass(frozen=True, slots=True)
class TrialError:
    """A trial without usable results, and why.

    Attributes:
        key: of the trial.
        label: its arm and what tells it from the other trials, as ``raysweep show --by trial`` prints it.
        state: ``FAILED``, ``DAMAGED``, ``NEWER`` or ``STOPPED``.
        reason: what went wrong.
    """

    key: str
    label: str
    state: str
    reason: str


class OpenedSweep(Sweep):
    """A sweep with its tables; ``raysweep.open_sweep`` returns one.

    Besides what is written here it has :meth:`trials`, :meth:`probes`, :meth:`stats` and :meth:`timing`, each a whole
    ``pyarrow.Table`` as the files have it (``docs/columns.md``).
    """

    def rows(self, table: str = "probes") -> pa.RecordBatchReader:
        """Yield every row of a table as Arrow record batches, one trial after another, so that a large sweep need not fit memory.

        Each has the columns of ``docs/columns.md``, and before them the ``arm``, ``seed`` and ``point`` (JSON) that its trial has
        in the latest plan; a trial that stands there twice comes twice. Damaged trials are left out and noted in ``damaged``.
        ``read_all()`` makes one ``pyarrow.Table`` of it; polars and DuckDB take the reader as it is.

        Raises:
            SpecError: there is no such table.
        """
        known = {one.name: one for one in TABLES if one is not TRIALS}
        if table not in known:
            raise SpecError(f"no table '{table}' of rows", hint=f"{nearest(table, known)}; trials: .trials()")
        schema = pa.schema([*_NAMED, *known[table].arrow])

        def batches() -> Iterator[pa.RecordBatch]:
            for name in self.names:
                try:
                    read = read_fragments(self.store, known[table], self.store.fragments(known[table], name.key))
                except (DamagedError, NewerFormatError) as error:
                    self.damaged[name.key] = error.message
                    continue
                said = (name.arm, name.seed, json.dumps(dict(name.point), sort_keys=True))
                columns = [pa.repeat(pa.scalar(v, f.type), len(read)) for v, f in zip(said, _NAMED, strict=True)]
                yield from pa.Table.from_arrays([*columns, *read.columns], schema=schema).to_batches()

        return pa.RecordBatchReader.from_batches(schema, batches())

    @overload
    def table(
        self, *, at: int | None = None, by: Literal["arm", "trial"] = "arm", phase: Phase | None = None,
        arrow: Literal[False] = False,
    ) -> pd.DataFrame: ...  # fmt: skip

    @overload
    def table(
        self, *, at: int | None = None, by: Literal["arm", "trial"] = "arm", phase: Phase | None = None,
        arrow: Literal[True],
    ) -> pa.Table: ...  # fmt: skip

    def table(
        self,
        *,
        at: int | None = None,
        by: Literal["arm", "trial"] = "arm",
        phase: Phase | None = None,
        arrow: bool = False,
    ) -> pd.DataFrame | pa.Table:
        """Return what ``raysweep show`` prints: a row per arm and round, each view with its 95 % interval.

        A view such as Rel has the columns ``rel`` (the mean), ``rel_se``, ``rel_low``, ``rel_high`` and ``rel_n``.

        Args:
            at: only this round; -1 = the last one that all arms have in common.
            by: ``arm`` pools seeds; ``trial`` gives each trial its rows.
            phase: when a record is measured; None = what the study is about.
            arrow: as a ``pyarrow.Table``, not as a pandas data frame. Without pandas it always is.

        Raises:
            SpecError: nothing was measured at that round, or the study has no such phase.
        """
        lines = rows_with_gaps(trial_views(self), phase=phase, by=by, at=at)
        return _framed(sweep_table.rows(lines, plain=True), arrow=arrow)

    @overload
    def compare(
        self, *others: Sweep, to: str = "", by: str = "arm", pair: Literal["wrap"] | None = None, at: int = -1,
        phase: Phase | None = None, arrow: Literal[False] = False,
    ) -> pd.DataFrame: ...  # fmt: skip

    @overload
    def compare(
        self, *others: Sweep, to: str = "", by: str = "arm", pair: Literal["wrap"] | None = None, at: int = -1,
        phase: Phase | None = None, arrow: Literal[True],
    ) -> pa.Table: ...  # fmt: skip

    def compare(
        self, *others: Sweep, to: str = "", by: str = "arm", pair: Literal["wrap"] | None = None, at: int = -1,
        phase: Phase | None = None, arrow: bool = False,
    ) -> pd.DataFrame | pa.Table:  # fmt: skip
        """Return what ``raysweep compare`` prints: each arm's difference to a reference, paired by record and seed.

        Beside each view (``rel`` …) stands its difference (``delta_rel`` …), both with their 95 % intervals.

        Args:
            others: further sweeps, whose arms are listed too.
            to: the reference arm, or with *by* a key, the reference value; empty = the first.
            by: ``arm``, or a swept key such as ``wrap.simie.lam``: the same arm at the key's first value is the reference.
            pair: ``wrap`` sets each wrapped editor beside the same editor without its wrapper.
            at: the round; -1 = the last one that all have in common.
            phase: when a record is measured; None = what the study is about.
            arrow: as a ``pyarrow.Table``, not as a pandas data frame. Without pandas it always is.

        Raises:
            SpecError: no such arm, key or round, or nothing was measured yet.
        """
        if pair and (to or by != "arm"):
            raise SpecError("pair='wrap' has its own references", hint="leave out to and by")
        sweeps: Sequence[Sweep] = (self, *others)
        labelled = [(sweep, f"{sweep.name}: " if others else "") for sweep in sweeps]
        entries = compare.compared_entries(labelled, by=by, phase=phase, at=at)
        if pair:
            paired = pairs.by_wrapper(entries)
        else:
            paired = pairs.to_one(entries, to) if by == "arm" else pairs.by_value(entries, by, to)
        return _framed(compare.rows(pairs.of_one_protocol(entries, paired)[0], plain=True), arrow=arrow)

    def errors(self) -> list[TrialError]:
        """Return the trials that failed, were stopped, or whose files are damaged, each with its reason; empty = all is well."""
        called, found = trial_labels(self.places), []
        for key in dict.fromkeys(name.key for name in self.places):
            state, status = self.state(key), self.records[key].status
            if state in (State.FAILED, State.STOPPED, State.DAMAGED, State.NEWER):
                reason = self.damaged.get(key) or status.error or status.reason
                found.append(TrialError(key, called.get(key, key), state.value, reason))
        return found


def open_sweep(name: str | Path, workspace: Workspace | None = None, *, everything: bool = False) -> OpenedSweep:
    """Return the results of a sweep, by its name in ``results/``, its folder or its URI; reading needs neither Ray nor torch.

    Args:
        name: the sweep.
        workspace: below which named sweeps lie; None = the current folder (``Workspace.here``).
        everything: also trials of earlier plans, under the names they were begun with.

    Raises:
        StoreError: there are no results of that name.

    >>> import raysweep
    >>> space = {
    ...     "sweep": "two",
    ...     "base": {"data": {"name": "world", "size": 2}},
    ...     "arms": {"nothing": {"editor": "null"}, "all": {"editor": "oracle"}},
    ... }
    >>> outcome = raysweep.run_sweep(space, backend="inline")
    >>> sweep = raysweep.open_sweep("two")
    >>> sweep.table(at=-1)[["arm", "edits", "rel", "n"]].values.tolist()
    [['nothing', 2, 0.25, 2], ['all', 2, 1.0, 2]]
    >>> sweep.compare().delta_rel.tolist()[1], sweep.errors()
    (0.75, [])
    >>> sweep.rows().read_all().column_names[:5]
    ['arm', 'seed', 'point', 'trial_key', 'step']
    """
    return OpenedSweep(find_results(name, workspace or Workspace.here()), everything=everything)


def _framed(rows: Sequence[Row], *, arrow: bool) -> pd.DataFrame | pa.Table:
    """Return *rows* as a data frame, or as Arrow where that is asked for or there is no pandas."""
    values = [flat(row) for row in rows]
    # A row without an estimate has one column where others have five: those five stay side by side.
    columns = rows[0] if rows else {}
    names = dict.fromkeys(name for column in columns for row in rows for name in flat({column: row[column]}))
    # From Arrow in both cases, so that a column without any value has one type in both: null.
    table = pa.table({name: [row.get(name) for row in values] for name in names})
    return table if arrow or find_spec("pandas") is None else table.to_pandas()
