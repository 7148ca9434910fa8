"""How often a command goes to the files: once to each, so that a sweep of hundreds of trials is shown within a second."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results_helpers import make_trial, write_trial

from raysweep.cli.main import main
from raysweep.errors import DamagedError
from raysweep.reports import measured
from raysweep.results import fragments
from raysweep.results.folder import Folder
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import PROBES
from raysweep.results.store import ResultStore
from raysweep.results.tables import open_results

SEEDS, STATE_READS = range(3), 8  # state files read per trial, at most


@pytest.mark.parametrize(
    "argv",
    [
        ("show", "s"),
        ("show", "s", "--by", "trial", "--at", "-1"),
        ("show", "s", "--plot", "{}/plot.png"),
        ("compare", "s", "--to", "memit"),
    ],
    ids=" ".join,
)
def test_a_table_file_is_read_and_decoded_once_by_a_command(
    store: ResultStore, reads: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    decoded: list[int] = []
    read = fragments._decoded

    def counted(*arguments: object) -> pa.Table:
        decoded.append(1)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fragments, "_decoded", counted)
    written = {f"{key}/{Path(name).name}" for key in store.keys() for name in store.folder.files(key)}  # noqa: SIM118
    tables = {name for name in written if name.endswith(".parquet")}
    assert len(tables) == 6 * 3 * 3
    assert main(["--root", str(tmp_path), *(a.format(tmp_path) for a in argv)]) == 0
    assert {name: count for name, count in reads.items() if name.endswith(".parquet")} == dict.fromkeys(tables, 1)
    assert len(decoded) == len(tables)
    states = Counter(name.partition("/")[0] for name in reads.elements() if "/" in name and name not in tables)
    assert max(states.values()) <= STATE_READS


def test_what_is_checked_is_what_is_decoded(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced right after it was checked: its bytes were read once, so the table has those of the check."""
    names = store.fragments(PROBES, store.keys()[0])
    before = read_fragments(store, PROBES, names)
    read = Folder.read

    def then_damaged(self: Folder, name: str) -> bytes:
        data = read(self, name)
        if name in names:
            Path(self.path(name)).write_bytes(b"PAR1")
        return data

    monkeypatch.setattr(Folder, "read", then_damaged)
    assert read_fragments(store, PROBES, names).equals(before)
    with pytest.raises(DamagedError, match="not as it was written"):
        read_fragments(store, PROBES, names)


def test_many_files_are_one_table_in_the_order_asked_for(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for key in store.keys() for name in store.fragments(PROBES, key)][::-1]  # noqa: SIM118
    few = read_fragments(store, PROBES, names, columns=("value", "step"))
    monkeypatch.setattr(fragments, "_MANY", 2)
    many = read_fragments(store, PROBES, names, columns=("value", "step"))
    assert many.column_names == ["value", "step"]
    assert many.equals(few)
    alone = [read_fragments(store, PROBES, [name], columns=("value", "step")) for name in names]
    assert many.equals(pa.concat_tables(alone))


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no nullable column": lambda data: data.drop_columns(["superseded_step"]),
    "a further column": lambda data: data.append_column("extra", pa.nulls(len(data), pa.int64())),
    "a wider type": lambda data: data.set_column(12, "answer", data["answer"].cast(pa.large_string())),
    "no column that is a must": lambda data: data.drop_columns(["answer"]),
    "nulls where a value is a must": lambda data: data.set_column(12, "answer", pa.nulls(len(data), pa.string())),
    "another type": lambda data: data.set_column(12, "answer", pa.nulls(len(data), pa.list_(pa.int64()))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_another_shape_is_brought_to_the_schema_or_damaged(tmp_path: Path, change: str) -> None:
    """Of a trial that has not ended and has no snapshot, no list says how its files were written."""
    store = ResultStore(tmp_path / "s")
    trial = make_trial()
    write_trial(store, trial)
    for name in ("DONE.json", "timing.json"):
        (tmp_path / "s" / trial.key / name).unlink()
    names = store.fragments(PROBES, trial.key)
    table = read_fragments(store, PROBES, names)
    path = store.folder.path(names[0])
    with pq.ParquetFile(path) as file:
        data = file.read()
    assert data.column_names[12] == "answer"
    pq.write_table(CHANGES[change](data), path)
    if list(CHANGES).index(change) > 2:
        with pytest.raises(DamagedError, match=f"{Path(path).name} is truncated or damaged"):
            read_fragments(store, PROBES, names)
        return
    found = read_fragments(store, PROBES, names)
    assert found.schema.equals(PROBES.arrow)
    lost = ["superseded_step"] if change == "no nullable column" else []
    assert found.drop_columns(lost).equals(table.drop_columns(lost))
    assert not lost or found[lost[0]].slice(0, len(data)).null_count == len(data)


def test_the_trials_table_is_made_of_one_look_at_the_files(store: ResultStore, reads: Counter[str]) -> None:
    sweep = open_results(store.folder.base)
    first = sweep.trials()
    after = reads.copy()
    assert sweep.trials().equals(first)
    assert reads == after


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_while_trials_are_read_and_is_as_before_afterwards(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    seen: list[bool] = []
    read = fragments._decoded

    def watched(*arguments: object) -> pa.Table:
        seen.append(gc.isenabled())
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fragments, "_decoded", watched)
    monkeypatch.setattr(measured, "seconds_by_phase", lambda timing: {} if len(seen) < 20 else 1 / 0)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ZeroDivisionError):
            measured.trial_views(open_results(store.folder.base))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert set(seen) == {False}
