"""A sweep → its trials: pure, seeded, and the same whoever asks (``validate``, ``plan``, ``run``, a worker)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raysweep.config import limits, paths, precedence
from raysweep.config.bind import Binder, Point
from raysweep.config.components import Components, assemble
from raysweep.config.load import examine
from raysweep.config.names import TrialName, unique
from raysweep.config.overrides import Override
from raysweep.config.places import Place
from raysweep.config.problems import problem
from raysweep.config.schema import ArmSpec, DataSpec, ModelSpec, ProtocolSpec, SweepSpec, TrialSpec, without_paths
from raysweep.config.space import Domain, Grid, ValuePath
from raysweep.config.sweep import examine_sweep, find_file
from raysweep.errors import Problem, ProblemsError, nearest
from raysweep.hashing import digest
from raysweep.measures import DERIVED, PHASES, VIEWS
from raysweep.registry import Registry
from raysweep.seeds import derive
from raysweep.workspace import Workspace

FILLED_IN = ("digest", "tokenizer_digest")  # by the plan itself
_SECTIONS: Mapping[str, type[BaseModel]] = {"model": ModelSpec, "data": DataSpec, "protocol": ProtocolSpec}


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One trial and where it came from.

    Attributes:
        arm: the name of the first arm that it stands in (``Plan.names`` has them all).
        point: the swept keys and their values there.
        trial: the trial.
        share: names what its edits depend on: trials with the same may run in one pass; empty = none may.
        kin: the same without seed and order, where each edit is its record's alone: such passes may share single
            proposals; empty = they may not.
        apart: its edits may be computed apart from each other (``resources.shards``).
    """

    arm: str
    point: Point
    trial: TrialSpec
    share: str = ""
    kin: str = ""
    apart: bool = False

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

    def as_json(self) -> dict[str, Any]:
        """Return ``plan.json``: which trials there are, what they are called, and what they were planned from."""
        source = self.sweep.source
        return {
            "sweep": self.sweep.name,
            "study": self.sweep.study,
            "search": self.sweep.search.model_dump(mode="json"),
            "file": str(Path(source.file).absolute()) if source.text else "",
            "overrides": list(source.overrides),
            "trials": [name.as_json() for name in self.names],
        }

    @property
    def passes(self) -> tuple[tuple[PlannedTrial, ...], ...]:
        """The trials, grouped by the pass over the edits they can share, in the order of their first one."""
        found: dict[str, list[PlannedTrial]] = {}
        for trial in self.trials:
            found.setdefault(trial.share or trial.key, []).append(trial)
        return tuple(tuple(group) for group in found.values())


def name_of(trial: PlannedTrial) -> TrialName:
    """Return the arm and point of *trial*."""
    return TrialName(trial.arm, trial.point, trial.key, trial.trial.seed, trial.trial.protocol.rounds)


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
    sweep, noted = examine_sweep(source, noted, overrides)
    if sweep is None:
        raise ProblemsError(noted)
    return plan(sweep, workspace, components, noted=noted)


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
    binder.problems.extend([*noted, *_check_space(sweep, components), *_check_metric(sweep, components)])
    binder.problems.extend(_check_draws(sweep))
    counts = {arm.name: count_points(sweep, arm, components) for arm in sweep.arms}
    binder.problems.extend(_check_count(sweep, sum(counts.values())))
    few = sum(counts.values()) <= limits.POINTS
    trials: dict[str, PlannedTrial] = {}
    names: list[TrialName] = []
    notes: list[str] = [*sweep.source.notes, *precedence.hidden_values(sweep.source.tree, sweep.source)]
    for arm in sweep.arms:
        same = 0
        for point in points(sweep, arm, components) if few else itertools.islice(points(sweep, arm, components), 1):
            trial = binder.bind(arm, point)
            if trial is None:
                continue
            same += trial.key in trials
            planned = PlannedTrial(arm.name, point, trial)
            names.append(name_of(planned))
            if trial.key not in trials:
                trials[trial.key] = _with_sharing(planned, components)
                if not sweep.resources.share:
                    trials[trial.key] = replace(trials[trial.key], share="", kin="")
        if same:
            notes.append(f"arm '{arm.name}': {same} of its points are trials already in the plan; they run once")
    if binder.problems:
        binder.problems.extend(paths.missing_paths(sweep.source, workspace))
        raise ProblemsError(dict.fromkeys(sorted(binder.problems, key=_reading_order)))
    notes += _absent(trials.values())
    notes += [*_left_out(binder), *_unwritten(sweep, trials.values()), *paths.ambiguous_paths(sweep.source, workspace)]
    notes += [f"{key} ({at.file}:{at.line}) has no effect: every domain is a grid" for key, at in _idle(sweep)]
    whole = dict.fromkeys(t.arm for t in trials.values() if not t.apart)
    if sweep.resources.shards > 1 and whole:
        notes.append(f"resources.shards has no effect on {', '.join(whole)}: their edits depend on each other")
    search = sweep.search.model_copy(update={"metric": sweep.search.metric or _metrics(sweep, components)[0]})
    return Plan(sweep.model_copy(update={"search": search}), tuple(trials.values()), tuple(notes), unique(names))


