"""The published numbers agree with one another as far as the papers repeat themselves; bad files and names are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep.data import DATASETS
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from raysweep.errors import DataError, NameUnknownError
from raysweep.models.sources.catalogue import CATALOGUE
from raysweep.reports.published_numbers import Number, names, open_published, read, sweeps_lambda
from raysweep.summarize import VIEWS, geo
from raysweep.workspace import Workspace, package_share

WORKSPACE = Workspace(package_share())
SIMIE = {  # arms × models × datasets × metrics × T or λ, as printed
    "simie-table1": 13 * 2 * 2 * 4,
    "simie-table2": 7 * 2 * 1 * 4,
    "simie-table4": 13 * 1 * 2 * 4,
    "simie-table5": 13 * 3 * 2,
    "simie-table7": 7 * 7 * 2,
    "simie-figs7to10": 4 * 3 * 2 * 7,
    "simie-fig2": 8 * 7,
}


def numbers(*files: str) -> Iterator[Number]:
    for name in files:
        yield from open_published(name, WORKSPACE)


def by_metric(*files: str) -> dict[tuple[str, str, str, int], dict[str, float]]:
    found: dict[tuple[str, str, str, int], dict[str, float]] = {}
    for n in numbers(*files):
        found.setdefault((n.arm, n.model, n.dataset, n.edits), {})[n.metric] = n.value
    return found


@pytest.mark.parametrize("name", names(WORKSPACE))
def test_every_number_names_what_there_is(name: str) -> None:
    views = {*VIEWS, "avg", "geo", ""}
    for n in numbers(name):
        assert not n.editor or n.editor in EDITORS
        assert all(w in WRAPPERS for w in n.wrap)
        assert n.dataset in DATASETS
        assert n.model in {*CATALOGUE, "gpt-j-6b"}
        assert n.view in views
        assert n.sign in ("", "≈", ">")
        assert (n.uncertainty == 0) == (n.sign == ">")
        assert n.source
        assert n.measured
        assert n.metric in ("PPL", "Flu") or 0 <= n.value <= 1
        if n.editor:
            assert set(n.config) <= set(EDITORS.get(n.editor).config_type.model_fields)


def test_no_number_is_given_twice_and_none_is_missing() -> None:
    for name in names(WORKSPACE):
        found = list(numbers(name))
        assert len({(n.where, n.lam, n.batch) for n in found}) == len(found)
        assert len(found) == SIMIE.get(name, len(found))
    assert set(SIMIE) <= set(names(WORKSPACE))
    assert [name for name in SIMIE if sweeps_lambda(list(numbers(name)))] == ["simie-figs7to10"]


def test_avg_is_the_mean_of_rel_gen_and_loc() -> None:
    cells = by_metric("simie-table1", "simie-table2", "simie-table4").values()
    cells = [*cells, *(c for c in by_metric("wise-table2").values() if "Avg" in c)]
    assert len(cells) > 90
    for c in cells:
        assert c["Avg"] == pytest.approx((c["Rel"] + c["Gen"] + c["Loc"]) / 3, abs=0.0101)


def test_table_5_is_geo_of_tables_1_and_4() -> None:
    cells = by_metric("simie-table1", "simie-table4")
    for n in numbers("simie-table5"):
        c = cells[n.arm, n.model, n.dataset, n.edits]
        assert n.value == pytest.approx(geo(c["Rel"], c["Gen"], c["Loc"]), abs=0.015), n.where


def test_figure_2_ends_where_table_1_stands() -> None:
    cells = by_metric("simie-table1")
    ends = [n for n in numbers("simie-fig2") if n.edits == 1000]
    assert len(ends) == 8
    for n in ends:
        assert n.value == pytest.approx(cells[n.arm, n.model, n.dataset, 1000]["Rel"], abs=n.uncertainty + 1e-9)


def test_the_lambda_figures_pass_through_the_tables_and_the_published_lambda_is_the_best() -> None:
    curves = {(n.arm, n.model, n.dataset, n.lam): n.value for n in numbers("simie-figs7to10")}
    averages = [n for n in numbers("simie-table1", "simie-table4") if n.metric == "Avg" and n.wrap == ("simie",)]
    assert len(averages) == 4 * 3 * 2
    for n in averages:
        at = curves[n.arm, n.model, n.dataset, n.lam]
        assert at == pytest.approx(n.value, abs=0.0201), n.where
        assert at >= max(v for k, v in curves.items() if k[:3] == (n.arm, n.model, n.dataset)) - 0.0201


def test_an_unknown_name_and_a_wrong_file(tmp_path: Path) -> None:
    with pytest.raises(NameUnknownError, match="no published numbers called 'simie-tabel1'") as caught:
        open_published("simie-tabel1", WORKSPACE)
    assert "did you mean: simie-table1" in caught.value.hint
    lines = names(WORKSPACE)["simie-fig2"].read_text(encoding="utf-8").splitlines()
    file = tmp_path / "x.csv"
    file.write_text("\n".join(["model,value", *lines[1:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.csv:1: the columns must be paper,table,model"):
        read(file)
    for wrong, line in ((",0.87,", 2), (",1,ROME,", 2)):
        assert wrong in lines[1]
        file.write_text("\n".join([lines[0], lines[1].replace(wrong, ",many,", 1)]), encoding="utf-8")
        with pytest.raises(DataError, match=rf"x\.csv:{line}: not a row of published numbers"):
            read(file)
    file.write_text("\n".join([lines[0], lines[1].replace(",rome,,", ",rome,adjust,", 1)]), encoding="utf-8")
    with pytest.raises(DataError, match="'adjust' is not key=value"):
        read(file)
    file.write_text("\n".join([lines[0], lines[1].rpartition(',"')[0]]), encoding="utf-8")
    with pytest.raises(DataError, match="too few columns"):
        read(file)


def test_a_file_in_the_workspace_hides_the_shipped_one(tmp_path: Path) -> None:
    own = tmp_path / "data/published/simie-fig2.csv"
    own.parent.mkdir(parents=True)
    lines = names(WORKSPACE)["simie-fig2"].read_text(encoding="utf-8").splitlines()
    own.write_text("\n".join(lines[:2]), encoding="utf-8")
    (number,) = open_published("simie-fig2", Workspace(tmp_path))
    assert (number.arm, number.edits, number.sign) == ("ROME", 10, "≈")
    assert math.isclose(number.value, 0.87)
