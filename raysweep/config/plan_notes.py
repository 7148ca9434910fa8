"""What the reader of a plan should know, though it is no mistake."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from raysweep.config import paths, precedence
from raysweep.config.planned_trial import PlannedTrial
from raysweep.config.selection import Selection
from raysweep.config.space_checks import idle_draws
from raysweep.config.sweep_schema import SweepSpec
from raysweep.jsontypes import Json
from raysweep.workspace import Workspace


def file_notes(sweep: SweepSpec) -> list[str]:
    """Return what can be said of the file of *sweep* alone: what overrides replaced, and values that its own space hides."""
    return [*sweep.source.notes, *precedence.hidden_values(sweep.source.tree, sweep.source)]


def plan_notes(
    sweep: SweepSpec, trials: Iterable[PlannedTrial], left_out: Mapping[str, Selection], workspace: Workspace
) -> list[str]:
    """Return the notes on a plan.

    Args:
        sweep: what was planned.
        trials: its trials.
        left_out: by arm, the rows of its data that were skipped.
        workspace: where paths are looked up.
    """
    trials = tuple(trials)
    notes = [*_absent(trials), *_left_out(left_out), *_unwritten(sweep, trials)]
    notes += paths.ambiguous_paths(sweep.source, workspace)
    notes += [f"{key} ({at.file}:{at.line}) has no effect: every domain is a grid" for key, at in idle_draws(sweep)]
    dependent = dict.fromkeys(t.arm for t in trials if not t.can_propose)
    if sweep.resources.shards > 1 and dependent:
        notes.append(f"resources.shards has no effect on {', '.join(dependent)}: their edits depend on each other")
    return notes


def _unwritten(sweep: SweepSpec, trials: Iterable[PlannedTrial]) -> Iterator[str]:
    """Yield a note for each arm whose last round comes before the records end that ``data.size`` asks for."""
    arms_by_extent: dict[tuple[int, int], dict[str, None]] = {}
    for planned in trials:
        arm = sweep.arm(planned.arm)
        layers: list[Json] = [sweep.base.get("data"), arm.base.get("data")]
        # Who asked for a number of records wants to know that some are not written; the default is all of a file.
        stated = (
            any(isinstance(layer, Mapping) and layer.get("size") for layer in layers) or "data.size" in planned.point
        )
        last, size = planned.trial.protocol.rounds[-1], planned.trial.data.size
        if stated and 0 < last < size:
            arms_by_extent.setdefault((last, size), {})[planned.arm] = None
    for (last, size), arms in arms_by_extent.items():
        yield f"the last round is at {last} edits, so {size - last} of the {size} records are not written: {', '.join(arms)}"


def _absent(trials: Iterable[PlannedTrial]) -> Iterator[str]:
    """Yield a note for each model that is not here, so that the keys of its trials are not final."""
    for name in dict.fromkeys(t.trial.model.name for t in trials if t.trial.model.provisional):
        yield (
            f"model '{name}' is not here: its keys will be others once `raysweep run` has fetched it, since they cover its "
            "commit and its tokenizer"
        )


def _left_out(left_out: Mapping[str, Selection]) -> Iterator[str]:
    """Yield a note for each arm whose data section skips rows."""
    for arm, selection in left_out.items():
        if selection.left_out:
            first = selection.reasons[0]
            why = f"first {first.file}: {first.message}"
            yield f"arm '{arm}' leaves out {len(selection.left_out)} rows of its data (data.invalid: skip), {why}"