def _with_sharing(planned: PlannedTrial, components: Components) -> PlannedTrial:
    """Return *planned* with what its editor says its edits depend on (``Sharer``, ``Proposer``).

    ``share`` covers everything that the key covers, but of the editor only what the editor itself says. The protocol is
    in it: trials of one pass are measured at the same steps.
    """
    trial, spec = planned.trial, planned.trial.editor
    if not components.studies.get(trial.study).shares_edits:
        return planned
    editor = assemble(spec, components.editors, components.wrappers)
    shared, apart = editor.edit_dependencies(), editor.can_propose()
    edits = without_paths({**trial.identity(), "editor": spec.model_dump(mode="json") if shared is None else shared})
    share = "" if shared is None else digest(edits)
    del edits["seed"]
    kin = digest(edits) if apart and trial.protocol.batch_size == 1 else ""
    return replace(planned, share=share, kin=kin, apart=apart)


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


def domains(sweep: SweepSpec, arm: ArmSpec, components: Components | None = None) -> Mapping[str, Domain]:
    """Return the domains that apply to *arm* by dotted key; its own hide the sweep's.

    This is what an adaptive search hands to Ray instead of the points drawn here.
    """
    components = components or Components.installed()
    shared = {k: d for k, d in sweep.space.items() if _applies(arm, k, components)}
    return {**shared, **arm.space}


def points(sweep: SweepSpec, arm: ArmSpec, components: Components | None = None) -> Iterator[Point]:
    """Yield the points of *arm*: its draws, crossed with its grids.

    Each key has its own stream, from ``search.seed``, the arm's name and the key, so that adding a key or an arm
    moves no other draw. An arm without a drawn domain is not repeated.
    """
    found = domains(sweep, arm, components)
    grids = {k: d.values for k, d in found.items() if isinstance(d, Grid)}
    drawn = {k: d for k, d in found.items() if not isinstance(d, Grid)}
    streams = {k: random.Random(derive(sweep.search.seed, "draw", arm.name, k)) for k in drawn}
    for _ in range(sweep.search.samples if drawn else 1):
        draw = {k: d.draw(streams[k]) for k, d in drawn.items()}
        for combination in itertools.product(*grids.values()):
            yield {**draw, **dict(zip(grids, combination, strict=True))}


def count_points(sweep: SweepSpec, arm: ArmSpec, components: Components | None = None) -> int:
    """Return how many points :func:`points` yields, without making one."""
    found = domains(sweep, arm, components).values()
    draws = 1 if all(isinstance(d, Grid) for d in found) else sweep.search.samples
    return draws * math.prod(len(d.values) for d in found if isinstance(d, Grid))


def _check_count(sweep: SweepSpec, count: int) -> list[Problem]:
    """Return a complaint if the sweep has more points than a plan may have."""
    if count <= limits.POINTS:
        return []
    place = sweep.source.key(("space",))
    said = f"the arms have {count:,} points in all; a sweep has at most {limits.POINTS:,}"
    return [problem(place, said, "shorten the grids (they are crossed), lower search.samples, or write several sweeps")]


