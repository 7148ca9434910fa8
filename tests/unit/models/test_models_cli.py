"""``raysweep models`` from a shell's point of view."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli.main import main
from raysweep.models.sources import embedded_recipe


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))


def test_ls_says_where_each_model_is(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    make_folder(name="models/mine")
    assert main(["models", "ls"]) == 0
    out = capsys.readouterr().out
    assert "hub: openai-community/gpt2-xl" in out
    assert str(tmp_path / "models" / "mine") in out


def test_info_of_a_folder(make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", "mine", "--path", str(make_folder("qwen3"))]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["model_type"] == "qwen3"
    assert len(facts["fingerprint"]) == 16


def test_info_of_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", "gpt2xl"]) == 2
    assert "did you mean: gpt2-xl?" in capsys.readouterr().err


def test_build_hands_its_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def build(out: Path, *, seed: int, threads: int, progress: Callable[[int, int, float], None]) -> dict[str, float]:
        asked.update(out=out, seed=seed, threads=threads)
        progress(1, 2, 0.5)
        return {"trained": 1.0}

    monkeypatch.setattr(embedded_recipe, "build", build)
    assert main(["models", "build", "embedded", "--out", str(tmp_path / "e"), "--seed", "3"]) == 0
    assert asked == {"out": tmp_path / "e", "seed": 3, "threads": 1}
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"folder": str(tmp_path / "e"), "trained": 1.0}
    assert "step 1/2" in captured.err
    assert main(["models", "build", "gpt2", "--out", "x"]) == 2


def test_fetch_of_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "fetch", "smollm2"]) == 2
    assert "did you mean: smollm2-135m?" in capsys.readouterr().err
