"""Pictures: each kind is drawn, the same each time, and says what it shows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from raysweep.errors import SpecError
from raysweep.reports import plot_style
from raysweep.reports.measured import trial_views
from raysweep.reports.pictures import KINDS, Picture
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from tests.unit.reports.test_retention_table import write


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    store = ResultStore(tmp_path_factory.mktemp("results") / "toy_$x$")
    write(store, "rome", 0, 15)
    write(store, "memit", 0, 100)
    sweep = Sweep(store)
    return Picture(sweep, trial_views(sweep))


@pytest.mark.parametrize("kind", ["edits", "retention", "survival"])
def test_a_picture_is_the_same_each_time_and_has_its_text(picture: Picture, kind: str) -> None:
    first, second = (plot_style.drawn(KINDS[kind](picture), "svg") for _ in range(2))
    assert first == second
    text = " ".join(ElementTree.fromstring(first).itertext())
    assert "toy_$x$" in text, "a name is not mathematics"
    assert "rome" in text
    assert "memit" in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_every_format_is_written_without_date_or_version(picture: Picture, tmp_path: Path, suffix: str) -> None:
    plot_style.save(KINDS["survival"](picture), tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data == plot_style.drawn(KINDS["survival"](picture), suffix)
    for word in (b"Matplotlib v", b"Software", b"CreationDate", b"<dc:date>"):
        assert word not in data


@pytest.mark.parametrize("kind", ["pareto", "cost", "over"])
def test_what_cannot_be_drawn_is_said(picture: Picture, kind: str) -> None:
    """Only exact and token match of the edit were measured, and nothing is swept."""
    with pytest.raises(SpecError):
        KINDS[kind](picture)
