"""What a trial will need, before it runs: memory from sizes, time from what the sweep has measured already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from raysweep.config.components import Components
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.schema import TrialSpec
from raysweep.editors.base import KEYS_PER_EDIT
from raysweep.errors import StoreError
from raysweep.lazy import lazy
from raysweep.models.sizes import COPY_LIMIT, ModelSize
from raysweep.reports.prose import clock
from raysweep.rows import SHARED_PHASE_SUFFIX
from raysweep.workspace import Workspace

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """About how many bytes a trial takes, by part, and of which parts nothing is known."""

    parts: Mapping[str, int]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return sum(self.parts.values())


def memory(trial: TrialSpec, shape: ModelSize, components: Components) -> Memory:
    """Return what *trial* takes in this process or on its device; activations and the libraries come on top.

    Second moments count twice, for themselves and their factors. A component's own state counts where its
    class knows it (``state_bytes``).
    """
    size = BYTES[trial.model.dtype]
    weights = shape.parameters * size
    parts = {"weights": weights, "pristine copy": weights if weights <= COPY_LIMIT else 0}
    config = dict(trial.editor.config)
    kind = components.editors.get(trial.editor.name)
    layers = config.get("layers")
    matrices: list[tuple[int, int]] = []
    if isinstance(layers, list) and kind.patch_kind == "weights":
        matrices = [(shape.hidden, shape.mlp_width)] * len(layers)
        parts["edited matrices"] = sum(a * b for a, b in matrices) * (4 + size)
        if "moments" in config:
            parts["second moments"] = 2 * 8 * len(layers) * shape.mlp_width**2
    elif isinstance(config.get("layer"), int):
        # A module stands for one map of a block's MLP: the second one, unless the configuration says otherwise.
        matrices = [(shape.hidden, shape.mlp_width)]
        if config.get("matrix") == "in":
            matrices = [(shape.mlp_width, shape.hidden)]
    columns = KEYS_PER_EDIT * trial.protocol.rounds[-1]
    unknown = []
    wraps = [(components.wrappers.get(w.name), w.name, dict(w.config)) for w in trial.editor.wrap]
    for one, name, given in ((kind, trial.editor.name, config), *wraps):
        state = one.state_bytes(one.config_type.model_validate(given), matrices, columns)
        if state is None:
            unknown.append(name)
        else:
            parts |= {f"{name} {part}": count for part, count in state.items()}
    return Memory({k: v for k, v in parts.items() if v}, tuple(unknown))


def memory_lines(plan: Plan, workspace: Workspace, components: Components) -> list[str]:
    """Return a line per arm and model: what one of its trials takes."""
    arms_by_text: dict[str, list[str]] = {}
    for trial in {(t.arm, t.trial.model): t for t in plan.trials}.values():
        shape = lazy("raysweep.models.sources.catalogue").sizes_of(trial.trial.model, workspace)
        arms_by_text.setdefault(_memory_text(trial, shape, components), []).append(trial.arm)
    return [
        f"memory per trial, about: {text} ({', '.join(dict.fromkeys(arms))})" for text, arms in arms_by_text.items()
    ]


def _memory_text(planned: PlannedTrial, shape: ModelSize | None, components: Components) -> str:
    if shape is None:
        return f"not known, the sizes of {planned.trial.model.name} are not here"
    needed = memory(planned.trial, shape, components)
    parts = " + ".join(f"{part} {amount(count)}" for part, count in needed.parts.items())
    return f"{amount(needed.total)} = {parts}{''.join(f' + state of {name}: not known' for name in needed.unknown)}"


def amount(count: float) -> str:
    """Return bytes for a reader.

    >>> amount(5_400_000), amount(13.5e9)
    ('5.4 MB', '13.5 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def time_line(plan: Plan, workspace: Workspace, states: Sequence[str]) -> str:
    """Return about how long what is left will take one process, by what its arms' done trials took; empty if none is done.

    What an edit group does once counts once.
    """
    done = [t for t, state in zip(plan.trials, states, strict=True) if state == "done"]
    left = [
        t
        for t, state in zip(plan.trials, states, strict=True)
        if state in ("absent", "running", "interrupted", "damaged")
    ]
    if not done or not left:
        return ""
    taken: dict[str, list[tuple[float, float]]] = {}
    for trial in done:
        with suppress(StoreError):  # damaged: `show` and `run` say so
            taken.setdefault(trial.arm, []).append(_per_edit(trial, workspace.results(plan.sweep.name)))
    # What an edit group shares is spent once, so it is added with the first of its trials.
    total, counted_groups = 0.0, set()
    for trial in (t for t in left if t.arm in taken):
        per_edit, shared = (sum(seconds) / len(seconds) for seconds in zip(*taken[trial.arm], strict=True))
        name = trial.edit_key or trial.key
        total += trial.trial.protocol.rounds[-1] * (per_edit + (shared if name not in counted_groups else 0.0))
        counted_groups.add(name)
    others = dict.fromkeys(t.arm for t in left if t.arm not in taken)
    rest = f"; nothing known yet of {', '.join(others)}" if others else ""
    return f"time left for one process, about: {clock(total)}, by {len(done)} done{rest}"


def _per_edit(trial: PlannedTrial, results: str) -> tuple[float, float]:
    """Return the seconds per edit of a done trial: its own, and what its edit group did once."""
    tables, schema = lazy("raysweep.results.tables"), lazy("raysweep.results.schema")
    store = lazy("raysweep.results.store").ResultStore(results)
    timing = tables.read_fragments(store, schema.TIMING, store.fragments(schema.TIMING, trial.key))
    phases = tables.seconds_by_phase(timing).get(trial.key, {})
    edits = max(trial.trial.protocol.rounds[-1], 1)
    shared = sum(seconds for phase, (seconds, _) in phases.items() if phase.endswith(SHARED_PHASE_SUFFIX))
    return sum(seconds for seconds, _ in phases.values()) / edits - shared / edits, shared / edits
