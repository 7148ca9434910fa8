"""The page that adds a dataset is executed: its class sits the contract, its entry point is found, its sweep runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, block, installed, run_parts

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


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    """What a process that finds the package prints of each part, by its title."""
    argv = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "test_capitals.py"]
    return run_parts(
        folder,
        {
            "contract": f"import pytest; assert pytest.main({argv}) == 0",
            "check": "from raysweep.cli.main import main; assert main(['data', 'check', 'capitals']) == 0",
            "validate": "from raysweep.cli.main import main; assert main(['validate', 'capitals']) == 0",
        },
    )


def test_it_keeps_the_contract(printed: dict[str, str]) -> None:
    assert "1 passed" in printed["contract"]


def test_its_file_is_checked_and_its_sweep_planned(printed: dict[str, str]) -> None:
    assert "2 records, 6 probes" in " ".join(printed["check"].split())  # a long path folds the line
    assert "1 trial" in printed["validate"]


def test_it_is_small() -> None:
    assert sum(bool(line.strip()) for line in block(PAGE, "raysweep/data/capitals.py").splitlines()) <= 30
