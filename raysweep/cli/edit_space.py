"""The search space that the flags of ``raysweep edit`` mean: one arm, nothing swept, as somebody would write it in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from raysweep.cli.flags import Stated
from raysweep.config.places import Place
from raysweep.config.problems import from_error
from raysweep.errors import Problem, SpecError

# The reference's names for one editor with one of its objectives.
ALIASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ft-l": ("ft", {"objective": "prompt_last"}),
    "ft-m": ("ft", {"objective": "target_new"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EditFlags:
    """The flags that the search space follows from.

    Attributes:
        name: of the sweep.
        editor: as typed, one of :data:`ALIASES` too.
        hparams: absolute path of a hyper-parameter file that takes the place of the model's own; empty = none.
        model: the ``model`` section that ``--model`` means.
        data: name of the dataset, in any case.
        data_path: absolute; empty = found by name.
        simie: whether the editor is wrapped in SimIE; the next three are without effect if not.
        lam: SimIE's λ.
        init_model: whether the inner editor sees the unedited weights.
        solver: SimIE's back end; empty = its default.
        edits: how many records are written.
        batch_size: records per call of the editor.
        rounds: the steps to measure at as typed; empty = :func:`rounds_of` chooses.
        seed: of the order and of every draw.
    """

    name: str
    editor: str
    hparams: str
    model: Mapping[str, str]
    data: str
    data_path: str
    simie: bool
    lam: float
    init_model: bool
    solver: str
    edits: int
    batch_size: int
    rounds: str
    seed: int


class DataSection(TypedDict):
    """``base.data``."""

    name: str
    size: int
    path: NotRequired[str]


class ProtocolSection(TypedDict):
    """``base.protocol``."""

    batch_size: int
    rounds: list[int]


class BaseSection(TypedDict):
    """``base``."""

    model: dict[str, str]
    data: DataSection
    protocol: ProtocolSection
    seed: int


class WrapSection(TypedDict):
    """``arms.NAME.wrap``."""

    name: str
    lam: float
    mode: str
    backend: NotRequired[str]


class ArmSection(TypedDict):
    """``arms.NAME``."""

    editor: dict[str, str]
    wrap: NotRequired[WrapSection]


class SearchSpaceTree(TypedDict):
    """The tree of a search-space file."""

    sweep: str
    base: BaseSection
    arms: dict[str, ArmSection]


def search_space_of_flags(flags: EditFlags) -> tuple[SearchSpaceTree, list[Problem]]:
    """Return the tree that *flags* mean, and what is wrong with ``--edits``, ``--batch-size`` and ``--rounds``.

    With a mistake the tree still is one that the rest of the flags can be checked by: its batch size is 1 and its rounds
    are those that would be chosen.
    """
    mistakes: list[Problem] = []
    batch_size = flags.batch_size
    if flags.edits % batch_size:
        mistakes.append(_unwhole_batch(flags.edits, batch_size))
        batch_size = 1
    try:
        rounds = rounds_of(flags.rounds, flags.edits, batch_size)
    except SpecError as error:
        mistakes.append(from_error(error, Place("")))
        rounds = rounds_of("", flags.edits, batch_size)
    name, arm = _arm(flags)
    data: DataSection = {"name": flags.data.lower(), "size": flags.edits}
    if flags.data_path:
        data["path"] = flags.data_path
    tree: SearchSpaceTree = {
        "sweep": flags.name,
        "base": {
            "model": dict(flags.model),
            "data": data,
            "protocol": {"batch_size": batch_size, "rounds": rounds},
            "seed": flags.seed,
        },
        "arms": {name: arm},
    }
    return tree, mistakes


def _arm(flags: EditFlags) -> tuple[str, ArmSection]:
    """Return the name and the section of the one arm."""
    kind, config = ALIASES.get(flags.editor.lower(), (flags.editor.lower(), {}))
    arm: ArmSection = {"editor": {"name": kind, **config}}
    if flags.hparams:
        arm["editor"]["file"] = flags.hparams
    if not flags.simie:
        return kind, arm
    wrap: WrapSection = {"name": "simie", "lam": flags.lam, "mode": "init" if flags.init_model else "sequential"}
    # Left out rather than empty: the default is the wrapper's to choose.
    if flags.solver:
        wrap["backend"] = flags.solver
    arm["wrap"] = wrap
    return f"{kind}+simie", arm


def _unwhole_batch(edits: int, batch_size: int) -> Problem:
    """Return that *edits* is no multiple of *batch_size*, with the nearest numbers that are."""
    below, above = edits - edits % batch_size, edits - edits % batch_size + batch_size
    near = " or ".join(f"--edits {number}" for number in (below, above) if number)
    message = f"--edits {edits} is no multiple of --batch-size {batch_size}; every batch is whole"
    return Problem(code=SpecError.code, message=message, hint=near)


def rounds_of(text: str, edits: int, batch_size: int) -> list[int]:
    """Return the steps to measure at: those given, or 0 and up to five more, spread evenly.

    Raises:
        SpecError: *text* is no list of numbers.

    >>> rounds_of("", 100, 1), rounds_of("0,10,100", 100, 1)
    ([0, 20, 40, 60, 80, 100], [0, 10, 100])
    """
    if text:
        try:
            return [int(part) for part in text.replace(" ", "").split(",")]
        except ValueError as error:
            raise SpecError(f"--rounds is a list of steps such as 0,10,100; got {text!r}") from error
    calls = max(edits // batch_size, 1)
    # Counted in calls of the editor: the model can be measured between two batches only.
    steps = {round(calls * part / 5) * batch_size for part in range(1, 6)}
    return sorted({0, *(s for s in steps if s > 0)})


def keys_of_flags(tree: SearchSpaceTree) -> Iterator[Stated]:
    """Yield each flag with the key that it sets in *tree*, so that a flag and a ``--set`` of one key are seen to meet."""
    base = tree["base"]
    ((arm, section),) = tree["arms"].items()
    yield from (("model", f"model.{key}", value) for key, value in base["model"].items())
    for key, value in section["editor"].items():
        yield "hparams" if key == "file" else "editor", f"arms.{arm}.editor.{key}", value
    yield "data", "data.name", base["data"]["name"]
    yield "data_path", "data.path", base["data"].get("path", "")
    yield "edits", "data.size", base["data"]["size"]
    yield "batch_size", "protocol.batch_size", base["protocol"]["batch_size"]
    yield "rounds", "protocol.rounds", [*base["protocol"]["rounds"]]
    yield "seed", "seed", base["seed"]
    yield "name", "sweep", tree["sweep"]
    if "wrap" in section:
        wrap = section["wrap"]
        # A wrapper's keys stand below its name where they are swept or set.
        prefix = f"arms.{arm}.wrap.simie"
        yield "simie", f"{prefix}.name", wrap["name"]
        yield "lam", f"{prefix}.lam", wrap["lam"]
        yield "init_model", f"{prefix}.mode", wrap["mode"]
        if "backend" in wrap:
            yield "solver", f"{prefix}.backend", wrap["backend"]
