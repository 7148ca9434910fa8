"""What a logger is: told of trials, it passes them on to a program that draws curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypedDict

from raysweep.jsontypes import Json

Values = Mapping[str, float]
"""Numbers by name, such as ``retained/rel``; one that is undefined is NaN."""


@dataclass(frozen=True, slots=True)
class Started:
    """A trial that is about to run.

    Attributes:
        key: of the trial; a sweep that goes on has the same one.
        name: what the tables call it.
        config: arm, point, seed, model, data and every hyper-parameter, as plain data.
    """

    key: str
    name: str
    config: Mapping[str, Json]


State = Literal["done", "stopped", "failed", "died"]
"""How a trial ended: at its last round, by a rule, by an error of its own, or with its process."""


# Typed dicts and no dataclasses: messages cross to the logger's process as lines of JSON.
class StartMessage(TypedDict):
    """What a logger's process is sent before anything else of a trial."""

    do: Literal["start"]
    key: str
    name: str
    config: Mapping[str, Json]


class LogMessage(TypedDict):
    """A round."""

    do: Literal["log"]
    key: str
    step: int
    values: Values


class FinishMessage(TypedDict):
    """An end."""

    do: Literal["finish"]
    key: str
    state: State
    values: Values


Message = StartMessage | LogMessage | FinishMessage


class RunLogger(ABC):
    """Passes trials on to one program. It lives in a process of its own: it may be slow, raise, hang or die.

    Promises asked of it
        1. A trial that is started again is the same run there, as far as the program can go on with one.
        2. The x axis is the number of edits.

    Args:
        sweep: name of the sweep, under which its trials stand together.
        folder: for files that it writes by default.
    """

    package: ClassVar[str]
    """What must be importable."""

    def __init__(self, sweep: str, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder

    @abstractmethod
    def start(self, trial: Started) -> None:
        """Open the run of a trial."""

    @abstractmethod
    def log(self, key: str, step: int, values: Values) -> None:
        """Take what was measured of a trial after *step* edits."""

    @abstractmethod
    def finish(self, key: str, state: State, values: Values) -> None:
        """Close the run of a trial that ended, with its last values."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open: those trials were interrupted, and may go on in a later run."""


def flat(config: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the leaves of *config* with their paths; a list is a leaf.

    >>> dict(flat({"editor": {"name": "rome", "layers": [5]}, "seed": 0}))
    {'editor/name': 'rome', 'editor/layers': [5], 'seed': 0}
    """
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
