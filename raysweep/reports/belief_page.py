"""The tables and figures of a belief sweep, by name: for files, and for the pages that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.belief.report import tables as belief
from raysweep.belief.report.tables import Row
from raysweep.errors import StoreError
from raysweep.reports import belief_plots as plots
from raysweep.reports import belief_rows
from raysweep.results.tables import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tables_of(sweep: Sweep) -> dict[str, Sequence[Row]]:
    """Return the tables that have rows.

    Raises:
        StoreError: nobody has asked a point yet.
    """
    arms, stages = belief_rows.read_arms(sweep), belief_rows.read_stages(sweep)
    if not arms and not stages:
        raise StoreError(
            f"'{sweep.name}' has no answers about evaluation points yet", hint="run a sweep with study: belief first"
        )
    tables: dict[str, Sequence[Row]] = dict(belief.belief_tables(arms)) if arms else {}
    if arms:
        tables["prob_delta"] = belief.histogram(belief.probability_deltas(arms[0].points))
    if stages:
        tables["lifelong"] = belief.lifelong_rows(stages)
    tables["points"] = belief_rows.read_point_choice(sweep)
    for number, log in enumerate(belief_rows.read_training(sweep).values()):
        # Evaluations are logged now and then, so rows differ in their keys; all get all columns, in order of first sight.
        names = list(dict.fromkeys(name for row in log for name in row))
        tables[f"training{number or ''}"] = [{name: row.get(name) for name in names} for row in log]
    return {name: rows for name, rows in tables.items() if rows}


def figures_of(sweep: Sweep, tables: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, Figure]]:
    """Yield each figure of *sweep* with its name; *tables* are its own (:func:`tables_of`)."""
    for number, log in enumerate(belief_rows.read_training(sweep).values()):
        yield f"LM_pretraining_loss{number or ''}", plots.training_figure(log, plots.LOSSES, "loss per token, nats")
        yield f"LM_pretraining_acc{number or ''}", plots.training_figure(log, plots.ACCURACIES, "accuracy")
    arms = belief_rows.read_arms(sweep)
    if arms:
        yield "prob_delta", plots.delta_figure(belief.probability_deltas(arms[0].points))
    for arm in arms:
        chosen = belief.figure_points(arm.points)
        for i, replies in zip(chosen, belief_rows.read_panels(sweep, arm, chosen), strict=True):
            if len(replies) > 2:  # an edit that was asked along the way
                yield f"{arm.points[i].id}_all_plots_{arm.name}", plots.panel_figure(arm.points[i], replies)
    if "lifelong" in tables:
        yield "lifelong", plots.lifelong_figure(tables["lifelong"])