def _unwritten(sweep: SweepSpec, trials: Iterable[PlannedTrial]) -> Iterator[str]:
    """Yield a note for each arm whose last round comes before the records end that ``data.size`` asks for."""
    told: dict[tuple[int, int], dict[str, None]] = {}
    for planned in trials:
        arm = sweep.arm(planned.arm)
        layers: list[Any] = [sweep.base.get("data"), arm.base.get("data")]
        stated = (
            any(isinstance(layer, Mapping) and layer.get("size") for layer in layers) or "data.size" in planned.point
        )
        last, size = planned.trial.protocol.rounds[-1], planned.trial.data.size
        if stated and 0 < last < size:
            told.setdefault((last, size), {})[planned.arm] = None
    for (last, size), arms in told.items():
        yield f"the last round is at {last} edits, so {size - last} of the {size} records are not written: {', '.join(arms)}"


def _absent(trials: Iterable[PlannedTrial]) -> Iterator[str]:
    """Yield a note for each model that is not here, so that the keys of its trials are not final."""
    for name in dict.fromkeys(t.trial.model.name for t in trials if t.trial.model.provisional):
        yield (
            f"model '{name}' is not here: its keys will be others once `raysweep run` has fetched it, since they cover its "
            "commit and its tokenizer"
        )


def _left_out(binder: Binder) -> Iterator[str]:
    """Yield a note for each arm whose data section skips rows."""
    for arm, found in binder.left_out.items():
        if found.left_out:
            first = found.reasons[0]
            why = f"first {first.file}: {first.message}"
            yield f"arm '{arm}' leaves out {len(found.left_out)} rows of its data (data.invalid: skip), {why}"


def swept_keys(arm: ArmSpec, components: Components) -> tuple[str, ...]:
    """Return every key that *arm* could sweep."""
    keys = ["seed", "threads"]
    keys += [f"{s}.{f}" for s, spec in _SECTIONS.items() for f in spec.model_fields if f not in FILLED_IN]
    keys += [f"editor.{f}" for f in _fields(components.editors, arm.editor.name)]
    return (*keys, *(f"wrap.{w.name}.{f}" for w in arm.editor.wrap for f in _fields(components.wrappers, w.name)))


def _fields(table: Registry[Any], name: str) -> tuple[str, ...]:
    """Return the configuration keys of one component; none if its name is wrong, which is reported elsewhere."""
    if name not in table:
        return ()
    config: type[BaseModel] = table.get(name).config_type
    return tuple(config.model_fields)


def _applies(arm: ArmSpec, key: str, components: Components) -> bool:
    """Tell whether *arm* has the thing that *key* sweeps (``wrap.simie.a.b`` is judged by ``wrap.simie.a``)."""
    head, _, rest = key.partition(".")
    depth = {"wrap": 3, "editor": 2}.get(head, 2 if rest else 1)
    if head == "editor" and arm.editor.name not in components.editors:
        return True
    return ".".join(key.split(".")[:depth]) in swept_keys(arm, components)


def _check_space(sweep: SweepSpec, components: Components) -> list[Problem]:
    """Return what is wrong with the swept keys: those that apply nowhere, and draws where only grids may be."""
    found: list[Problem] = []
    for key, domain in sweep.space.items():
        place = sweep.source.key(("space", key))
        if not any(_applies(arm, key, components) for arm in sweep.arms) and not _lost_arms(sweep):
            every = {k for arm in sweep.arms for k in swept_keys(arm, components)}
            found.append(problem(place, f"'{key}' applies to no arm", _near(key, every)))
        found += _check_drawn(sweep, key, domain, place)
        found += _check_path(sweep.arms, key, domain, place, components)
    for arm in sweep.arms:
        for key, domain in arm.space.items():
            place = sweep.source.key(("arms", arm.name, "space", key))
            if not _applies(arm, key, components):
                hint = _near(key, swept_keys(arm, components))
                found.append(problem(place, f"'{key}' does not apply to arm '{arm.name}'", hint))
            found += _check_drawn(sweep, key, domain, place)
            found += _check_path([arm], key, domain, place, components)
    return found


