"""Exceptions → located problems: what pydantic or a component says, at the place where the value was written."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raysweep.config.places import KeyPath, Place
from raysweep.config.space import is_domain
from raysweep.errors import Problem, ProtocolError, RaysweepError, SpecError, nearest

Locate = Callable[[KeyPath, bool], Place]


def problem(place: Place, message: str, hint: str = "", code: str = SpecError.code) -> Problem:
    """Return *message* as a problem at *place*."""
    return Problem(code=code, message=message, hint=hint, file=place.file, line=place.line, column=place.column)


def from_error(error: RaysweepError, place: Place) -> Problem:
    """Return what a component complained about, at *place*."""
    return problem(place, error.message, error.hint, error.code)


def unknown_keys(tree: Mapping[str, Any], known: Iterable[str], what: str, at: Callable[[str], Place]) -> list[Problem]:
    """Return one problem per key of *tree* that is not *known*."""
    table = tuple(known)
    return [problem(at(k), f"unknown key '{k}' in {what}", nearest(k, table)) for k in tree if k not in table]


def from_validation(
    error: ValidationError, spec: type[BaseModel], what: str, locate: Locate, *, ignore: str = ""
) -> list[Problem]:
    """Return the complaints of pydantic, one per place, in the words of the file.

    Args:
        error: what ``spec.model_validate`` raised.
        spec: the type that was validated.
        what: how the messages name it (``model``, ``editor 'rome'``).
        locate: returns the place of a key path inside the validated tree; the flag asks for the key itself.
        ignore: a type of complaint to leave out (``missing`` where defaults could not be looked up).
    """
    # A union complains once for each of its types; for the reader that is one problem at one place.
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    details = error.errors(include_url=False, include_context=True)
    for detail in details:
        # Of a union pydantic reports each branch; only complaints about the deepest part say what to mend.
        below = any(
            len(d["loc"]) > len(detail["loc"]) and d["loc"][: len(detail["loc"])] == detail["loc"] for d in details
        )
        if detail["type"] == ignore or (detail["type"] == "too_short" and below):  # its items were wrong, not too few
            continue
        named = detail["type"] == "extra_forbidden"  # only then is the last part a key of the file, known or not
        grouped.setdefault(_known_part(spec, detail["loc"], named), []).append(detail)
    return [_one(path, details, spec, what, locate) for path, details in grouped.items()]


def _one(path: KeyPath, details: list[ErrorDetails], spec: type[BaseModel], what: str, locate: Locate) -> Problem:
    kind = details[0]["type"]
    dotted = ".".join(str(part) for part in path)
    if kind == "extra_forbidden":
        # A digest is filled in by the plan, so it is no suggestion of what to write.
        owner = [f for f in fields_at(spec, path[:-1]) if f != "digest"]
        inside = f"{what}, {'.'.join(map(str, path[:-1]))}" if path[:-1] else what
        return problem(locate(path, True), f"unknown key '{path[-1]}' in {inside}", nearest(str(path[-1]), owner))
    if kind == "missing":
        return problem(locate(path[:-1], True), f"{what} needs the key '{dotted}'")
    message = " or ".join(dict.fromkeys(_sentence(d) for d in details))
    is_ours = kind == "value_error"
    got = "" if is_ours else f", got {_short(details[0]['input'])}"
    # Of a ValueError pydantic keeps the text alone, so complaints about rounds are told by that.
    code = ProtocolError.code if is_ours and "rounds" in message else SpecError.code
    blamed = path or _first_named(spec, message)
    hint = "" if is_ours else _hint(details)
    return problem(locate(blamed, False), f"{what}: {f'{dotted}: ' if dotted else ''}{message}{got}", hint, code)


def _hint(details: list[ErrorDetails]) -> str:
    """Return how to write what a value looks like: a number, a text, or a domain, which belongs elsewhere; empty if nothing."""
    value, kinds = details[0]["input"], {detail["type"] for detail in details}
    if is_domain(value):
        return "to sweep it, write it into the arm's 'space', under its dotted key: editor.… or wrap.<wrapper>.…"
    if "string_type" in kinds and isinstance(value, Mapping):
        return "quote text that holds ': '"
    # As the file has it: YAML writes true and false in small letters, Python does not.
    if "string_type" in kinds and isinstance(value, bool | int | float):
        return f'quote it, so that YAML takes it for text: "{str(value).lower() if isinstance(value, bool) else value}"'
    if not kinds & {"int_type", "float_type"}:
        return ""
    # 1e15 lies below 2**53, up to which a float holds every whole number.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}: a whole number has no point and no exponent"
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value)
            whole = number.is_integer() and abs(number) < 1e15
            return f"write {int(number) if whole and 'int_type' in kinds else value.strip()}, without quotes"
    return ""


def _short(value: Any, width: int = 200) -> str:
    """Return *value* as a message shows it: never more than a line or two."""
    shown = repr(value)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def _first_named(spec: type[BaseModel], message: str) -> KeyPath:
    """Return the key that a complaint about the whole of *spec* begins with (``rounds must …``, ``graph.path: …``), or ()."""
    path = tuple(message.partition(" ")[0].rstrip(",:").split("."))
    return path if all(part in fields_at(spec, path[:end]) for end, part in enumerate(path)) else ()


def _sentence(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


def fields_at(spec: type[BaseModel], path: KeyPath) -> tuple[str, ...]:
    """Return the keys that the model at *path* inside *spec* knows; none where there is no model."""
    here: type[BaseModel] | None = spec
    for part in path:
        if isinstance(part, int):
            continue
        info = here.model_fields.get(part) if here else None
        here = _model_in(info.annotation) if info else None
    return tuple(here.model_fields) if here else ()


def _known_part(spec: type[BaseModel], loc: tuple[int | str, ...], named: bool) -> KeyPath:
    """Return *loc* without the names of union branches that pydantic puts into it; its last part stays if *named*."""
    known: list[int | str] = []
    here: type[BaseModel] | None = spec
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            known.append(part)
        elif here is not None and part in here.model_fields:
            known.append(part)
            here = _model_in(here.model_fields[part].annotation)
        elif here is not None and named and depth == len(loc) - 1:
            known.append(part)
    return tuple(known)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside an annotation such as ``tuple[TextSpec, ...] | None``."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (Union, types.UnionType, tuple, list) or get_args(annotation):
        return next((m for a in get_args(annotation) if (m := _model_in(a))), None)
    return None
