"""What is wrong with the swept keys and the search of a sweep, before any point of it is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from raysweep.config import limits
from raysweep.config.components import Components
from raysweep.config.places import Place
from raysweep.config.points import applies, swept_keys
from raysweep.config.problems import problem
from raysweep.config.space import Domain, Grid, ValuePath
from raysweep.config.sweep_schema import ArmSpec, SweepSpec
from raysweep.errors import Problem, nearest
from raysweep.measures import DERIVED, PHASES, VIEWS


def check_sweep(sweep: SweepSpec, components: Components, n_points: int) -> list[Problem]:
    """Return every mistake in the swept keys, the metric and the draws of *sweep*, which has *n_points* points."""
    return [
        *_check_space(sweep, components),
        *_check_metric(sweep, components),
        *_check_draws(sweep),
        *_check_count(sweep, n_points),
    ]


def _check_space(sweep: SweepSpec, components: Components) -> list[Problem]:
    """Return what is wrong with the swept keys: those that apply nowhere, and draws where only grids may be."""
    problems: list[Problem] = []
    for key, domain in sweep.space.items():
        place = sweep.source.key(("space", key))
        # A key that applies to some arms only is no mistake: the others ignore it.
        if not any(applies(arm, key, components) for arm in sweep.arms) and not _lost_arms(sweep):
            every = {k for arm in sweep.arms for k in swept_keys(arm, components)}
            problems.append(problem(place, f"'{key}' applies to no arm", _near(key, every)))
        problems += _check_drawn(sweep, key, domain, place)
        problems += _check_path(sweep.arms, key, domain, place, components)
    for arm in sweep.arms:
        for key, domain in arm.space.items():
            place = sweep.source.key(("arms", arm.name, "space", key))
            if not applies(arm, key, components):
                hint = _near(key, swept_keys(arm, components))
                problems.append(problem(place, f"'{key}' does not apply to arm '{arm.name}'", hint))
            problems += _check_drawn(sweep, key, domain, place)
            problems += _check_path([arm], key, domain, place, components)
    return problems


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
    # A key that applies to no arm is complained of elsewhere.
    if not isinstance(domain, ValuePath) or not any(applies(arm, key, components) for arm in arms):
        return []
    table = components.wrappers
    known = [f"wrap.{n}.{f}" for n, kind in table.loadable().items() for f in kind.shareable]
    # A shareable field may be a mapping whose own keys are swept.
    if any(key == k or key.startswith(f"{k}.") for k in known):
        return []
    message = f"'{key}' has no path: edits depend on it"
    return [problem(place, message, f"write {{grid: […]}}; keys with a path: {', '.join(known) or 'none'}")]


def _check_draws(sweep: SweepSpec) -> list[Problem]:
    """Return a complaint for each key of ``search`` that is stated on the command line and has no effect."""
    hint = "draw a key: {choice: […]}, {uniform: […]}, {loguniform: […]}, {int: […]} or {logint: […]}; or leave it out"
    # What a file says to no effect is only a note of the plan (plan_notes); a statement must not be idle.
    idle = [(key, place) for key, place in idle_draws(sweep) if not place.line and place.file.startswith("--")]
    return [problem(place, f"{key} has no effect: every domain is a grid", hint) for key, place in idle]


def _check_count(sweep: SweepSpec, count: int) -> list[Problem]:
    """Return a complaint if the sweep has more points than a plan may have."""
    if count <= limits.POINTS:
        return []
    place = sweep.source.key(("space",))
    message = f"the arms have {count:,} points in all; a sweep has at most {limits.POINTS:,}"
    return [
        problem(place, message, "shorten the grids (they are crossed), lower search.samples, or write several sweeps")
    ]


def _check_metric(sweep: SweepSpec, components: Components) -> list[Problem]:
    """Return what is wrong with ``search.metric``: it must be one of the values a round's summary has."""
    metric, known = sweep.search.metric, summary_values(sweep, components)
    # Empty = the study's own choice, which the plan fills in.
    if not metric or metric in known:
        return []
    place = sweep.source.value(("search", "metric"))
    return [problem(place, f"search.metric: no round has a value '{metric}'", nearest(metric, known))]


def summary_values(sweep: SweepSpec, components: Components) -> list[str]:
    """Return the values that a round's summary may have in the study of *sweep*, the study's own choice first."""
    study = components.studies.get(sweep.study) if sweep.study in components.studies else None
    phases = PHASES if study is None else study.phases
    views = (*VIEWS, *DERIVED)
    first = f"{phases[0]}/avg" if study is None else study.default_metric()
    return [first, *(f"{phase}/{view}" for phase in phases for view in views)]


def _near(key: str, known: Iterable[str]) -> str:
    """Return the nearest swept keys; without a near one, the keys of the same section."""
    table = sorted(known)
    suggestion = nearest(key, table)
    if suggestion.startswith("did you mean"):
        # Without its tail, which would list every key of every component.
        return suggestion.split("   ")[0]
    same = [k for k in table if k.split(".")[0] == key.split(".")[0]]
    heads = ["seed", "threads", "model.…", "data.…", "protocol.…", "editor.…", "wrap.<wrapper>.…"]
    return f"swept keys: {', '.join(same or heads)}"


def idle_draws(sweep: SweepSpec) -> Iterator[tuple[str, Place]]:
    """Yield what says how to draw, and where, in a sweep in which nothing is drawn."""
    every = [d for space in (sweep.space, *(arm.space for arm in sweep.arms)) for d in space.values()]
    written = sweep.source.tree.get("search") if isinstance(sweep.source.tree, Mapping) else None
    if isinstance(written, Mapping) and all(isinstance(d, Grid) for d in every):
        yield from ((f"search.{k}", sweep.source.key(("search", k))) for k in ("samples", "seed") if k in written)
