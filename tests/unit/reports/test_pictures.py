"""Pictures: each kind is drawn, the same each time, and says what it shows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from raysweep.errors import SpecError
from raysweep.reports import plot_style
from raysweep.reports.measured import trial_views
from raysweep.reports.pictures import KINDS, Picture, _moved
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.rows import StatRow
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


def test_the_drift_of_weights_is_that_of_all_of_them(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "toy")
    write(store, "rome", 0, 15)
    (key,) = store.keys()
    sweep = Sweep(store)
    (trial,) = trial_views(sweep)
    assert _moved(sweep, trial) == {}
    stats = [StatRow(trial_key=key, step=40, name=f"drift/{w}", value=v) for w, v in (("a", 3.0), ("b", 4.0))]
    stats += [StatRow(trial_key=key, step=39, name="drift/a", value=1.0)]
    stats += [
        StatRow(trial_key=key, step=s, name=n, value=v)
        for s in (20, 40)
        for n, v in (("text_ppl", 7.0), ("text_kl", s - 20.0))
    ]
    store = ResultStore(tmp_path / "other")
    write(store, "rome", 0, 15, stats=stats)
    sweep = Sweep(store)
    (trial,) = trial_views(sweep)
    found = _moved(sweep, trial)
    assert found == {"drift/": {40: 5.0}, "text_ppl": {20: 7.0, 40: 7.0}, "text_kl": {40: 20.0}}, (
        "at rounds alone, and no 0"
    )
    text = plot_style.drawn(KINDS["drift"](Picture(sweep, [trial])), "svg").decode()
    for what in ("Frobenius norm", "perplexity of a fixed text", "nats"):
        assert what in text


@pytest.mark.parametrize("kind", ["pareto", "cost", "over", "drift"])
def test_what_cannot_be_drawn_is_said(picture: Picture, kind: str) -> None:
    """Only exact and token match of the edit were measured, and nothing is swept."""
    with pytest.raises(SpecError):
        KINDS[kind](picture)
