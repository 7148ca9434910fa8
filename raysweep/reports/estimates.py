"""What a trial will need, before it runs: memory from sizes, time from what the sweep has measured already."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from raysweep.config.checks import blocks_of
from raysweep.config.components import Components
from raysweep.config.editor_schema import parts as parts_of
from raysweep.config.planned_trial import Plan, PlannedTrial
from raysweep.config.schema import TrialSpec
from raysweep.config.shared_specs import MomentSpec
from raysweep.editors.base import KEYS_PER_EDIT
from raysweep.errors import StoreError
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.models.sizes import COPY_LIMIT, ModelSize
from raysweep.reports.prose import clock
from raysweep.rows import SHARED_PHASE_SUFFIX
from raysweep.workspace import Workspace

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DRIVER_BASE, DRIVER_TRIAL = 527_000_000, 21_900  # bytes, see driver_memory
QUESTIONS = 32  # of a record, at most, about
MOST_TOGETHER = 4096  # edits; how many more would fit is not asked
MANY_TRIALS = 1000  # from more on, a plan says what the driver takes


@dataclass(frozen=True, slots=True)
class Memory:
    """About how many bytes a trial takes, by part, and of which parts nothing is known.

    Attributes:
        parts: bytes by part.
        unknown: what else it takes, of which nothing is known: a component's state, an editor's activations.
        written: bytes of the parts that are also files: a snapshot holds the edited matrices and the components' states, the
            artifact store the second moments.
        on_host: bytes of the parts that stay in the host's memory where a GPU computes: the pristine copy, and the second moments
            but for the one that is being factored.
        on_other_gpus: bytes of the weights that lie on further GPUs (``model.devices``), each of which has its share; all else is
            on the first.
    """

    parts: Mapping[str, int]
    unknown: tuple[str, ...] = ()
    written: int = 0
    on_host: int = 0
    on_other_gpus: int = 0

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return sum(self.parts.values())

    @property
    def on_device(self) -> int:
        """What of it the memory of a GPU, the first of several, has to hold."""
        return self.total - self.on_host - self.on_other_gpus


def memory(trial: TrialSpec, shape: ModelSize, components: Components) -> Memory:
    """Return what *trial* takes in this process or on its device; the libraries come on top.

    Second moments count twice, for themselves and their factors. A component's own state counts where its class knows it
    (``state_bytes``), and so does what its edits take while they are made (``working_bytes``). Edits and questions do not
    meet, so of their activations the larger ones count.
    """
    size = BYTES[trial.model.dtype]
    weights = shape.parameters * size
    # Large models are read again from disk rather than kept twice.
    parts = {"weights": weights, "pristine copy": weights if weights <= COPY_LIMIT else 0}
    editor, kind = trial.editor, components.editors.get(trial.editor.name)
    layers = [block for path, block in blocks_of(editor.config) if path[0] == "layers"]
    matrices: list[tuple[int, int]] = []
    if layers and kind.patch_kind == "weights":
        matrices = [(shape.hidden, shape.mlp_width)] * len(layers)
        # In fp32, in which they are edited, and once more in the model's own type.
        parts["edited matrices"] = sum(a * b for a, b in matrices) * (4 + size)
        if any(parts_of(editor.config, MomentSpec)):
            # 8 bytes: the algebra is in fp64.
            parts["second moments"] = 2 * 8 * len(layers) * shape.mlp_width**2
    elif isinstance(editor.config.stored_value("layer"), int):
        # A module stands for one map of a block's MLP: the second one, unless the configuration says otherwise.
        matrices = [(shape.hidden, shape.mlp_width)]
        if editor.config.stored_value("matrix") == "in":
            matrices = [(shape.mlp_width, shape.hidden)]
    columns = KEYS_PER_EDIT * trial.protocol.rounds[-1]
    written = sum(parts.get(name, 0) for name in ("edited matrices", "second moments"))
    unknown: list[str] = []
    # A batch is never larger than all there is to ask.
    rows = min(trial.protocol.eval_batch, QUESTIONS * max(trial.data.size, trial.protocol.rounds[-1]))
    asked = activations.passing(shape, size, tokens=rows * activations.ROW)
    working = kind.working_bytes(editor.config, shape, size)
    if working is None:
        unknown.append(f"activations of {editor.name}")
    parts |= {**(working or {}), "activations": max(asked, (working or {}).get("activations", 0))}
    wraps = [(components.wrappers.get(w.name), w.name, w.config) for w in editor.wrap]
    for one, name, config in ((kind, editor.name, editor.config), *wraps):
        state = one.state_bytes(config, matrices, columns)
        if state is None:
            unknown.append(f"state of {name}")
        else:
            parts |= {f"{name} {part}": count for part, count in state.items()}
            written += sum(state.values())
    on_host = parts["pristine copy"] + parts.get("second moments", 0) // 2 * (len(layers) - 1) // max(len(layers), 1)
    return Memory(
        {k: v for k, v in parts.items() if v},
        tuple(unknown),
        written,
        on_host,
        weights - weights // trial.model.devices,
    )


def fits_together(trial: TrialSpec, shape: ModelSize, components: Components, limit: int, *, gpu: bool) -> int | None:
    """Return how many edits of *trial* can be made together in *limit* bytes by this estimate; 0: not even one.

    None where edits are made one by one whatever is set, or where the estimate does not say what more of them take.

    Args:
        trial: whatever it sets itself.
        shape: of the model.
        components: tables to resolve names with.
        limit: bytes of a GPU, or of the host.
        gpu: whether *limit* is a GPU's, which need not hold all of a trial.
    """
    config = trial.editor.config
    value = getattr(config, "value", None)
    holder = config if hasattr(config, "batch") else value
    if holder is None or not hasattr(holder, "batch") or getattr(holder, "captured", False):
        return None

    def needed(batch: int) -> int:
        more = holder.model_copy(update={"batch": batch})
        changed = more if holder is config else config.model_copy(update={"value": more})
        editor = trial.editor.model_copy(update={"config": changed})
        found = memory(trial.model_copy(update={"editor": editor}), shape, components)
        return found.on_device if gpu else found.total

    if needed(MOST_TOGETHER) == needed(1):
        return None
    # the greatest that fits: memory only grows with their number
    return bisect.bisect_right(range(1, MOST_TOGETHER + 1), limit, key=needed)


def driver_memory(trials: int) -> int:
    """Return about how many bytes the process of ``raysweep run`` itself takes over a sweep of *trials* trials through Ray.

    Both constants were measured on 2,000 trials of the editor ``null`` with two rounds, in sessions of 128
    (``python -m benchmarks.driver``; docs/performance.md, "The driver over many trials"). It takes 527 MB (``DRIVER_BASE``)
    with Python, Ray, pyarrow and Tune's record of one session; each trial adds .0154 MB while the sweep runs, and .0219 MB
    (``DRIVER_TRIAL``) when all trials have been read for ``trials.parquet`` at its end. Two things come on top that are not
    in here: rows of many rounds are larger when they are read, and a session is longer than 128 trials where more than eight run
    at once (:mod:`raysweep.tune.sessions`), with about .2 MB for each of its trials until it ends.
    """
    return DRIVER_BASE + DRIVER_TRIAL * trials


@dataclass(frozen=True, slots=True)
class Room:
    """What a trial's edits have to fit into.

    Attributes:
        size: bytes.
        gpu: whether they are a GPU's; else those that ``resources.memory`` reserves.
    """

    size: int
    gpu: bool


def together(plan: Plan, workspace: Workspace, components: Components, room: Room | None) -> dict[str, int]:
    """Return how many edits fit together (:func:`fits_together`) by the trial's key, for the trials of which that is known."""
    if room is None:
        return {}
    catalogue = lazy("raysweep.models.sources.catalogue")
    found: dict[str, int] = {}
    # seeds and λ take the same memory
    known: dict[tuple[str, object], int | None] = {}
    for planned in plan.trials:
        key = (planned.arm, planned.trial.model)
        if key not in known:
            shape = catalogue.sizes_of(planned.trial.model, workspace)
            known[key] = (
                None if shape is None else fits_together(planned.trial, shape, components, room.size, gpu=room.gpu)
            )
        if (count := known[key]) is not None:
            found[planned.key] = count
    return found


