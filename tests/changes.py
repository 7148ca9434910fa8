"""Change one input at a time: every leaf of a specification, each to another valid value."""

from __future__ import annotations

import copy
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Path = tuple[str, ...]
_NESTED: tuple[Any, ...] = ("x", 1, 0.5, True, ["x"], [1], [[1, 1]], {})


def changes(kind: type[BaseModel], value: BaseModel, stuck: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield, for every leaf of *value*, its dotted name and a valid *kind* in which it alone is another.

    A leaf is what is no specification: a number, a text, a list, a free mapping. Where *kind* has a specification or nothing
    (``X | None``), nothing is tried as well.

    Args:
        kind: of *value*.
        value: what to start from.
        stuck: leaves that have one valid value only.

    Raises:
        AssertionError: no other value of some leaf is valid (help by another starting point), or one that is stuck is not.
    """
    tree = value.model_dump(mode="json")
    for path, annotation in _leaves(kind, tree, ()):
        # What stands in no dump at its default is asked of the value itself.
        now = _at(tree, path[:-1]).get(path[-1], _of(value, path))
        for candidate in (*_literals(annotation, now), *_others(now)):
            if candidate == now and type(candidate) is type(now):
                continue
            changed = copy.deepcopy(tree)
            _at(changed, path[:-1])[path[-1]] = candidate
            try:
                made = kind.model_validate(changed)
            except (ValidationError, ValueError):
                continue
            if made.model_dump(mode="json") != tree:
                assert ".".join(path) not in stuck
                yield ".".join(path), made
                break
        else:
            if ".".join(path) in stuck:
                continue
            raise AssertionError(f"no other value of {kind.__name__}.{'.'.join(path)} is valid than {now!r}")


def leaves(kind: type[BaseModel]) -> list[str]:
    """Return the dotted names of all fields of *kind*, down to what is no specification."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        below = _spec(field.annotation)
        found += [f"{name}.{leaf}" for leaf in leaves(below)] if below is not None else [name]
    return found


def _leaves(kind: type[BaseModel], tree: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for name, field in kind.model_fields.items():
        below = _spec(field.annotation)
        if below is not None and isinstance(tree[name], Mapping):
            yield from _leaves(below, tree[name], (*path, name))
        else:
            yield (*path, name), field.annotation


def _spec(annotation: Any) -> type[BaseModel] | None:
    """Return the specification that *annotation* is, or is one of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return _spec(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _spec(part)) is not None), None)
    return None


def _literals(annotation: Any, now: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from (choice for choice in get_args(annotation) if choice != now)
    for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple) else ():
        yield from _literals(part, now)


def _others(now: Any) -> Iterator[Any]:
    if isinstance(now, bool):
        yield not now
    elif isinstance(now, int | float):
        yield from (now + 1, now * 2, now / 2, now - 1, now + 0.25, now - 0.25, str(now))
    elif isinstance(now, str):
        yield from (f"{now}x", "none", "2", f"{now}, x")
    elif isinstance(now, list):
        last = now[-1] if now else None
        if now and all(type(v) is int for v in now):  # blocks, rounds
            yield [now[0] - 1, *now[1:]] if now[0] > 0 else [*now[:-1], now[-1] + 1]
        yield from ([*now, *more] for more in ([last], [12], ["x"], [[1, 1]], [0.5]) if more != [None])
        yield from (now[:-1], [*now[:-1], 24], [v / 2 for v in now if isinstance(v, float)], now[::-1])
        yield from ([*now, {"name": "x"}], [["x", 1]], ["x", "y"], ["P1"], ["Q1"])
    elif isinstance(now, Mapping):
        yield {**now, "x": 1}
        yield {**now, "x": "1"}
    yield from _NESTED if now is None else (None,)


def _of(value: Any, path: Path) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree
