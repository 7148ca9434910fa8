"""``raysweep analyze``: the sweep through Ray Tune's own analysis, checked against our tables."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from raysweep.cli.options import Options
from raysweep.cli.render import Cell, Format, render
from raysweep.cli.show import FormatOption, SweepArgument, report_left_out
from raysweep.errors import SpecError, nearest
from raysweep.results.tables import Sweep, open_sweep
from raysweep.results.views import TrialView, trial_views


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    metric: Annotated[str, typer.Option("--metric", help="Default: the search space's own.")] = "",
    mode: Annotated[str, typer.Option("--mode", help="max or min; default: the search space's own.")] = "",
    at: Annotated[int | None, typer.Option("--at", help="Only this round; default: each trial's last.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Open every session with ray.tune.ExperimentAnalysis: all trials ranked by a metric, and the best one.

    Each value Ray logged is compared with what our own tables give; a disagreement is an error (exit code 3).

    Example:

        raysweep analyze demo --metric retained/avg --mode max
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from raysweep.tune.analysis import analyse

    workspace = ctx.find_object(Options).workspace  # type: ignore[union-attr]
    found = open_sweep(sweep, workspace)
    metric = metric or str(found.search.get("metric", "retained/avg"))
    mode = mode or str(found.search.get("mode", "max"))
    if mode not in ("max", "min"):
        raise SpecError(f"--mode is max or min, got {mode!r}")
    found.leave_out_altered()
    seen = analyse(found.store, found.keys, metric=metric, mode=mode)
    rows = ranked(found, seen.rounds, metric=metric, mode=mode, at=at)
    print(render(rows, format_, title=f"{found.name} by {metric} ({mode}), {len(seen.sessions)} Ray sessions"))
    if format_ is Format.TABLE:
        _conclude(rows, seen.best if at is None else None, metric, seen.compared)
    missing = [k for k in found.keys if k not in seen.rounds]
    if missing:
        typer.echo(f"not in Ray's logs: {len(missing)} trials ({', '.join(missing[:3])} …)", err=True)
    for line in seen.disagreements[:20]:
        typer.echo(line, err=True)
    if seen.disagreements:
        typer.echo(f"Ray and our tables disagree in {len(seen.disagreements)} values", err=True)
        raise typer.Exit(3)
    report_left_out(found)


def _conclude(rows: list[dict[str, Cell]], best: tuple[str, float] | None, metric: str, compared: int) -> None:
    if best is not None and best[1] == rows[0][metric]:  # a killed driver's state may lag behind its logs
        print(f"best trial by ExperimentAnalysis: {best[0]}  {metric} = {best[1]:.4f}")
    elif rows:
        print(f"best trial: {rows[0]['trial']}  {metric} = {rows[0][metric]:.4f}")
    print(f"Ray's log and our tables agree ({compared} values compared)")


def ranked(sweep: Sweep, rounds: object, *, metric: str, mode: str, at: int | None) -> list[dict[str, Cell]]:
    """Return one row per trial of the sweep's latest plan, best first.

    Raises:
        SpecError: no trial has the metric.
    """
    assert isinstance(rounds, dict)
    trials: dict[str, TrialView] = {t.row["trial_key"]: t for t in trial_views(sweep)}
    out: list[dict[str, Cell]] = []
    names: set[str] = set()
    for key, trial in trials.items():
        steps = rounds.get(key, {})
        step = at if at is not None else max(steps, default=None)
        row = steps.get(step, {})
        names |= {n for n in row if "/" in n and not n.startswith(("point/", "config/"))}
        if not isinstance(row.get(metric), float) or row[metric] != row[metric]:
            continue
        point = " ".join(f"{k}={v}" for k, v in trial.point.items())
        out.append({
            "trial": key, "arm": trial.row["arm"], "point": point, "seed": trial.seed, "edits": step,
            metric: row[metric],
            "status": str(trial.row["status"]).lower(), "seconds": float(row["time_total_s"]),
        })  # fmt: skip
    if not out:
        raise SpecError(f"no trial has logged '{metric}'" + (f" at {at}" if at is not None else ""),
                        hint=nearest(metric, names))  # fmt: skip
    return sorted(out, key=lambda r: -float(r[metric]) if mode == "max" else float(r[metric]))  # type: ignore[arg-type]
