"""What show, compare, the plot and the files print of an interval is what :mod:`raysweep.intervals` makes of the rows."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from raysweep import intervals, summarize
from raysweep.belief.report.edit_scores import mean_estimates
from raysweep.metrics import METRICS
from raysweep.reports import notes
from raysweep.reports.compare import compared_rows
from raysweep.reports.compare import rows as compare_rows
from raysweep.reports.render import Format, cell_text, render, with_interval
from raysweep.reports.sweep_table import text
from raysweep.reports.views import paired, summary_rows, trial_views
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, open_results
from raysweep.rows import EvalRound, ProbeRow
from raysweep.summarize import VIEWS, Estimate, pooled, pooled_expmean, pooled_geo, pooled_median
from raysweep.workspace import Workspace
from tests.unit.results.results_helpers import begin, make_trial

KINDS = [(kind, metric) for kind, metric in VIEWS.values() if metric != "exact_match"]


def store_sweep(folder: Path, values: dict[float | None, np.ndarray], *, logs: bool = True) -> Sweep:
    """Write trials with *values* (records × seeds) by λ (None = no wrapper), one round, every view."""
    store = ResultStore(folder)
    for lam, table in values.items():
        for seed in range(table.shape[1]):
            trial = make_trial(seed, lam=lam)
            begin(store, trial)
            last = trial.protocol.rounds[-1]
            rows = [
                ProbeRow(
                    trial_key=trial.key, step=last, record_id=f"r{i}", edit_step=1, superseded_step=None, probe_kind=kind,
                    probe_name="", probe_index=j, metric=metric, n_tokens=1, prompt_digest="", answer="",
                    value=float({"ppl": math.exp(v), "target_logprob": -v}.get(metric, v)),
                )
                for i, v in enumerate(table[:, seed])
                for j, (kind, metric) in enumerate(KINDS)
                if logs or metric not in ("ppl", "target_logprob")
            ]  # fmt: skip
            for step in trial.protocol.rounds:  # all of them, or the trial is not done; only the last one has rows
                store.write_round(trial.key, EvalRound(step=step, rows=rows if step == last else ()))
            store.finish(trial.key, step=last)
    return Sweep(store)


@pytest.fixture
def values() -> dict[float | None, np.ndarray]:
    rng = np.random.default_rng(0)
    return {None: rng.integers(0, 3, (12, 3)) / 2, 1.0: rng.integers(0, 3, (12, 3)) / 2}


def test_cells_are_the_intervals_of_the_rows(tmp_path: Path, values: dict[float | None, np.ndarray]) -> None:
    plain, wrapped = summary_rows(trial_views(store_sweep(tmp_path, values)), at=-1)
    for view, found in (
        ("rel", intervals.share(values[None])),
        ("loc", intervals.share(values[None])),
        ("avg", intervals.share(values[None])),
        ("rel_logprob", intervals.unbounded(-values[None], upper=0.0)),
        ("ppl_expmean", intervals.log_mean(np.exp(values[None]))),
        ("ppl_median", intervals.median(np.exp(values[None]))),
        ("geo", intervals.of_shares(summarize.geo, [values[None]] * 3)),
    ):
        cell = plain.cells[view]
        assert [cell.mean, cell.low, cell.high] == pytest.approx([float(found[k]) for k in (0, 2, 3)]), view
        assert cell.n == 12
    assert not plain.cells["ppl"].has_interval
    difference = paired(plain, wrapped, "rel")
    found = intervals.difference(values[1.0] - values[None])
    assert difference is not None
    assert [difference.low, difference.high] == pytest.approx([float(found.low), float(found.high)])


def test_every_format_has_the_same_limits(tmp_path: Path, values: dict[float | None, np.ndarray]) -> None:
    sweep = store_sweep(tmp_path / "results" / "s", values)
    found = intervals.share(values[None])
    printed = f"{float(found.mean):.3f} [{float(found.low):.2f}, {float(found.high):.2f}]".replace("0.", ".")
    for how in (Format.TABLE, Format.MARKDOWN, Format.LATEX):
        shown_text = text(sweep, how=how, at=-1)
        assert printed in shown_text
        assert "±" not in shown_text
    row = json.loads(text(sweep, how=Format.JSON, at=-1))[0]
    assert [row["rel_low"], row["rel_high"]] == pytest.approx([float(found.low), float(found.high)])
    (first, second) = csv.DictReader(io.StringIO(render(compare_rows(lines_of(tmp_path), plain=True), Format.CSV)))
    change = intervals.difference(values[1.0] - values[None])
    assert (first["delta_rel"], first["rel_low"]) == ("", str(float(found.low)))
    assert [float(second[k]) for k in ("delta_rel_low", "delta_rel_high")] == pytest.approx(
        [float(change.low), float(change.high)]
    )
    table = render(compare_rows(lines_of(tmp_path)), Format.MARKDOWN)
    assert re.search(r"\| [+-]\.\d{3} \[[+-]\.\d\d, [+-]\.\d\d\] \|", table)


def lines_of(root: Path) -> list[object]:
    return compared_rows(["s"], Workspace(root=root), by="arm", phase="retained", at=-1)  # type: ignore[return-value]


def test_all_right_is_not_certainly_right(tmp_path: Path) -> None:
    """At five records ±1.96 se was 0 in 40 % of runs: an editor without a fault seemed known to have none."""
    sweep = store_sweep(tmp_path / "results" / "s", {None: np.ones((5, 1)), 1.0: np.ones((5, 1))})
    plain, wrapped = summary_rows(trial_views(sweep), at=-1)
    assert (plain.cells["rel"].low, plain.cells["rel"].high) == (pytest.approx(0.5655, abs=1e-4), 1.0)
    difference = paired(plain, wrapped, "rel")
    assert difference is not None
    assert difference.low < -0.1 < 0.1 < difference.high
    assert "1.000 [.57, 1]" in text(sweep, how=Format.TABLE, at=-1)


def test_where_there_is_no_interval_it_says_so(tmp_path: Path) -> None:
    one = store_sweep(tmp_path / "results" / "one", {None: np.array([[0.5, 1.0]])})
    (line,) = summary_rows(trial_views(one), at=-1)
    assert cell_text(line.cells["rel"]) == ".750 [–]"
    assert notes.about_intervals([line]) == ["[–]: one record says nothing of others (memit)"]
    seed = store_sweep(tmp_path / "results" / "seed", {None: np.array([[0.5], [1.0], [0.0]])})
    told = notes.about_intervals(summary_rows(trial_views(seed), at=-1), ppl=True)
    assert told[0] == "one seed: intervals say what other records would give, not other seeds"
    assert told[1].startswith("PPL [–]: a few records")
    assert told[2].startswith("PPL median [–]")


def test_the_plot_s_bands_are_the_intervals(
    tmp_path: Path, values: dict[float | None, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    from raysweep.reports.plot import draw

    bands: list[tuple[float, float]] = []
    monkeypatch.setattr(Axes, "fill_between", lambda self, x, low, high, **_: bands.append((low[0], high[0])))
    store_sweep(tmp_path / "results" / "s", values)
    draw(open_results("s", Workspace(root=tmp_path)), tmp_path / "p.png")
    found = intervals.share(values[None])
    assert bands[0] == (pytest.approx(float(found.low)), pytest.approx(float(found.high)))


def test_every_view_s_interval_fits_its_metric_s_range() -> None:
    for view, (_, name) in VIEWS.items():
        low, high = METRICS[name].range
        bounds = [math.inf, -math.inf]
        if view != "ppl":
            found = pooled([{"a": low if math.isfinite(low) else high - 50, "b": high, "c": high}], view)
            bounds = [found.low, found.high]
            assert low <= bounds[0] < bounds[1] <= high
            assert pooled([{"a": 0.5 * (max(low, -1) + high), "b": high}], view).has_interval


def test_beliefs_count_a_point_of_several_trials_once() -> None:
    rows = [{"acc": float(i % 2)} for i in range(10)] * 3
    places = [(str(i), trial) for trial in range(3) for i in range(10)]
    found = mean_estimates(rows, places)["acc"]
    alone = mean_estimates(rows[:10], places[:10])["acc"]
    assert (found.mean, found.n) == (0.5, 30)
    assert (found.low, found.high) == (pytest.approx(alone.low, abs=0.01), pytest.approx(alone.high, abs=0.01))
    assert mean_estimates([{"d": -1.0}, {"d": 0.5}], places[:2], difference=True)["d"].low == -1.0


def test_undefined_values_have_no_interval() -> None:
    found = pooled([{"a": math.nan, "b": 1.0}])
    assert math.isnan(found.mean)
    assert not found.has_interval


def test_pooling_holds_what_it_promises() -> None:
    """95 % of the intervals of ``pooled`` hold the truth, through dictionaries, gaps and all; ±1.96 se held 80 %."""
    rng = np.random.default_rng(1)
    held, before = 0, 0
    runs = 400
    for _ in range(runs):
        p = rng.uniform(0.2, 0.8)
        of_seed = rng.beta(40 * p, 40 * (1 - p), 3)
        uniform = rng.random((200, 1)) * 0.5 + rng.random((200, 3)) * 0.5  # alike within a record
        rank = uniform.ravel().argsort().argsort().reshape(uniform.shape) / uniform.size
        right = (rank < of_seed).astype(float)
        by_seed = [{f"r{i}": right[i, s] for i in range(200) if (i + s) % 17} for s in range(3)]
        found = pooled(by_seed)
        held += found.low <= p <= found.high
        before += abs(found.mean - p) <= 1.96 * found.se
    assert 0.92 <= held / runs <= 0.98
    assert before / runs < 0.9


@pytest.mark.parametrize(
    ("estimate", "wanted"),
    [
        (Estimate(0.7961, 0.02, 20, 0.741, 0.8402), ".796 [.74, .84]"),
        (Estimate(0.7961, 0.02, 2000, 0.7911, 0.8011), ".796 [.791, .801]"),
        (Estimate(1.0, 0.0, 20, 0.839, 1.0), "1.000 [.84, 1]"),
        (Estimate(0.0, 0.0, 5, 0.0, 0.434), ".000 [0, .43]"),
        (Estimate(20.237, 5.6, 10, 12.34, 33.2), "20.237 [12.3, 33.2]"),
        (Estimate(1234.5, 5.6, 10, 900.4, 1700.0), "1234 [900.4, 1700]"),
        (Estimate(-3.2, 0.5, 10, -4.3, -2.1), "-3.200 [-4.3, -2.1]"),
        (Estimate(0.5, math.nan, 1), ".500 [–]"),
    ],
)
def test_an_interval_fits_a_narrow_terminal(estimate: Estimate, wanted: str) -> None:
    assert with_interval(estimate) == wanted


def test_functions_of_dictionaries() -> None:
    by_seed = [{"a": 2.0, "b": 8.0, "c": 4.0}, {"a": 4.0, "b": 16.0}]
    assert pooled_expmean(by_seed).mean == pytest.approx(math.sqrt(4.0 * 8.0))
    assert pooled_median(by_seed).mean == (4.0 + 10.0) / 2
    assert pooled_geo([summarize.matrix([{"a": 0.5, "b": 1.0}])] * 3).mean == pytest.approx(
        summarize.geo(0.75, 0.75, 0.75)
    )
