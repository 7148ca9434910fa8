"""A sweep → its trials: pure, seeded, and the same whoever asks (``validate``, ``plan``, ``run``, a worker)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from raysweep.config import limits, paths
from raysweep.config.bind import Binder
from raysweep.config.components import Components
from raysweep.config.load import examine
from raysweep.config.lookups import Point
from raysweep.config.names import TrialName, unique
from raysweep.config.overrides import Override
from raysweep.config.plan_notes import file_notes, plan_notes
from raysweep.config.planned_trial import Plan, PlannedTrial, name_of, with_edit_group
from raysweep.config.points import count_points, points
from raysweep.config.schema import TrialSpec
from raysweep.config.space_checks import check_sweep, summary_values
from raysweep.config.sweep import examine_sweep, find_file
from raysweep.config.sweep_schema import SweepSpec
from raysweep.errors import Problem, ProblemsError
from raysweep.lazy import without_collection
from raysweep.workspace import Workspace


def open_plan(
    file: str, workspace: Workspace, overrides: Iterable[str | Override] = (), components: Components | None = None
) -> Plan:
    """Return every trial of the search space in *file*, a path or the name of one in ``search_spaces/``.

    Raises:
        NameUnknownError: there is no such file and no such name.
        YamlError: the file is not well-formed.
        ProblemsError: every other mistake, of form or of content, each with its place.
    """
    source, noted = examine(find_file(file, workspace))
    sweep, noted = examine_sweep(source, noted, overrides, workspace)
    if sweep is None:
        raise ProblemsError(noted)
    return plan(sweep, workspace, components, noted=noted)


# Thousands of values are made and kept; the collector would walk over all of them again and again.
@without_collection()
def plan(
    sweep: SweepSpec, workspace: Workspace, components: Components | None = None, *, noted: Iterable[Problem] = ()
) -> Plan:
    """Return every trial of *sweep*.

    Args:
        sweep: from :func:`raysweep.config.sweep.load_search_space`.
        workspace: where hyper-parameters, data and models are found.
        components: tables to resolve names with; None = what is installed.
        noted: mistakes of form, to be reported with those of content.

    Raises:
        ProblemsError: every mistake in the sweep, with its place.
    """
    components = components or Components.installed()
    binder = Binder(sweep, workspace, components)
    n_points = sum(count_points(sweep, arm, components) for arm in sweep.arms)
    # Kept and not raised: mistakes of form and of content are reported together.
    binder.problems.extend([*noted, *check_sweep(sweep, components, n_points)])
    trials: dict[str, PlannedTrial] = {}
    names: list[TrialName] = []
    notes = file_notes(sweep)
    for arm in sweep.arms:
        n_repeated = 0
        every_point = points(sweep, arm, components)
        # Of more points than a plan may have, one of each arm is enough to find what else is wrong.
        for point in every_point if n_points <= limits.POINTS else itertools.islice(every_point, 1):
            trial = binder.bind(arm, point)
            if trial is None:
                continue
            planned = PlannedTrial(arm.name, point, trial)
            names.append(name_of(planned))
            n_repeated += trial.key in trials
            if trial.key not in trials:
                trials[trial.key] = with_edit_group(planned, components, share=sweep.resources.share)
        if n_repeated:
            notes.append(f"arm '{arm.name}': {n_repeated} of its points are trials already in the plan; they run once")
    if binder.problems:
        binder.problems.extend(paths.missing_paths(sweep.source, workspace))
        # Many points meet one and the same mistake; it is said once.
        raise ProblemsError(dict.fromkeys(sorted(binder.problems, key=_reading_order)))
    notes += binder.notes
    notes += plan_notes(sweep, trials.values(), binder.left_out, workspace)
    # `plan.json` and schedulers need the metric by name, so an empty one becomes the study's own.
    search = sweep.search.model_copy(update={"metric": sweep.search.metric or summary_values(sweep, components)[0]})
    return Plan(sweep.model_copy(update={"search": search}), tuple(trials.values()), tuple(notes), unique(names))


def bind(
    sweep: SweepSpec, arm: str, point: Point, workspace: Workspace, components: Components | None = None
) -> TrialSpec:
    """Return the one trial of *point* in *arm*, the same as :func:`plan` makes of it.

    Raises:
        NameUnknownError: there is no such arm.
        ProblemsError: the point makes no trial.
    """
    binder = Binder(sweep, workspace, components or Components.installed())
    trial = binder.bind(sweep.arm(arm), point)
    if trial is None:
        raise ProblemsError(dict.fromkeys(binder.problems))
    return trial


def _reading_order(problem: Problem) -> tuple[bool, str, int, int]:
    # What has no line was said on the command line, and is read first.
    return (bool(problem.line), problem.file, problem.line, problem.column)
