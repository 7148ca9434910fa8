"""Domains: the sets of values a swept key takes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from raysweep.config import limits
from raysweep.errors import nearest
from raysweep.jsontypes import Json
from raysweep.jsontypes import Scalar as Scalar

FORMS = ", ".join([
    "{grid: [0, 1]}", "{path: [0.1, 1]}", "{choice: [a, b]}", "{uniform: [0, 1]}", "{loguniform: [0.01, 100]}",
    "{int: [1, 8]}", "{logint: [1, 64]}",
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grid:
    """Every one of *values*, crossed with the other grids."""

    values: tuple[Scalar, ...]
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True, slots=True)
class ValuePath(Grid):
    """A grid whose values take their edits from one run over the records.

    The component says what else that implies (``BaseEditor.shareable``).
    """

    kind: ClassVar[str] = "path"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of *values*, each as likely as the others."""

    values: tuple[Scalar, ...]
    kind: ClassVar[str] = "choice"

    def draw(self, rng: random.Random) -> Scalar:
        """Return one value."""
        # Of `random` only `random()` is promised to be the same in every version of Python.
        return self.values[int(rng.random() * len(self.values))]


@dataclass(frozen=True, slots=True)
class Uniform:
    """A number between *low* and *high*, to six digits."""

    low: float
    high: float
    kind: ClassVar[str] = "uniform"

    def draw(self, rng: random.Random) -> float:
        """Return one number."""
        # Rounding to six digits may step over an end, hence the clip.
        return _clip(_six(self.low + rng.random() * (self.high - self.low)), self.low, self.high)


class LogUniform(Uniform):
    """A number between *low* and *high* whose logarithm is uniform, to six digits."""

    kind: ClassVar[str] = "loguniform"

    def draw(self, rng: random.Random) -> float:
        """Return one number."""
        span = math.log(self.high) - math.log(self.low)
        return _clip(_six(math.exp(math.log(self.low) + rng.random() * span)), self.low, self.high)


@dataclass(frozen=True, slots=True)
class IntRange:
    """A whole number from *low* to *high*, both included."""

    low: int
    high: int
    kind: ClassVar[str] = "int"

    def draw(self, rng: random.Random) -> int:
        """Return one number."""
        return self.low + int(rng.random() * (self.high - self.low + 1))


class LogInt(IntRange):
    """A whole number from *low* to *high*, both included, small ones as likely per decade as large ones."""

    kind: ClassVar[str] = "logint"

    def draw(self, rng: random.Random) -> int:
        """Return one number."""
        # Up to high + 1, so that the largest number has all of its share when `int` cuts.
        span = math.log(self.high + 1) - math.log(self.low)
        # The last bit of exp and log may carry a draw beyond either end.
        return min(self.high, max(self.low, int(math.exp(math.log(self.low) + rng.random() * span))))


Drawn = Choice | Uniform | LogUniform | IntRange | LogInt
Domain = Grid | Drawn


def parse(tree: object) -> Domain:
    """Return the domain written as *tree*.

    Raises:
        ValueError: it is not a domain; the message shows the right form.

    >>> parse({"loguniform": [0.01, 100]})
    LogUniform(low=0.01, high=100.0)
    """
    if isinstance(tree, list):
        raise ValueError(f"a domain must say what it is; write {{grid: {_flow(tree)}}}   forms: {FORMS}")
    if not isinstance(tree, Mapping):
        raise ValueError(f"a domain must say what it is; write {{grid: [{_flow(tree)}]}}   forms: {FORMS}")
    if len(tree) != 1:
        raise ValueError(f"a domain is one of {FORMS}; got the keys {sorted(tree)}")
    ((kind, argument),) = tree.items()
    if kind not in _MAKERS:
        raise ValueError(f"unknown domain '{kind}'; {nearest(str(kind), _MAKERS)}")
    if not isinstance(argument, list):
        raise ValueError(f"'{kind}' takes a list: {FORMS}")
    return _MAKERS[kind](kind, argument)


def is_domain(tree: object) -> TypeGuard[Mapping[str, list[Json]]]:
    """Tell whether *tree* looks like a domain: one of their names and a list."""
    return (
        # The list matters: a component may have a mapping with a single key `path` of its own.
        isinstance(tree, Mapping)
        and len(tree) == 1
        and all(k in _MAKERS and isinstance(v, list) for k, v in tree.items())
    )


def as_tree(domain: Domain) -> dict[str, list[Scalar]]:
    """Return *domain* as it is written in YAML; the inverse of :func:`parse`."""
    if isinstance(domain, Grid | Choice):
        return {domain.kind: list(domain.values)}
    return {domain.kind: [domain.low, domain.high]}


def _listed(kind: str, argument: list[Json]) -> Domain:
    if not argument:
        raise ValueError(f"'{kind}' needs at least one value")
    odd = [v for v in argument if not (v is None or isinstance(v, bool | int | float | str))]
    if odd:
        raise ValueError(f"'{kind}' takes plain values, got {_flow(odd[0])}; for lists and mappings write one arm each")
    return _LISTS[kind](tuple(v for v in argument if not isinstance(v, list | dict)))


# Any: whether they are numbers, and of which kind, is what the next function finds out.
def _bounds(kind: str, argument: list[Any], types: tuple[type, ...]) -> tuple[Any, Any]:
    # True is an int in Python, but no number of YAML.
    good = len(argument) == 2 and all(isinstance(v, types) and not isinstance(v, bool) for v in argument)
    if not good:
        what = "whole numbers" if types == (int,) else "numbers"
        raise ValueError(f"'{kind}' takes two {what}, [low, high], got {_flow(argument)}")
    low, high = argument
    if types == (int,) and not all(limits.SMALLEST <= v < limits.LARGEST for v in argument):
        raise ValueError(f"'{kind}' takes whole numbers of 64 bits, got {_flow(argument)}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"'{kind}' needs low < high, got {_flow(argument)}")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"'{kind}' needs low > 0, got {_flow(argument)}")
    # Two finite ends may lie further apart than a float can hold; every draw would be infinite.
    if not math.isfinite(high - low):
        raise ValueError(f"'{kind}' spans more than a number can hold, got {_flow(argument)}")
    return low, high


def _real(kind: str, argument: list[Json]) -> Domain:
    low, high = _bounds(kind, argument, (int, float))
    return (Uniform if kind == "uniform" else LogUniform)(float(low), float(high))


def _whole(kind: str, argument: list[Json]) -> Domain:
    low, high = _bounds(kind, argument, (int,))
    return (IntRange if kind == "int" else LogInt)(low, high)


_LISTS: Mapping[str, type[Grid] | type[Choice]] = {"grid": Grid, "path": ValuePath, "choice": Choice}
_MAKERS: Mapping[str, Callable[[str, list[Json]], Domain]] = {
    "grid": _listed,
    "path": _listed,
    "choice": _listed,
    "uniform": _real,
    "loguniform": _real,
    "int": _whole,
    "logint": _whole,
}


def _six(value: float) -> float:
    """Return *value* to six significant digits: readable, and the same whatever the machine's last bit."""
    return float(f"{value:.6g}")


def _clip(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _flow(value: object) -> str:
    """Return *value* in YAML's flow form, near enough for a message."""
    if isinstance(value, list):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
