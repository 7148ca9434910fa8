"""What the site is made of is there; mkdocs itself, which is not installed for the tests, is run by ``make docs``."""

from __future__ import annotations

import pkgutil
import re
import runpy
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import raysweep
from tests.docs.pages import PAGES, ROOT

CONTENTS = runpy.run_path(str(ROOT / "docs/mkdocs/contents.py"))


def test_what_the_reference_documents_is_there() -> None:
    names = [name for listed in CONTENTS["REFERENCE"].values() for name in listed]
    assert len(names) > 30
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


def test_every_public_function_is_in_the_reference() -> None:
    names = {name for listed in CONTENTS["REFERENCE"].values() for name in listed}
    elsewhere = {"Editor", "TrialSpec", "__version__"}  # under the names that they have in their modules
    assert {f"raysweep.{name}" for name in set(raysweep.__all__) - elsewhere} <= names


def test_the_pages_of_the_tests_are_those_of_the_site() -> None:
    found = {path for pattern in CONTENTS["PATTERNS"] for path in ROOT.glob(pattern)}
    assert set(PAGES) == {path for path in found if path.suffix == ".md"}


def test_what_the_navigation_names_is_there() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    assert len(listed) > 30
    assert len(set(listed)) == len(listed)
    assert not [page for page in listed if not (ROOT / page).is_file()]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function that rewrites docstrings, without the package that reads them."""
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))  # type: ignore[arg-type]
    return runpy.run_path(str(ROOT / "docs/mkdocs/docstrings.py"))["plain"]


def test_docstrings_become_what_the_reference_shows(plain: Any) -> None:
    assert plain("See :meth:`edit` and :class:`~raysweep.rows.EvalRound`.") == "See `edit` and `EvalRound`."
    assert plain("Promises\n    1. All.") == "Promises:\n    1. All."
    assert plain("Text.\n\n>>> 1 + 1\n2") == "Text.\n\nExamples:\n    >>> 1 + 1\n    2"
