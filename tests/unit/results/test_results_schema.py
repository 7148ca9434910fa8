from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pytest
from results_helpers import make_trial, probe_rows

from raysweep.errors import StoreError
from raysweep.results import schema
from raysweep.results.schema import PROBES, STATS, TABLES, TIMING, columns_markdown, upgrade, version_of
from raysweep.rows import StatRow


def test_columns_page_is_in_sync() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "columns.md"
    assert page.read_text() == columns_markdown(), "run: python -m raysweep.results.schema"


@pytest.mark.parametrize("table", [PROBES, STATS, TIMING], ids=lambda t: t.name)
def test_schema_mirrors_its_dataclass(table: schema.TableSchema) -> None:
    assert table.row is not None
    assert [c.name for c in table.columns] == [f.name for f in fields(table.row)]


def test_every_column_is_documented() -> None:
    assert all(c.doc for t in TABLES for c in t.columns)


def test_rows_are_sorted_and_tagged() -> None:
    rows = probe_rows(make_trial(), 2, [1, 2])
    table = PROBES.build(rows[::-1])
    assert table == PROBES.build(rows)
    assert table.schema.metadata[b"raysweep.schema"] == b"probes/1"
    assert table["value"].null_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": None}, r"probes/1\.metric may not be null"),
        ({"step": 1.0}, r"probes/1\.step holds int64, got float"),
        ({"step": True}, r"probes/1\.step holds int64, got bool"),
        ({"value": "1"}, r"probes/1\.value holds double, got str"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, object], message: str) -> None:
    row = replace(probe_rows(make_trial(), 2, [1])[0], **change)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=message):
        PROBES.build([row])


def test_rows_of_another_class_are_refused() -> None:
    stat = StatRow(trial_key="k", step=1, name="loss", value=0.1)
    with pytest.raises(StoreError, match="is built from ProbeRow, got StatRow, dict"):
        PROBES.build([stat, {"step": 1}])


def test_other_tables_and_newer_versions_are_refused() -> None:
    with pytest.raises(StoreError, match="f is not a probes file"):
        version_of(STATS.arrow, PROBES, "f")
    newer = PROBES.arrow.with_metadata({b"raysweep.schema": b"probes/9"})
    with pytest.raises(StoreError, match="f was written as probes/9; this raysweep reads up to probes/1"):
        version_of(newer, PROBES, "f")


def test_older_versions_are_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = replace(STATS, version=2, columns=(*STATS.columns, schema.Column("unit", pa.string(), "", "its unit")))
    monkeypatch.setitem(
        schema.UPGRADES, ("editor_stats", 1), lambda t: t.append_column("unit", pa.array(["" for _ in range(len(t))]))
    )
    old = STATS.build([StatRow(trial_key="k", step=1, name="loss", value=0.1)])
    assert upgrade(old, newer, 1).column_names[-1] == "unit"
