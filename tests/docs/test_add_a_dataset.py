"""The page that adds a dataset is executed: its class sits the contract, its entry point is found, its sweep runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, block, installed, run_python

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
    installed(PAGE, root, "capitals")
    return root


def test_it_keeps_the_contract(folder: Path) -> None:
    run_python(folder, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "test_capitals.py")


def test_its_file_is_checked_and_its_sweep_planned(folder: Path) -> None:
    assert "2 records, 6 probes" in run_python(folder, "-m", "raysweep", "data", "check", "capitals")
    assert "1 trial" in run_python(folder, "-m", "raysweep", "validate", "capitals")


def test_it_is_small() -> None:
    assert sum(bool(line.strip()) for line in block(PAGE, "raysweep/data/capitals.py").splitlines()) <= 30