def _idle(sweep: SweepSpec) -> Iterator[tuple[str, Place]]:
    """Yield what says how to draw, and where, in a sweep in which nothing is drawn."""
    every = [d for space in (sweep.space, *(arm.space for arm in sweep.arms)) for d in space.values()]
    written = sweep.source.tree.get("search") if isinstance(sweep.source.tree, Mapping) else None
    if isinstance(written, Mapping) and all(isinstance(d, Grid) for d in every):
        yield from ((f"search.{k}", sweep.source.key(("search", k))) for k in ("samples", "seed") if k in written)


def _check_draws(sweep: SweepSpec) -> list[Problem]:
    """Return a complaint for each key of ``search`` that is stated on the command line and has no effect."""
    hint = "draw a key: {choice: […]}, {uniform: […]}, {loguniform: […]}, {int: […]} or {logint: […]}; or leave it out"
    idle = [(key, place) for key, place in _idle(sweep) if not place.line and place.file.startswith("--")]
    return [problem(place, f"{key} has no effect: every domain is a grid", hint) for key, place in idle]


def _lost_arms(sweep: SweepSpec) -> bool:
    """Tell whether arms are written that could not be read: a key that applies to none of the others may be theirs."""
    tree = sweep.source.tree if isinstance(sweep.source.tree, Mapping) else {}
    written = tree.get("arms")
    return not isinstance(written, Mapping) or len(written) > len(sweep.arms)


def _check_drawn(sweep: SweepSpec, key: str, domain: Domain, place: Place) -> list[Problem]:
    if isinstance(domain, Grid) or sweep.search.sampler != "grid":
        return []
    hint = "search: {sampler: random, samples: 8, seed: 0}"
    return [problem(place, f"'{key}' is drawn ({domain.kind}), but search.sampler is grid", hint)]


def _check_path(
    arms: Iterable[ArmSpec], key: str, domain: Domain, place: Place, components: Components
) -> list[Problem]:
    """Return a complaint if *domain* is a path over something that edits depend on."""
    if not isinstance(domain, ValuePath) or not any(_applies(arm, key, components) for arm in arms):
        return []
    table = components.wrappers
    known = [f"wrap.{n}.{f}" for n in table.names() for f in table.get(n).shareable]
    if any(key == k or key.startswith(f"{k}.") for k in known):
        return []
    said = f"'{key}' has no path: edits depend on it"
    return [problem(place, said, f"write {{grid: […]}}; keys with a path: {', '.join(known) or 'none'}")]


def _metrics(sweep: SweepSpec, components: Components) -> list[str]:
    """Return the values that a round's summary may have in the study of *sweep*, the study's own choice first."""
    study = components.studies.get(sweep.study) if sweep.study in components.studies else None
    phases = PHASES if study is None else study.phases
    views = (*VIEWS, *DERIVED)
    first = f"{phases[0]}/avg" if study is None else study.default_metric()
    return [first, *(f"{phase}/{view}" for phase in phases for view in views)]


def _check_metric(sweep: SweepSpec, components: Components) -> list[Problem]:
    """Return what is wrong with ``search.metric``: it must be one of the values a round's summary has."""
    metric, known = sweep.search.metric, _metrics(sweep, components)
    if not metric or metric in known:
        return []
    place = sweep.source.value(("search", "metric"))
    return [problem(place, f"search.metric: no round has a value '{metric}'", nearest(metric, known))]


def _near(key: str, known: Iterable[str]) -> str:
    """Return the nearest swept keys; without a near one, the keys of the same section."""
    table = sorted(known)
    said = nearest(key, table)
    if said.startswith("did you mean"):
        return said.split("   ")[0]
    same = [k for k in table if k.split(".")[0] == key.split(".")[0]]
    heads = ["seed", "threads", "model.…", "data.…", "protocol.…", "editor.…", "wrap.<wrapper>.…"]
    return f"swept keys: {', '.join(same or heads)}"


def _reading_order(found: Problem) -> tuple[bool, str, int, int]:
    return (bool(found.line), found.file, found.line, found.column)
