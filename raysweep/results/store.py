"""What a sweep has measured so far: a folder per sweep, one per trial key, a Parquet file per table and round."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pyarrow import fs

from raysweep.config.schema import TrialSpec
from raysweep.config.space import Scalar
from raysweep.errors import DamagedError, SnapshotError, StorageLostError, StoreError
from raysweep.results.columns import TableSchema
from raysweep.results.folder import Folder
from raysweep.results.schema import ANSWERS, BELIEFS, POINTS, PROBES, STATS, TIMING, TRAINING
from raysweep.results.snapshots import GROUP_SNAPSHOTS, delete_unnamed_tensors, packed, read_snapshot, tensor_file
from raysweep.results.state import ENDS, State, TrialStatus, checksum, missing_files, trial_state
from raysweep.results.statefiles import (
    FORMAT,
    HEARTBEAT,
    PLAN,
    SNAPSHOT,
    TIMES,
    TRIAL,
    PlanFile,
    TableFile,
    TrialFile,
    listed,
    read_plan,
    read_trial,
)
from raysweep.results.tablefiles import described, encoded, scan
from raysweep.rows import EvalRound, Snapshot, TableRow

__all__ = [
    "ENDS",
    "HEARTBEAT",
    "PLAN",
    "SNAPSHOT",
    "TRIAL",
    "ResultStore",
    "State",
    "Tensors",
    "TrialStatus",
]

log = logging.getLogger(__name__)

Tensors = Mapping[str, str]  # where a snapshot's tensors lie, and their checksum
_Written = tuple[TableSchema, Sequence[TableRow]]
TRIES = 3  # another process may replace the snapshot between our two reads


class ResultStore:
    """One folder per sweep, one folder per trial key, one file per table and round.

    Promises: every file appears complete or not at all; writing a round twice is the same as once, byte for byte (but
    for ``timing``); what is written first is enough to go on from; a reader never needs Ray, torch or pickle.
    """

    def __init__(self, root: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        self.folder = Folder(root, filesystem)
        # Of the trials that this process writes, by key: their files so far, by name.
        self._files: dict[str, dict[str, TableFile]] = {}

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all trials ever begun here, sorted."""
        # A name that begins with an underscore is the sweep's own: Ray's logs, drivers, shared tensors and proposals.
        return tuple(n for n in self.folder.folders() if not n.startswith("_") and self.folder.exists(f"{n}/{TRIAL}"))

    def status(self, key: str, rounds: Sequence[int] | None = None) -> TrialStatus:
        """Return where the trial *key* stands (see :func:`raysweep.results.state.trial_state`)."""
        return trial_state(self.folder, key, rounds)

    def begin(
        self, trial: TrialSpec, *, arm: str, point: Mapping[str, Scalar], provenance: Mapping[str, Mapping[str, object]]
    ) -> Snapshot | None:
        """Open *trial* for writing; return the snapshot to go on from, or None to begin at the first edit.

        A trial that had failed or was stopped goes on from its snapshot too. Beginning afresh removes what an earlier,
        unfinished life of the trial left behind. ``provenance`` in ``trial.json`` is that of the first session; a session
        that goes on with other code, versions or another machine notes under ``changed`` what is other. What the trial is called
        now (*arm*, *point*) goes in as history: readers take names from ``plan.json``.
        """
        key = trial.key
        # Without a snapshot there is nothing to go on from, so rows that were written earlier must go: the new life
        # writes all of them again, perhaps with fewer files.
        snapshot = self.latest_snapshot(key)
        about = self.about(key) if snapshot is not None else None
        if snapshot is None:
            self._clear(key)
        sessions = about.sessions if about is not None else []
        now = provenance.get("run", {})
        first = about.provenance if about is not None else now
        changed = {k: v for k, v in now.items() if v != first.get(k)}
        session = {"from_step": snapshot.step if snapshot else 0, **provenance.get("session", {})}
        session |= {"changed": changed} if changed else {}
        self.folder.write_json(
            f"{key}/{TRIAL}",
            {
                "format": FORMAT,
                "key": key,
                "begun_as": {"arm": arm, "point": dict(point)},
                "trial": trial.model_dump(mode="json"),
                "provenance": first,
                "sessions": [*sessions, session],
            },
        )
        self.reopen(key)
        return snapshot

    def note_session(self, key: str, facts: Mapping[str, object]) -> None:
        """Add *facts* to what ``trial.json`` keeps of the present session; nothing happens to a trial that was never begun."""
        begun = read_trial(self.folder, key)
        if begun is not None:
            *earlier, session = begun[0].sessions
            whole = begun[0].model_dump(mode="json", exclude_unset=True)
            self.folder.write_json(f"{key}/{TRIAL}", {**whole, "sessions": [*earlier, {**session, **facts}]})

    def write_round(
        self, key: str, result: EvalRound, *, group: str = "", tensors: Tensors | None = None
    ) -> Tensors | None:
        """Write the rows of one round, then its snapshot (see :meth:`write_snapshot`); return where its tensors lie.

        Raises:
            StorageLostError: the trial's folder was removed, moved or made anew since the trial began.
            StoreError: the storage cannot be written.
        """
        # Writing would make a folder that was removed anew, with the later rounds only.
        self._demand_begun(key)
        # One file of each of these per round, even if it has no rows: a reader tells a round that is not there by that.
        every_round: tuple[_Written, ...] = ((PROBES, result.rows), (STATS, result.stats), (TIMING, result.timing))
        some: tuple[_Written, ...] = (
            (ANSWERS, result.answers), (BELIEFS, result.beliefs), (POINTS, result.points), (TRAINING, result.training)
        )  # fmt: skip
        for table, rows in (*every_round, *(pair for pair in some if pair[1])):
            self._write_rows(key, table, result.step, rows)
        return self.write_snapshot(key, result.snapshot, group=group, tensors=tensors) if result.snapshot else None

    def _write_rows(self, key: str, table: TableSchema, step: int, rows: Sequence[TableRow]) -> None:
        # A mistake in sharing edits would file one trial's numbers under another's key, which no reader could notice.
        foreign = {r.trial_key for r in rows} - {key}
        if foreign:
            raise StoreError(f"rows of {', '.join(sorted(foreign))} were handed in for trial {key}")
        data = encoded(table, rows)
        file = described(table, step, len(rows), data)
        self.folder.write(f"{key}/{file.name}", data)
        # Noted when it is on the disk: what a state file lists, a reader may count on.
        self._files.setdefault(key, {})[file.name] = file

    def write_snapshot(
        self, key: str, snapshot: Snapshot, *, group: str = "", tensors: Tensors | None = None
    ) -> Tensors:
        """Write the tensors under a name of their own, then point ``snapshot.json`` at them, then drop the older ones.

        A crash at any moment leaves the older or the newer snapshot whole. The trials of an edit group have the same tensors at
        the same step: with *group*, the edit group's name, they are written where all of them can point to, and what is returned
        goes in as *tensors* for the next trial, so that they are written once. :meth:`tidy_group` deletes them.
        """
        if tensors is None:
            data = packed(snapshot.tensors)
            name = f"snapshot-{snapshot.step:06d}.safetensors"
            tensors = {"file": f"{GROUP_SNAPSHOTS}/{group}/{name}" if group else name, "blake2b": checksum(data)}
            self.folder.write(tensor_file(key, tensors["file"]), data)
        # Timing differs from run to run, so it is no part of what has to be there when a trial goes on.
        files = [f for f in self._files_of(key, snapshot.step) if f.step <= snapshot.step and f.table != TIMING.name]
        about = {
            "format": FORMAT,
            "step": snapshot.step,
            **tensors,
            "meta": dict(snapshot.meta),
            "files": listed(files),
        }
        # The order matters: tensors, then the file that names them, then the older tensors go. A crash between two of these
        # steps leaves one whole snapshot.
        self.folder.write_json(f"{key}/{SNAPSHOT}", about)
        self._drop_snapshots(key, keep=tensors["file"])
        return tensors

    def tidy_group(self, group: str, keys: Iterable[str]) -> None:
        """Delete the tensors of the edit group *group* that the snapshot of none of *keys* names."""
        delete_unnamed_tensors(self.folder, group, keys)

    def reopen(self, key: str) -> None:
        """Take back that a trial ended; it can go on from its snapshot."""
        # A trial that goes on must not look ended, should it be killed before its next round.
        for state in ENDS:
            self.folder.delete(f"{key}/{state}.json")

    def latest_snapshot(self, key: str) -> Snapshot | None:
        """Return the trial's snapshot, or None if it has none; a damaged one is set aside as ``*.corrupt``."""
        # On an object store the new snapshot.json may be seen before the tensors that it names, or after they were replaced.
        for attempt in range(TRIES):
            try:
                return self._read_snapshot(key)
            except FileNotFoundError:
                if attempt + 1 == TRIES:
                    log.warning("trial %s: its snapshot names a file that is gone; beginning again", key)
                    self.folder.rename(f"{key}/{SNAPSHOT}", f"{key}/{SNAPSHOT}.corrupt")
                time.sleep(0.05 * attempt)
            except SnapshotError as error:
                log.warning("trial %s: %s; beginning again, the damaged file is kept as *.corrupt", key, error.message)
                for name in self._snapshot_files(key):
                    self.folder.rename(name, f"{name}.corrupt")
                return None
        return None

    def _read_snapshot(self, key: str) -> Snapshot | None:
        """Return the verified snapshot of *key* and remember the files that it lists; raises as :func:`read_snapshot`."""
        read = read_snapshot(self.folder, key)
        if read is None:
            return None
        snapshot, files = read
        self._files[key] = {file.name: file for file in files}
        return snapshot

    def finish(self, key: str, *, step: int) -> None:
        """Mark the trial DONE, naming its files; its snapshot goes.

        Raises:
            StorageLostError: not every file of every planned round is there, or the trial's folder is gone.
        """
        spec = self._demand_begun(key)
        files = self._files_of(key, step)
        # DONE is a promise to every later reader, so it is given only for what can be seen in the folder now.
        missing = missing_files(self.folder.sizes(key), spec.protocol.rounds, files)
        if missing:
            raise StorageLostError(f"{self.folder.path(f'{key}/{missing[0]}')} is gone, though this trial wrote it")
        times = [f for f in files if f.table == TIMING.name]
        facts = [f for f in files if f.table != TIMING.name]
        # DONE.json comes last: whoever sees it may count on all that it and timing.json name.
        self.folder.write_json(f"{key}/{TIMES}", {"format": FORMAT, "files": listed(times)})
        self.folder.write_json(f"{key}/{State.DONE}.json", {"format": FORMAT, "step": step, "files": listed(facts)})
        # The trial is DONE from here on, whatever happens: what follows only tidies up.
        self._files.pop(key, None)
        self.folder.drop_drafts(key)
        self.drop_leftovers(key)

    def drop_leftovers(self, key: str) -> None:
        """Delete what only a trial without an end needs: its snapshot and its last sign of life.

        A process on a node that was lost may take one more step, and write another snapshot, after a trial was ended elsewhere.
        """
        self.folder.delete(f"{key}/{SNAPSHOT}")
        self._drop_snapshots(key)
        self.folder.delete(f"{key}/{HEARTBEAT}")

    def fail(self, key: str, *, step: int, error: str, message: str, trace: str = "") -> None:
        """Mark the trial FAILED with the type, message and traceback of what ended it."""
        self.folder.delete(f"{key}/{HEARTBEAT}")
        content = {"format": FORMAT, "step": step, "type": error, "message": message, "traceback": trace}
        self.folder.write_json(f"{key}/{State.FAILED}.json", content)

    def stop(self, key: str, *, step: int, rule: str, reason: str) -> None:
        """Mark the trial STOPPED at *step* by *rule*, which applied because of *reason*; it is never mistaken for DONE.

        Nothing goes on from there, so its snapshot goes.
        """
        content = {"format": FORMAT, "step": step, "rule": rule, "reason": reason}
        self.folder.write_json(f"{key}/{State.STOPPED}.json", content)
        self.folder.delete(f"{key}/{SNAPSHOT}")
        self._drop_snapshots(key)
        self.folder.delete(f"{key}/{HEARTBEAT}")

    def forget(self, *keys: str) -> None:
        """Delete everything about the trials *keys*: of all of them, or of none.

        Raises:
            StoreError: one of their folders cannot be deleted; nothing was.
        """
        self.folder.delete_folders(keys)

    def write_plan(self, plan: Mapping[str, object], source: str) -> None:
        """Write which trials the latest command asked for, and the search space as it was written."""
        self.folder.write_json(PLAN, {"format": FORMAT, **plan})
        if source:
            self.folder.write("sweep.yaml", source.encode())

    def plan(self) -> PlanFile | None:
        """Return what :meth:`write_plan` wrote last; None if nothing was, or if the file is damaged, which is logged.

        Raises:
            NewerFormatError: a newer raysweep wrote it.
        """
        try:
            return read_plan(self.folder)
        except DamagedError as error:
            log.warning("%s; `raysweep run` writes it anew, until then every trial ever begun counts", error.message)
            return None

    def about(self, key: str) -> TrialFile:
        """Return the contents of the trial's ``trial.json``.

        Raises:
            StoreError: the trial was never begun, or the file is damaged.
        """
        begun = read_trial(self.folder, key)
        if begun is None:
            raise StoreError(f"{self.folder.path(key)} holds no trial")
        return begun[0]

    def fragments(self, table: TableSchema, key: str) -> list[str]:
        """Return the trial's files of *table*, by rising step, relative to the store's folder."""
        return files_of_table(self.folder.files(key), table)

    def _snapshot_files(self, key: str) -> list[str]:
        names = self.folder.files(key)
        return [n for n in names if n.rpartition("/")[2].startswith("snapshot") and not n.endswith(".corrupt")]

    def _drop_snapshots(self, key: str, keep: str = "") -> None:
        for name in self._snapshot_files(key):
            if name.endswith(".safetensors") and not name.endswith(f"/{keep}"):
                self.folder.delete(name)

    def _files_of(self, key: str, step: int) -> list[TableFile]:
        """Return the trial's files so far, as this process wrote or checked them, or else as they are."""
        known = self._files.get(key)
        return [*known.values()] if known is not None else scan(self.folder, key, step)

    def _demand_begun(self, key: str) -> TrialSpec:
        """Return the specification of a trial that this process writes, from its ``trial.json``.

        Raises:
            StorageLostError: it is gone.
        """
        begun = read_trial(self.folder, key)
        if begun is None:
            message = f"{self.folder.path(key)} was removed or moved while its trial ran"
            raise StorageLostError(message, hint="run the same command again; the trial is made anew")
        return begun[1]

    def _clear(self, key: str) -> None:
        """Remove what an earlier, unfinished life of the trial left, but not its ``*.corrupt`` files."""
        self._files.pop(key, None)
        for name in self.folder.files(key):
            if not name.endswith(".corrupt"):
                self.folder.delete(name)


def files_of_table(names: Iterable[str], table: TableSchema) -> list[str]:
    """Return those of the files *names* of one trial that hold rows of *table*."""
    return [n for n in names if n.rpartition("/")[2].startswith(f"{table.name}-") and n.endswith(".parquet")]
