"""The page about the library is executed, block by block, and prints what stands there."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

import raysweep
from tests.docs.pages import ROOT, blocks, spans

PAGE = ROOT / "docs/library.md"


def test_every_block_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("RAYSWEEP_ROOT", "RAYSWEEP_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    names: dict[str, object] = {}
    listed = blocks(PAGE)
    shown = 0
    for i, one in enumerate(listed):
        if one.language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(one.text, f"{PAGE}:{one.title}", "exec", dont_inherit=True), names)
        if one.title:
            shown += 1
            assert listed[i + 1].language == "text", one.title
            assert printed.getvalue() == listed[i + 1].text, one.title
    assert shown >= 6
    _run_the_readme(names)


def _run_the_readme(names: dict[str, object]) -> None:
    """Run the five lines of the README, where ROME's second moments are there already."""
    (example,) = (one.text for one in blocks(ROOT / "README.md") if one.language == "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec", dont_inherit=True), names)
    said = example.rpartition("# ")[2].strip()
    assert said == "before=' baker', after=' lawyer'"
    assert said in printed.getvalue()


def test_every_public_name_is_told() -> None:
    text = " ".join(spans(PAGE))
    missing = [name for name in raysweep.__all__ if name not in text and name != "__version__"]
    assert not missing
