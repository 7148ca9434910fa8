"""The counts on the page of forward passes are what its own script prints."""

from __future__ import annotations

import subprocess
import sys

from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/methods/forward.md"


def test_the_counts_are_those_of_the_code() -> None:
    argv = [sys.executable, "-c", block(PAGE, "counts.py")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == block(PAGE, "what it prints")
