"""``raysweep analyze``: the sweep through Ray Tune's own analysis, checked against our tables."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.errors import TRIALS_FAILED
from raysweep.cli.options import workspace_of
from raysweep.cli.say import say, tell
from raysweep.cli.show import FormatOption, SweepArgument, WideOption, report_left_out
from raysweep.errors import SpecError, nearest
from raysweep.lazy import lazy
from raysweep.reports import notes
from raysweep.reports.fit import terminal_width
from raysweep.reports.prose import counted
from raysweep.reports.render import UNDEFINED, Cell, Format, render
from raysweep.reports.rounds import Labelled, chosen_round, state
from raysweep.reports.views import TrialView, groups, trial_views
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep, open_results, trial_columns
from raysweep.studies import default_metric, phases
from raysweep.summarize import summary

if TYPE_CHECKING:
    from raysweep.tune.analysis import Analysis

Logged = Mapping[str, Mapping[int, Mapping[str, object]]]  # what Ray logged: key → step → values


def command(
    ctx: typer.Context,
    sweep: SweepArgument,
    metric: Annotated[str, typer.Option("--metric", help="Default: the search space's own.")] = "",
    mode: Annotated[str, typer.Option("--mode", help="max or min; default: the search space's own.")] = "",
    at: Annotated[int | None, typer.Option("--at", help="The round; -1 or none = the last one in common.")] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Let Ray's own analysis choose the best; it opens pickles, which can run code."),
    ] = False,
    format_: FormatOption = Format.TABLE,
    wide: WideOption = False,
) -> None:
    """Rank all trials by a metric, as Ray logged them over every session, and name the best one.

    Each value Ray logged is compared with what our own tables give; a disagreement is an error (exit code 3). Only JSON is
    read, so nothing in the results of a stranger is executed. With `--trust`, ray.tune.ExperimentAnalysis chooses the best.

    Example:

        raysweep analyze demo --metric retained/avg --mode max
    """
    # Before Ray is imported, so that nothing is ever sent.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    analyse = lazy("raysweep.tune.analysis").analyse

    workspace = workspace_of(ctx)
    results = open_results(sweep, workspace)
    trials = trial_views(results)
    metric = metric or _metric(results, trials)
    mode = mode or str(results.search.get("mode", "max"))
    if mode not in ("max", "min"):
        raise SpecError(f"--mode is max or min, got {mode!r}")
    analysis = analyse(results.store, results.keys, metric=metric, mode=mode, trust=trust)
    # One group per trial and name: the ranking has no use for pooled seeds.
    named = groups(trials, by="trial")
    step = chosen_round(named, -1 if at is None else at)
    by_tables = unlogged(results.store, named, analysis.rounds, metric=metric, step=step)
    # What Ray logged stays; our own values fill in the one round that is ranked.
    rounds = {
        **analysis.rounds,
        **{key: {**analysis.rounds.get(key, {}), step: values} for key, values in by_tables.items()},
    }
    rows, left = ranked(named, rounds, metric=metric, mode=mode, step=step)
    title = f"{results.name} at {step} edits by {metric} ({mode}), {len(analysis.sessions)} Ray sessions"
    # A program gets null for what is undefined, a reader the word.
    plain, width = format_ in (Format.CSV, Format.JSON), terminal_width(wide=wide)
    listed = [for_program(row, trials) if plain else row for row in (*rows, *left)]
    print(render(listed, format_, title=title, width=width))
    if format_ is Format.TABLE:
        _conclude(rows, analysis.best if trust else None, metric)
        if not analysis.disagreements:
            say(f"Ray's log and our tables agree ({analysis.compared} values compared)")
    tell(
        [*taken(by_tables, step), *unranked(left, metric, step), *notes.non_finite(trials), *notes.outdated(results)],
        format_,
    )
    _check_agreement(results, analysis)
    report_left_out(results)


def _check_agreement(results: Sweep, analysis: Analysis) -> None:
    """Say on standard error where Ray's logs have gaps or differ from our tables; leave with exit code 3 if they differ."""
    missing = [k for k in results.keys if k not in analysis.rounds]
    if missing:
        say(f"not in Ray's logs: {len(missing)} trials ({', '.join(missing[:3])} …)", err=True)
    # One cause makes many; twenty lines show it, and the count below is of all.
    for line in analysis.disagreements[:20]:
        say(line, err=True)
    if analysis.disagreements:
        say(f"Ray and our tables disagree in {len(analysis.disagreements)} values", err=True)
        raise typer.Exit(TRIALS_FAILED)


def _metric(sweep: Sweep, trials: Sequence[TrialView]) -> str:
    """Return what the plan ranks by, if the trials' study has it, else what the study does."""
    # The plan may be newer than the trials, and of another study, which has other metrics.
    planned, study = str(sweep.search.get("metric", "")), next((str(t.row["study"]) for t in trials), "")
    return planned if planned.partition("/")[0] in phases(study) else default_metric(study)


def _conclude(rows: list[dict[str, Cell]], best: tuple[str, float] | None, metric: str) -> None:
    if not rows:
        say(f"best trial: none; {metric} is undefined everywhere")
        return
    agreed = best is not None and best[1] == rows[0][metric]  # a killed driver's state may lag behind its logs
    key = best[0] if best is not None and agreed else rows[0]["trial"]
    names = " = ".join(str(row["arm"]) for row in rows if row["trial"] == key)  # it may stand at several
    say(f"best trial{' by ExperimentAnalysis' if agreed else ''}: {key} ({names})  {metric} = {rows[0][metric]:.4f}")


def unlogged(
    store: ResultStore, named: Labelled, rounds: Logged, *, metric: str, step: int
) -> dict[str, Mapping[str, object]]:
    """Return our own values of the round at *step*, by key, of the trials that were measured there without Ray's log knowing.

    So it is after a driver was killed, and of a trial that failed later (its failure is logged over its last round). Left out of
    the ranking, the best trial would not be named.
    """
    summaries: dict[str, Mapping[str, object]] = {}
    for _, (trial,) in named:
        key, logged = str(trial.row["trial_key"]), rounds.get(str(trial.row["trial_key"]), {}).get(step, {})
        # Not measured, or nothing to add: Ray knows the value.
        if step not in trial.rounds or metric in logged:
            continue
        values = summary(
            trial_columns(store, key), step, int(trial.row["batch_size"]), phases=phases(str(trial.row["study"]))
        )
        if metric in values:
            summaries[key] = {**logged, **values}
    return summaries


def taken(keys: Collection[str], step: int) -> list[str]:
    """Return a note on the trials whose values are our tables' because Ray's log has none."""
    which = f"{counted(len(keys), 'trial', 'trials')} whose values at round {step} are not in Ray's log"
    return [f"ranked by our tables: {which}"] if keys else []


def for_program(row: Mapping[str, Cell], trials: Sequence[TrialView]) -> dict[str, Cell]:
    """Return *row* with null for what is undefined, and the first step that is not finite, as ``show`` has it."""
    first = next((t.row["non_finite_step"] for t in trials if t.row["trial_key"] == row["trial"]), None)
    plain: dict[str, Cell] = {name: None if value == UNDEFINED else value for name, value in row.items()}
    # Columns keep the order that `show` has, for programs that read both.
    status = list(plain).index("status") + 1
    return dict([*list(plain.items())[:status], ("non_finite_step", first), *list(plain.items())[status:]])


def unranked(left: Sequence[Mapping[str, Cell]], metric: str, step: int) -> list[str]:
    """Return notes on why trials have no rank, besides those that are not finite."""
    without = {row["trial"] for row in left if row["edits"] is None}
    unlogged = {row["trial"] for row in left if row["edits"] is not None and row[metric] is None}
    reasons = {f"have no round {step}": without, f"have no {metric} in Ray's log at round {step}": unlogged}
    return [f"not ranked: {counted(len(keys), 'trial', 'trials')} that {why}" for why, keys in reasons.items() if keys]


def ranked(
    named: Labelled, rounds: Logged, *, metric: str, mode: str, step: int
) -> tuple[list[dict[str, Cell]], list[dict[str, Cell]]]:
    """Return one row per trial of the sweep's latest plan, best first, and apart from them those that have no rank.

    All values are of one round. Without a rank are trials that were not measured there, and those whose metric is undefined
    because their weights or logits are not finite.

    Args:
        named: each trial alone, with a label.
        rounds: what Ray logged, by key and step; with what :func:`unlogged` adds.
        metric: the value to rank by.
        mode: ``max`` or ``min``.
        step: the round.

    Raises:
        SpecError: no trial has the metric.
    """
    phase, _, view = metric.partition("/")
    out: list[dict[str, Cell]] = []
    left: list[dict[str, Cell]] = []
    names: set[str] = set()
    for _, (trial,) in named:
        key = str(trial.row["trial_key"])
        logged = rounds.get(key, {}).get(step, {})
        # For the hint of the error below: metrics, not the hyper-parameters that Ray logs beside them.
        names |= {n for n in logged if "/" in n and not n.startswith(("point/", "config/"))}
        known = step in trial.rounds
        undefined = view in trial.undefined.get((phase, step), ())
        value, seconds = logged.get(metric), logged.get("time_total_s")
        row: dict[str, Cell] = {
            "trial": key, "arm": trial.row["arm"], "point": " ".join(f"{k}={v}" for k, v in trial.point.items()),
            "seed": trial.seed, "edits": step if known else None, metric: UNDEFINED if undefined else None,
            "status": state(trial), "seconds": float(seconds) if isinstance(seconds, int | float) else math.nan,
        }  # fmt: skip
        # A row either has a rank or says why it has none; nothing is dropped.
        if known and not undefined and isinstance(value, float) and math.isfinite(value):
            out.append({**row, metric: value})
        else:
            left.append(row)
    # A typing mistake in --metric, unless the metric exists and is undefined everywhere.
    if not out and not any(row[metric] == UNDEFINED for row in left):
        raise SpecError(f"no trial has logged '{metric}' at {step}", hint=nearest(metric, names))
    return sorted(out, key=lambda r: -float(r[metric]) if mode == "max" else float(r[metric])), left  # type: ignore[arg-type]
