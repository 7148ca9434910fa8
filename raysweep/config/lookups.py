"""What the parts of a binder share: the sweep, the answers to questions about files, and the list of what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raysweep.config.components import Components
from raysweep.config.merge import MergedTree
from raysweep.config.places import KeyPath, Place
from raysweep.config.problems import from_error, from_validation, problem
from raysweep.config.schema import DataSpec
from raysweep.config.selection import Row
from raysweep.config.space import Grid, Scalar
from raysweep.config.sweep_schema import ArmSpec, SweepSpec
from raysweep.errors import DataError, Problem, RaysweepError, SpecError
from raysweep.workspace import Workspace

T = TypeVar("T")
P = TypeVar("P", bound=BaseModel)
Point = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the file of a dataset holds.

    Attributes:
        path: the file; empty = there is none.
        count: of its rows.
        digest: of its content.
        rows: each a record or what is wrong with it.
    """

    path: str
    count: int
    digest: str
    rows: Sequence[Row]


@dataclass(slots=True)
class Lookups:
    """Answers to questions about files, each asked once and kept for this object's own life; ``problems`` and
    ``notes`` collect mistakes, and what the reader should know though it is none.
    """

    sweep: SweepSpec
    workspace: Workspace
    components: Components
    problems: list[Problem] = field(default_factory=list)
    # A dict for its order: each note once.
    notes: dict[str, None] = field(default_factory=dict)
    # Any: what each question is answered with is its asker's affair.
    _answers: dict[Hashable, tuple[Any, RaysweepError | None]] = field(default_factory=dict)
    _positions: dict[KeyPath, dict[tuple[type, Scalar], int]] = field(default_factory=dict)

    def note(self, place: Place, message: str, hint: str = "", code: str = SpecError.code) -> None:
        """Keep the problem *message* at *place*."""
        self.problems.append(problem(place, message, hint, code))

    def ask_once(self, question: Hashable, ask: Callable[[], T], place: Place) -> T | None:
        """Return the answer to *question*, asking only the first time; None after noting why there is none."""
        # Many points ask the same (does this file exist?); a failure is kept too, and noted again at each place that asks.
        if question not in self._answers:
            try:
                self._answers[question] = (ask(), None)
            except RaysweepError as error:
                self._answers[question] = (None, error)
            except (OSError, ValueError, RuntimeError) as error:  # a path that no file can have, say
                message = " ".join(str(error).split()) or type(error).__name__
                hint = "see what is written here"
                self._answers[question] = (None, DataError(f"cannot be looked up: {message}", hint=hint))
        answer: T | None
        answer, complaint = self._answers[question]
        if complaint is not None:
            self.problems.append(from_error(complaint, place))
        return answer

    def data(self, spec: DataSpec, place: Place) -> DataFacts | None:
        """Return what the file of *spec* holds; None after noting why it cannot be read."""

        def ask() -> DataFacts:
            dataset = self.components.datasets.get(spec.name)()
            path = dataset.locate(spec, self.workspace)
            reading = dataset.read(path)
            return DataFacts(str(path or ""), dataset.count(path), dataset.digest(path), reading.every)

        return self.ask_once(("data", spec.name, spec.path), ask, place)

    def validated(self, merged: MergedTree, spec: type[P], what: str) -> P | None:
        """Return *merged* as a *spec*; None after noting what is wrong with it."""
        try:
            return spec.model_validate(merged.tree)
        except ValidationError as error:
            self.problems += from_validation(error, spec, what, merged.place)
            return None

    def section(self, arm: ArmSpec, point: Point, section: str) -> MergedTree:
        """Return one section of the trial: base, then arm, then point."""
        source = self.sweep.source
        merged = MergedTree(source.key(("base", section)), section=section)
        merged.put(self.sweep.base.get(section, {}), source, ("base", section))
        merged.put(arm.base.get(section, {}), source, ("arms", arm.name, section))
        self.put_points(merged, arm, point, f"{section}.")
        return merged

    def put_points(self, merged: MergedTree, arm: ArmSpec, point: Point, prefix: str) -> None:
        """Lay the values of *point* whose keys begin with *prefix* on *merged*."""
        # A swept name drops what was said of another model or dataset, so it must come before the other swept keys.
        names_first = sorted(point, key=lambda k: k != f"{prefix}name")
        for key in (k for k in names_first if k.startswith(prefix)):
            path = tuple(key.removeprefix(prefix).split("."))
            merged.put_at(path, point[key], self.sweep.source, self.written(arm, key, point[key]))

    def written(self, arm: ArmSpec, key: str, value: Scalar) -> KeyPath:
        """Return where the domain of *key* was written; in a grid, where *value* was."""
        in_arm = key in arm.space
        path: KeyPath = ("arms", arm.name, "space", key) if in_arm else ("space", key)
        domain = arm.space.get(key, self.sweep.space.get(key))
        if isinstance(domain, Grid):
            if path not in self._positions:
                # From the end, so that of equal values the first one counts. 1 == True == 1.0 in Python; in a grid they differ.
                numbered = reversed([*enumerate(domain.values)])
                self._positions[path] = {(type(candidate), candidate): i for i, candidate in numbered}
            i = self._positions[path].get((type(value), value))
            return path if i is None else (*path, domain.kind, i)
        return path
