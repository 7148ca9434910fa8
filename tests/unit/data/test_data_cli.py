"""``raysweep data`` from a shell's point of view."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.workspace import package_share

SAMPLE = package_share() / "data" / "ZsRE" / "sample.json"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))


def test_ls_says_what_is_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "ls"]) == 0
    out = capsys.readouterr().out
    assert "in the package" in out
    assert "wikipedia" in out
    assert "pip install 'raysweep[datasets]'" in out


def test_check_counts_records_probes_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "zsre", "--path", str(SAMPLE)]) == 0
    out = capsys.readouterr().out
    assert "warning: " in out
    assert "6 records, 22 probes, 1 warnings" in out


def test_check_prints_every_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = json.loads(SAMPLE.read_text(encoding="utf-8"))
    rows[0]["alt"] = ""
    rows[3]["subject"] = "Nobody"
    (tmp_path / "bad.json").write_text(json.dumps(rows), encoding="utf-8")
    assert main(["data", "check", "zsre", "--path", "bad.json"]) == 2
    err = capsys.readouterr().err
    assert "bad.json:0  (zsre/000000): target is empty" in err
    assert "bad.json:3  (zsre/000003): subject 'Nobody' occurs 0 times" in err
    assert "2 errors" in err


def test_only_brown_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "browne"]) == 2
    err = capsys.readouterr().err
    assert "nothing to fetch under 'browne'" in err
    assert "did you mean: brown?" in err
