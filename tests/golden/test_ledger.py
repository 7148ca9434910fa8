"""No component's numbers move under the same version; a new component has an entry; an entry is never replaced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.golden import ledger, sketches

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
VERSIONS = ledger.versions()


def test_every_component_is_looked_at_and_nothing_else_is_recorded() -> None:
    assert set(sketches.table()) == set(VERSIONS)
    assert set(ledger.read()) == set(VERSIONS)


@pytest.mark.parametrize("component", sorted(VERSIONS))
def test_nothing_has_moved_under_its_version(component: str) -> None:
    wrong = ledger.complaint(component, VERSIONS[component], ledger.read(), ledger.figures(component))
    assert not wrong, wrong


@pytest.mark.parametrize("component", sorted(c for c, v in VERSIONS.items() if v > 1))
def test_a_raised_version_is_in_the_changelog(component: str) -> None:
    name = component.rpartition("/")[2]
    assert re.search(rf"`{name}` version {VERSIONS[component]}\b", CHANGELOG), "add a line under 'Numbers changed'"


def test_a_moved_number_says_what_to_do() -> None:
    entries = {"editor/wise": {"2": {"a": [1.0, 100.0], "b": "text"}}}
    assert not ledger.complaint("editor/wise", 2, entries, {"a": [1.0, 100.0], "b": "text"})
    assert not ledger.complaint("editor/wise", 2, entries, {"a": [1.0, 100.04], "b": "text"}), "another processor"
    for now in ({"a": [1.0, 100.06], "b": "text"}, {"a": [1.0], "b": "text"}, {"a": [1.0, 100.0], "b": "other"}):
        said = ledger.complaint("editor/wise", 2, entries, now)
        assert "raise raysweep.editors.wise.editor.Wise.version" in said
        assert "'Numbers changed' in CHANGELOG.md" in said
        assert ledger.RECORD in said
    assert "no longer made" in ledger.complaint("editor/wise", 2, entries, {"a": [1.0, 100.0]})
    assert ledger.RECORD in ledger.complaint("editor/wise", 2, entries, {**entries["editor/wise"]["2"], "c": [1.0]})
    assert "version 3 has no entry" in ledger.complaint("editor/wise", 3, entries, {"a": [1.0]})


def test_an_entry_is_never_replaced(tmp_path: Path) -> None:
    entries: ledger.Entries = {}
    assert ledger.record(entries, "editor/ft", 1, {"a": [1.0]})
    assert not ledger.record(entries, "editor/ft", 1, {"a": [1.0]})
    with pytest.raises(ValueError, match="has moved under version 1"):
        ledger.record(entries, "editor/ft", 1, {"a": [2.0], "b": [1.0]})
    assert ledger.record(entries, "editor/ft", 1, {"a": [1.0], "b": [3.0]}), "a further figure"
    assert ledger.record(entries, "editor/ft", 2, {"a": [2.0]})
    ledger.write(entries, tmp_path / "ledger.json")
    assert ledger.read(tmp_path / "ledger.json") == {"editor/ft": {"1": {"a": [1.0], "b": [3.0]}, "2": {"a": [2.0]}}}


@pytest.mark.parametrize("component", sorted(VERSIONS))
def test_where_a_version_is_written_is_known(component: str) -> None:
    assert ledger.where(component).startswith(("raysweep.", "the version of raysweep."))