def together_lines(plan: Plan, fitting: Mapping[str, int], room: Room | None) -> list[str]:
    """Return a line for each number of edits that fit together, with the arms that it holds for; *fitting* by the trial's key."""
    if room is None:
        return []
    arms: dict[int, dict[str, None]] = {}
    for planned in plan.trials:
        if planned.key in fitting:
            arms.setdefault(fitting[planned.key], {})[planned.arm] = None
    place = f"{amount(room.size)} {'of the GPU' if room.gpu else 'of resources.memory'}"
    return [
        f"edits made together, about: at most {'more than 4,000' if count == MOST_TOGETHER else count} fit {place}"
        f" ({', '.join(names)})"
        for count, names in arms.items()
    ]


def memory_lines(plan: Plan, workspace: Workspace, components: Components) -> list[str]:
    """Return a line per arm and model: what one of its trials takes; and one for the driver of a sweep of many trials."""
    arms_by_text: dict[str, list[str]] = {}
    for trial in {(t.arm, t.trial.model): t for t in plan.trials}.values():
        shape = lazy("raysweep.models.sources.catalogue").sizes_of(trial.trial.model, workspace)
        arms_by_text.setdefault(_memory_text(trial, shape, components), []).append(trial.arm)
    lines = [
        f"memory per trial, about: {text} ({', '.join(dict.fromkeys(arms))})" for text, arms in arms_by_text.items()
    ]
    count = len(plan.trials)
    if count > MANY_TRIALS:
        lines.append(f"memory of the process that runs {count:,} trials, about: {amount(driver_memory(count))}")
    return lines


def _memory_text(planned: PlannedTrial, shape: ModelSize | None, components: Components) -> str:
    if shape is None:
        return f"not known, the sizes of {planned.trial.model.name} are not here"
    needed = memory(planned.trial, shape, components)
    parts = " + ".join(f"{part} {amount(count)}" for part, count in needed.parts.items())
    total = f"{amount(needed.total)} ({amount(needed.on_device)} on a GPU)"
    return f"{total} = {parts}{''.join(f' + {part}: not known' for part in needed.unknown)}"


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
