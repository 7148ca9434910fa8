"""The counts on the page of forward passes are what its own script prints."""

from __future__ import annotations

import pytest

from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/methods/forward.md"


def test_the_counts_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block(PAGE, "counts.py"), {"__name__": "counts"})
    assert capsys.readouterr().out == block(PAGE, "what it prints")
