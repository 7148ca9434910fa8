"""What trials are called. Names belong to the plan, numbers to the key: a trial stands wherever the latest plan puts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raysweep.config.space import Scalar

PRECISIONS = (4, 6, 9)  # significant digits of a printed number: as few as tell the values of a swept key apart


@dataclass(frozen=True, slots=True)
class TrialName:
    """One place in a sweep: an arm, a point of it, and the key of the trial that stands there.

    Several places may come to one trial (two arms with the same content, say). It runs once and is shown at each.

    Attributes:
        arm: the arm's name.
        point: the swept keys and their values.
        key: the trial's key.
        seed: the trial's seed; None = not known.
        rounds: the trial's rounds; empty = not known.
        planned: the latest plan has this place; if not, it is what an earlier plan called the trial.
    """

    arm: str
    point: Mapping[str, Scalar]
    key: str
    seed: int | None = None
    rounds: tuple[int, ...] = ()
    planned: bool = field(default=True, kw_only=True)

    def as_json(self) -> dict[str, object]:
        """Return the entry of ``plan.json``."""
        return {"key": self.key, "arm": self.arm, "point": dict(self.point), "seed": self.seed, "rounds": self.rounds}


def without_seed(point: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the swept keys and values that tell configurations apart."""
    return {key: value for key, value in point.items() if key != "seed"}


def unique(names: Iterable[TrialName]) -> tuple[TrialName, ...]:
    """Return *names* without repetitions: one arm may draw one point twice."""
    distinct: list[TrialName] = []
    seen: dict[tuple[str, str], list[Mapping[str, Scalar]]] = {}
    for name in names:
        points = seen.setdefault((name.arm, name.key), [])
        if name.point not in points:
            points.append(name.point)
            distinct.append(name)
    return tuple(distinct)


def labels(places: Sequence[tuple[str, Mapping[str, Scalar]]]) -> list[str]:
    """Return what to print for each ``(arm, point)``: the arm, and those swept keys whose values differ within it.

    A key is cut to its last parts and a number to a few digits, but only as far as the labels of different points of an arm
    remain different.

    >>> labels([("a", {"wrap.simie.lam": 1.0}), ("a", {"wrap.simie.lam": 10.0}), ("b", {})])
    ['a lam=1', 'a lam=10', 'b']
    """
    by_arm: dict[str, Callable[[Mapping[str, Scalar]], str]] = {}
    for arm in dict.fromkeys(arm for arm, _ in places):
        by_arm[arm] = _printer([point for other, point in places if other == arm])
    return [" ".join(part for part in (arm, by_arm[arm](point)) if part) for arm, point in places]


def _printer(points: Sequence[Mapping[str, Scalar]]) -> Callable[[Mapping[str, Scalar]], str]:
    """Return a function that prints a point of one arm, all of whose *points* are given."""
    keys = sorted({key for point in points for key in point})
    # By repr, since 1, 1.0 and True are equal in Python; `...` stands for a key that the point lacks.
    varying = [key for key in keys if len({repr(point.get(key, ...)) for point in points}) > 1]
    # `seed` alone always means the trial's own, so another key's last part must not be cut to it.
    short = {key: _shortest(key, {*keys, "seed"}) for key in varying}
    texts = {key: _texts([point[key] for point in points if key in point]) for key in varying}

    def text(point: Mapping[str, Scalar]) -> str:
        return " ".join(f"{short[key]}={texts[key][repr(point[key])]}" for key in varying if key in point)

    return text


def _shortest(key: str, keys: Iterable[str]) -> str:
    """Return the fewest last parts of the dotted *key* that are the last parts of no other of *keys*."""
    parts = key.split(".")
    others = [other.split(".") for other in keys if other != key]
    for count in range(1, len(parts)):
        if all(other[-count:] != parts[-count:] for other in others):
            return ".".join(parts[-count:])
    return key


def _texts(values: Sequence[Scalar]) -> dict[str, str]:
    """Return what to print for each of *values*, by its ``repr``; different values are printed differently."""
    distinct = {repr(value): value for value in values}
    for digits in PRECISIONS:
        texts = {
            key: f"{value:.{digits}g}" if isinstance(value, float) else str(value) for key, value in distinct.items()
        }
        if len(set(texts.values())) == len(distinct):
            return texts
    # Nine digits may not tell two floats apart; their repr always does.
    return {key: key for key in distinct}
