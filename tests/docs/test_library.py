"""The page about the library and the notebooks in ``examples/`` are executed, and every text that they print is what comes.

Notebooks are executed without Jupyter, whose packages take 131 MB: a cell is Python. How outputs are stored: examples/README.md.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pytest
import torch

import raysweep
from tests.docs.pages import ROOT, blocks, spans

PAGE = ROOT / "docs/library.md"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LARGEST = 60_000  # bytes of a notebook, outputs included


class Cell(NamedTuple):
    """The code of a cell, what it printed and what its last expression was when the notebook was saved."""

    code: str
    printed: str
    value: str


def cells(notebook: Path) -> Iterator[Cell]:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            printed = "".join(_text(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")
            values = [o["data"]["text/plain"] for o in cell["outputs"] if o["output_type"] == "execute_result"]
            yield Cell("".join(cell["source"]), printed, _text(values[0]) if values else "")


def _text(stored: str | list[str]) -> str:
    return "".join(stored)


def run(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run a cell in *names*; return what it printed, and the value of its last line if that is an expression."""
    tree, value = ast.parse(code), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        # Without this module's own future import, which a cell does not have.
        exec(compile(tree, "cell", "exec", dont_inherit=True), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval", dont_inherit=True), names)
    return printed.getvalue(), value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, one for all: second moments and the small sweep are made once."""
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)  # small products; with more threads, those of tests beside this one wait for each other
    for variable in ("RAYSWEEP_ROOT", "RAYSWEEP_STORAGE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_says_what_is_stored(notebook: Path, here: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    compared = 0
    with mpl.rc_context({"backend": "agg"}):
        for cell in cells(notebook):
            printed, value = run(cell.code, names)
            assert printed == cell.printed
            # Jupyter breaks what is long into lines.
            assert ("" if value is None else repr(value)).split() == cell.value.split()
            compared += bool(printed or value is not None)
    assert compared >= 2


def test_there_are_three_and_they_are_small() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["edit_a_model", "small_sweep", "your_own_editor"]
    listed = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert path.stat().st_size < LARGEST
        assert f"({path.name})" in listed


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_of_the_format(notebook: Path) -> None:
    """What Jupyter refuses a file without, and nothing of the machine it was saved on."""
    text = notebook.read_text(encoding="utf-8")
    tree = json.loads(text)
    assert (tree["nbformat"], tree["nbformat_minor"]) == (4, 5)
    assert tree["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in tree["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in tree["cells"]:
        assert cell["cell_type"] == "markdown" or {"outputs", "execution_count"} <= set(cell)
    assert "/work/" not in text
    assert "/home/" not in text


def test_every_block_prints_what_the_page_says(here: None) -> None:
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
