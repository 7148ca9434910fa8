"""The page that adds a metric is executed: a sweep asks for it, its rows are there, and no other trial gets another key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from raysweep import metrics
from raysweep.cli.main import main
from raysweep.metrics import METRICS
from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/add_a_metric.md"
ASKED = "base.protocol.metrics=[token_match, exact_match, agreement, first_token]"


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the page's search space."""
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces/first_token.yaml").write_text(block(PAGE, "search_spaces/first_token.yaml"))
    return tmp_path


@pytest.fixture
def added() -> Iterator[None]:
    """What the page's lines do at the end of raysweep/metrics.py; the table is as it was afterwards."""
    table = dict(METRICS)
    try:
        exec(block(PAGE, "raysweep/metrics.py"), {**vars(metrics)})
        assert set(METRICS) - set(table) == {"first_token"}
        yield
    finally:
        METRICS.clear()
        METRICS.update(table)


def test_without_the_function_its_name_is_refused(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "first_token"]) == 2
    assert "first_token" in capsys.readouterr().err


def test_a_protocol_that_asks_for_it_has_its_rows(space: Path, added: None) -> None:
    flags = ("--editor", "FT-L", "--edits", "2", "--rounds", "0,2", "--name", "x")
    assert main(["edit", *flags, "--set", ASKED]) == 0
    files = [str(p) for p in (space / "results/x").rglob("probes-*.parquet")]
    table = ds.dataset(files).to_table(columns=["metric", "value"]).to_pylist()
    values = [row["value"] for row in table if row["metric"] == "first_token"]
    assert len(values) > 0
    assert set(values) <= {0.0, 1.0}
    assert {row["metric"] for row in table} == {"token_match", "exact_match", "agreement", "first_token"}


def test_the_default_is_not_longer() -> None:
    assert "first_token" not in metrics.DEFAULT_METRICS
