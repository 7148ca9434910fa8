"""The examples in docstrings are run: what they show is what comes."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from raysweep.testing.architecture import modules

WITH_EXAMPLES = sorted(name for name, path in modules().items() if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0, f"{name} has an example that is not run"
    assert not results.failed
