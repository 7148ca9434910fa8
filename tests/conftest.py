"""What every test may rely on."""

import logging

import pytest

from raysweep.environment import VARIABLES


@pytest.fixture(autouse=True)
def _own_loggers_speak() -> None:
    """Undo what a command or Ray, run in this process by an earlier test, did to our loggers."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "raysweep":
            logger.disabled = False
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset what would stand in every key, and what makes tables narrow: workers of pytest-xdist set COLUMNS."""
    for name in (*VARIABLES, "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
