"""The page that adds a metric is executed: a sweep asks for it, its rows are there, and no other trial gets another key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds

from raysweep import metrics
from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/add_a_metric.md"
# What a line more in raysweep/metrics.py does, before the command line is asked.
SITE = """
import raysweep.metrics
from raysweep.metrics import Answer, metric
{function}
from raysweep.cli.main import main
import sys
sys.exit(main(sys.argv[1:]))
"""


def raysweep(root: Path, *argv: str, added: bool = True) -> str:
    code = SITE.format(function=block(PAGE, "raysweep/metrics.py") if added else "")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAYSWEEP_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if added else 2), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_protocol_that_asks_for_it_has_its_rows(tmp_path: Path) -> None:
    spaces = tmp_path / "search_spaces"
    spaces.mkdir()
    (spaces / "first_token.yaml").write_text(block(PAGE, "search_spaces/first_token.yaml"), encoding="utf-8")
    assert "first_token" in raysweep(tmp_path, "validate", "first_token", added=False)  # unknown without the function
    flags = ("--editor", "FT-L", "--edits", "2", "--rounds", "0,2", "--name", "x")
    raysweep(
        tmp_path, "edit", *flags, "--set", "base.protocol.metrics=[token_match, exact_match, agreement, first_token]"
    )
    files = [str(p) for p in (tmp_path / "results/x").rglob("probes-*.parquet")]
    table = ds.dataset(files).to_table(columns=["metric", "value"]).to_pylist()
    values = [row["value"] for row in table if row["metric"] == "first_token"]
    assert len(values) > 0
    assert set(values) <= {0.0, 1.0}
    assert {row["metric"] for row in table} == {"token_match", "exact_match", "agreement", "first_token"}


def test_the_default_is_not_longer() -> None:
    assert "first_token" not in metrics.DEFAULT_METRICS
