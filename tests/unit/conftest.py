"""Servers on the loopback address, for everything that fetches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.downloads.hubserver import Hub, hub
from tests.unit.downloads.server import Server, server


@pytest.fixture
def web() -> Iterator[Server]:
    """A server that serves what a test gives it."""
    with server() as state:
        yield state


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that ``HF_ENDPOINT`` names."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with hub() as state:
        monkeypatch.setenv("HF_ENDPOINT", f"{state.root}/")
        yield state
