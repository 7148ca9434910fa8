"""The page that adds a dataset is executed: its class sits the contract, its entry point is found, its sweep runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/add_a_dataset.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the page's files, its dataset installed as a third party's would be."""
    root = tmp_path_factory.mktemp("page")
    for title, name in (
        ("raysweep/data/capitals.py", "capitals.py"),
        ("data/capitals/capitals.json", "data/capitals/capitals.json"),
        ("test_capitals.py", "test_capitals.py"),
        ("search_spaces/capitals.yaml", "search_spaces/capitals.yaml"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(block(PAGE, title), encoding="utf-8")
    head, line = block(PAGE, "pyproject.toml").strip().splitlines()
    info = root / "capitals-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: capitals\nVersion: 1.0\n")
    group = head.removeprefix("[project.entry-points.").removesuffix("]").strip('"')
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n".replace('"', ""))
    return root


def run(folder: Path, *argv: str) -> str:
    """Run Python in *folder* with the page's package on its path; it must succeed."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAYSWEEP_ROOT": str(folder)}
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_keeps_the_contract(folder: Path) -> None:
    run(folder, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "test_capitals.py")


def test_its_file_is_checked_and_its_sweep_planned(folder: Path) -> None:
    assert "2 records, 6 probes" in run(folder, "-m", "raysweep", "data", "check", "capitals")
    assert "1 trial" in run(folder, "-m", "raysweep", "validate", "capitals")


def test_it_is_small() -> None:
    assert sum(bool(line.strip()) for line in block(PAGE, "raysweep/data/capitals.py").splitlines()) <= 30
