from __future__ import annotations

from collections.abc import Callable

import pytest

from raysweep.cli.main import main
from raysweep.config.components import Components
from tests.unit.config.fakes import components

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch) -> Run:
    """Run one command line in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAYSWEEP_ROOT", raising=False)
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def fakes(monkeypatch) -> None:
    """Plan with components that need no files."""
    monkeypatch.setattr(Components, "installed", staticmethod(lambda *, fetch=False: components()))
