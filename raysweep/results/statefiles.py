"""The JSON files that say where a trial stands: their names, their shape, and the version that wrote them.

``trial.json`` is written first, ``snapshot.json`` after each round, and ``DONE.json``, ``FAILED.json`` or ``STOPPED.json`` last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raysweep.config.schema import TrialSpec
from raysweep.config.space import Scalar
from raysweep.errors import DamagedError, NewerFormatError
from raysweep.results.folder import Folder
from raysweep.results.schema import TABLES

TRIAL, SNAPSHOT, HEARTBEAT, PLAN = "trial.json", "snapshot.json", ".heartbeat", "plan.json"
# Lists a finished trial's timing files, which differ between equal runs, so that DONE.json need not: equal runs have equal ones.
TIMES = "timing.json"
FORMAT = 2  # of all of them; what raysweep 0.1 wrote has no such field and counts as 1
_TABLE_NAMES = frozenset(table.name for table in TABLES)


class _StateFile(BaseModel):
    # Strict: a file that somebody edited counts as damaged rather than as something near it.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    format: int = 1


class TableFile(BaseModel):
    """One Parquet file of a trial, as it was written."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    table: str
    step: int = Field(ge=0)
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    blake2b: str

    @model_validator(mode="after")
    def _known_table(self) -> TableFile:
        if self.table not in _TABLE_NAMES:
            raise ValueError(f"there is no table '{self.table}'")
        return self

    @property
    def name(self) -> str:
        """The file's name in the trial's folder."""
        return file_name(self.table, self.step)


class BegunAs(BaseModel):
    """What a trial was called when it was begun; raysweep 0.1 wrote that at the top level of ``trial.json``."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    arm: str
    point: dict[str, Scalar]


class TrialFile(_StateFile):
    """``trial.json``: everything a trial's numbers depend on, and where they were computed."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    key: str
    begun_as: BegunAs | None = None
    arm: str = ""
    point: dict[str, Scalar] = {}
    trial: dict[str, object]
    provenance: dict[str, object]
    sessions: list[dict[str, object]]


class EndFile(_StateFile):
    """What every end file has: the step that was reached."""

    step: int = Field(ge=0)


class StoppedFile(EndFile):
    """``STOPPED.json``: the rule by which the trial was stopped, and why it applied; empty = written before there were any."""

    rule: str = ""
    reason: str = ""


class DoneFile(EndFile):
    """``DONE.json``: the trial's files; None = written by raysweep 0.1, which did not list them."""

    files: tuple[TableFile, ...] | None = None

    @model_validator(mode="after")
    def _lists_files(self) -> DoneFile:
        if self.format > 1 and self.files is None:
            raise ValueError("it does not list the trial's files")
        return self


class TimesFile(_StateFile):
    """``timing.json``: a finished trial's timing files."""

    files: tuple[TableFile, ...]


class FailedFile(EndFile):
    """``FAILED.json``: what ended the trial."""

    type: str
    message: str
    traceback: str = ""


class SnapshotFile(_StateFile):
    """``snapshot.json``: the step to go on from, its tensors' file and checksum, and the trial's tables up to there."""

    step: int = Field(ge=0)
    file: str
    blake2b: str
    meta: dict[str, object]
    files: tuple[TableFile, ...] | None = None


class PlannedFile(BaseModel):
    """A trial in ``plan.json``."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    key: str
    arm: str | None = None
    point: dict[str, Scalar] = {}
    seed: int | None = None
    rounds: tuple[int, ...] = ()


class PlanFile(_StateFile):
    """``plan.json``: which trials the latest command asked for, of which study, from which file."""

    sweep: str
    study: str = ""
    file: str = ""
    trials: tuple[PlannedFile, ...]
    search: dict[str, object] = {}


T = TypeVar("T", bound=_StateFile)


def file_name(table: str, step: int) -> str:
    """Return the name of the file of *table* that was written at *step*."""
    # Padded, so that names sort as steps do.
    return f"{table}-{step:06d}.parquet"


def read_state(folder: Folder, name: str, kind: type[T]) -> T | None:
    """Return the state file *name*, or None if there is none.

    Raises:
        DamagedError: it is not JSON, or has another shape than *kind*.
        NewerFormatError: a newer raysweep wrote it.
    """
    try:
        text = folder.read(name)
    # Absence is no damage: which of these files are there is how a trial's state is told.
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{folder.path(name)} cannot be read: {_first_line(error)}") from error
    try:
        data = json.loads(text)
    # Brackets nested too deep raise RecursionError, which is no ValueError.
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{folder.path(name)} is not JSON: {_first_line(error)}") from error
    if not isinstance(data, dict):
        raise DamagedError(f"{folder.path(name)} holds {_kind(data)}, not a JSON object")
    # Before the shape is examined, since a newer format may have another one; True is an int in Python, but no format.
    number = data.get("format", 1)
    if type(number) is int and number > FORMAT:
        message = f"{folder.path(name)} has format {number}; this raysweep reads up to {FORMAT}"
        raise NewerFormatError(message, hint="upgrade raysweep")
    try:
        # in JSON mode, so that a list is taken for a tuple and nothing else for anything else
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise DamagedError(f"{folder.path(name)} is damaged: {complaint(error)}") from error


def read_trial(folder: Folder, key: str) -> tuple[TrialFile, TrialSpec] | None:
    """Return the ``trial.json`` of *key* and the specification in it, or None if there is none.

    Raises:
        DamagedError: it is not a ``trial.json``, or that of another trial.
        NewerFormatError: a newer raysweep wrote it.
    """
    about = read_state(folder, f"{key}/{TRIAL}", TrialFile)
    if about is None:
        return None
    path = folder.path(f"{key}/{TRIAL}")
    # A folder that was copied or renamed by hand has the numbers of another trial.
    if about.key != key:
        raise DamagedError(f"{path} is that of trial {about.key}")
    try:
        return about, TrialSpec.read_back(about.trial)
    except ValidationError as error:
        raise DamagedError(f"{path} is damaged: {complaint(error, 'trial.')}") from error


def read_plan(folder: Folder) -> PlanFile | None:
    """Return the sweep's ``plan.json``, or None if there is none.

    Raises:
        DamagedError: it is not a plan.
        NewerFormatError: a newer raysweep wrote it.
    """
    return read_state(folder, PLAN, PlanFile)


def complaint(error: ValidationError, prefix: str = "") -> str:
    """Return the first thing that *error* complains of, in one line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{prefix}{place}: {message}" if place else message


def listed(files: Sequence[TableFile]) -> list[dict[str, object]]:
    """Return *files* as JSON data, by step and table."""
    # Sorted, so that equal runs write the same bytes.
    return [file.model_dump() for file in sorted(files, key=lambda f: (f.step, f.table))]


def _kind(data: object) -> str:
    names = {
        "NoneType": "null",
        "bool": "true or false",
        "list": "a list",
        "str": "a text",
        "int": "a number",
        "float": "a number",
    }
    return names.get(type(data).__name__, type(data).__name__)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
