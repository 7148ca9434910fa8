"""The commands of docs/data.md, and what its table says of each dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.data import DATASETS
from tests.contracts.test_datasets import sample_path
from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/data.md"


def test_every_command_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    for title in ("data/mine.json", "search_spaces/my_sweep.yaml"):
        file = tmp_path / title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block(PAGE, title))
    sample = sample_path("mquake.json")
    assert sample is not None
    (tmp_path / "data/MQuAKE").mkdir()
    shutil.copy(sample, tmp_path / "data/MQuAKE/MQuAKE-CF-3k-v2.json")
    for title in ("mine", "published"):
        for line in block(PAGE, title).splitlines():
            assert main(line.partition("#")[0].split()[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert "2 records" in capsys.readouterr().out


def test_the_table_has_every_dataset_that_is_a_file() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {line.split("`")[1] for line in rows} - {"data.name"}
    assert named == set(DATASETS.names()) - {"world", "belief"}
