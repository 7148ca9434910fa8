"""What a plan is: its trials, their names, and which of them share edits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.config.components import Components, assemble
from raysweep.config.lookups import Point
from raysweep.config.names import TrialName
from raysweep.config.schema import TrialSpec, without_paths
from raysweep.config.sweep_schema import SweepSpec
from raysweep.hashing import digest


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One trial and where it came from.

    Attributes:
        arm: the name of the first arm that it stands in (``Plan.names`` has them all).
        point: the swept keys and their values there.
        trial: the trial.
        edit_key: hash of all that its edits depend on; trials that have the same one are an edit group, whose edits are made once.
            Empty = its edits are its own.
        proposal_cache_key: the same without seed and order, where each edit is its record's alone, so that groups with the same
            one may take single proposals from one cache; empty = they may not.
        can_propose: its edits may be computed apart from each other (``resources.shards``).
    """

    arm: str
    point: Point
    trial: TrialSpec
    edit_key: str = ""
    proposal_cache_key: str = ""
    can_propose: bool = False

    @property
    def key(self) -> str:
        """The trial's key."""
        return self.trial.key


@dataclass(frozen=True, slots=True)
class Plan:
    """Every trial of a sweep, in the order of arms and points; no key comes twice.

    Attributes:
        sweep: what was planned.
        trials: the trials.
        notes: what the reader should know (points that came to the same trial).
        places: every arm and point, with the key of its trial; empty = each trial has one, its own.
    """

    sweep: SweepSpec
    trials: tuple[PlannedTrial, ...]
    notes: tuple[str, ...] = ()
    places: tuple[TrialName, ...] = ()

    @property
    def names(self) -> tuple[TrialName, ...]:
        """Every arm and point, in their order; a key comes as often as it has names."""
        return self.places or tuple(map(name_of, self.trials))

    def as_json(self) -> dict[str, object]:
        """Return ``plan.json``: which trials there are, what they are called, and what they were planned from."""
        source = self.sweep.source
        return {
            "sweep": self.sweep.name,
            "study": self.sweep.study,
            "search": self.sweep.search.model_dump(mode="json"),
            # A sweep that was made without a file has no text, and nothing that could change later.
            "file": str(Path(source.file).absolute()) if source.text else "",
            "overrides": list(source.overrides),
            "trials": [name.as_json() for name in self.names],
        }

    @property
    def edit_groups(self) -> tuple[tuple[PlannedTrial, ...], ...]:
        """The trials that can take their edits from one run over the records, group by group, in the order of their first one."""
        groups: dict[str, list[PlannedTrial]] = {}
        for trial in self.trials:
            # An empty edit key would put all trials that share nothing into one group.
            groups.setdefault(trial.edit_key or trial.key, []).append(trial)
        return tuple(tuple(group) for group in groups.values())


def name_of(trial: PlannedTrial) -> TrialName:
    """Return the arm and point of *trial*."""
    return TrialName(trial.arm, trial.point, trial.key, trial.trial.seed, trial.trial.protocol.rounds)


def with_edit_group(planned: PlannedTrial, components: Components, *, share: bool) -> PlannedTrial:
    """Return *planned* with what its editor says its edits depend on (``BaseEditor.edit_dependencies``, ``can_propose``).

    The edit key covers everything that the trial's key covers, but of the editor only what the editor itself says. The protocol
    is in it: trials of one group are measured at the same steps.

    Args:
        planned: a trial.
        components: tables to resolve names with.
        share: whether trials may share edits at all (``resources.share``).
    """
    trial, spec = planned.trial, planned.trial.editor
    if not components.studies.get(trial.study).shares_edits:
        return planned
    editor = assemble(spec, components.editors, components.wrappers)
    dependencies, can_propose = editor.edit_dependencies(), editor.can_propose()
    if not share:
        return replace(planned, can_propose=can_propose)
    # An editor that shares no edits may still have its proposals cached; then all of it counts.
    shown = spec.model_dump(mode="json") if dependencies is None else dependencies
    identity = without_paths({**trial.identity(), "editor": shown})
    edit_key = "" if dependencies is None else digest(identity)
    del identity["seed"]  # a proposal that drew no random number is the same under every seed
    # In a larger batch an edit depends on the records beside it.
    cache_key = digest(identity) if can_propose and trial.protocol.batch_size == 1 else ""
    return replace(planned, edit_key=edit_key, proposal_cache_key=cache_key, can_propose=can_propose)
