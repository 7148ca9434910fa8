"""Where hypothesis keeps its tables, how many inputs are tried, and what came of them."""

from __future__ import annotations

import os

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from tests.fuzz.oracle import Tally

INPUTS = int(os.environ.get("RAYSWEEP_FUZZ", "0")) or 120  # in all; `make fuzz` asks for 5,000
LONG = INPUTS > 1000


def share(part: float) -> hypothesis.settings:
    """Return the settings of a test that takes *part* of the inputs: always the same ones, but in a long run."""
    return hypothesis.settings(
        max_examples=max(1, round(INPUTS * part)),
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.fixture(scope="session", autouse=True)
def _hypothesis_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """Count what came of the inputs of all tests; a long run prints it."""
    return request.config.stash.setdefault(TALLY, Tally())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TALLY, Tally()).lines() if LONG else ():
        terminalreporter.write_line(line)


@pytest.fixture
def root(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """An empty workspace that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    monkeypatch.delenv("RAYSWEEP_FUZZ", raising=False)  # every command would refuse it, and look at nothing else
    return tmp_path
