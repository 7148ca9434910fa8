from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from results_helpers import count_reads, write_pairs

from raysweep.results.store import ResultStore


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """A sweep of three seeds, with and without λ."""
    return write_pairs(tmp_path / "results" / "s", range(3))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the reads of each file."""
    return count_reads(monkeypatch)
