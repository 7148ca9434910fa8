"""What other packages add to a table: found by name, told apart, and in nobody's way when they are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raysweep.errors import NameUnknownError, PluginError
from raysweep.registry import Registry


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    """A table with two shipped entries, and four of a package that is installed in a folder of its own."""
    (tmp_path / "plug.py").write_text("THING = 'a thing'\n")
    (tmp_path / "plug_broken.py").write_text("import no_such_package\n")
    info = tmp_path / "plug-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 2.0\n")
    entries = "mine = plug:THING\nbroken = plug_broken:THING\nlost = plug:NO_SUCH\nshipped = plug:THING\n"
    (info / "entry_points.txt").write_text(f"[raysweep.gadgets]\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return Registry("gadget", {"shipped": "raysweep.seeds:derive", "other": "raysweep.seeds:derive"})


def test_a_packages_entry_is_found(table: Registry[object]) -> None:
    assert table.names() == ("broken", "lost", "mine", "other", "shipped")
    assert table.get("mine") == "a thing"
    assert table.packages() == {"broken": "plug 2.0", "lost": "plug 2.0", "mine": "plug 2.0"}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("broken", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("lost", "AttributeError: module 'plug' has no attribute 'NO_SUCH'"),
    ],
)
def test_what_cannot_be_loaded_names_its_package(table: Registry[object], name: str, what: str) -> None:
    with pytest.raises(PluginError, match=what) as caught:
        table.get(name)
    assert "of the package plug 2.0" in caught.value.message
    assert "pip uninstall plug" in caught.value.hint


def test_a_collision_is_an_error_for_that_name_alone(table: Registry[object]) -> None:
    with pytest.raises(PluginError, match=r"defined twice: raysweep\.seeds:derive and plug:THING \(plug 2\.0\)"):
        table.get("shipped")
    assert callable(table.get("other"))


def test_broken_entries_stand_in_nobodys_way(table: Registry[object]) -> None:
    assert sorted(table.loadable()) == ["mine", "other"]
    assert sorted(table.faults()) == ["broken", "lost", "shipped"]


def test_an_error_of_our_own_module_is_not_blamed_on_a_package() -> None:
    ours: Registry[object] = Registry("gadget", {"gone": "raysweep.seeds:no_such"})
    with pytest.raises(AttributeError):
        ours.get("gone")


def test_an_unknown_name_has_a_hint(table: Registry[object]) -> None:
    with pytest.raises(NameUnknownError, match="unknown gadget 'mime'") as caught:
        table.get("mime")
    assert "did you mean: mine" in caught.value.hint
