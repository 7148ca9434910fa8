"""``--set key=value`` from the command line, laid over a search space before it is read."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterable
from typing import Any

from raysweep.config import limits
from raysweep.config.load import parse_value
from raysweep.config.merge import TIED
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.problems import from_error, problem
from raysweep.config.space import is_domain
from raysweep.errors import Problem, SpecError, nearest

BASE_KEYS = ("model", "data", "protocol", "threads", "seed")
TOP_KEYS = ("sweep", "study", "base", "arms", "space", "search", "resources")
_NAMED = ("model", "data", "editor", "wrap")


def apply(source: Source, overrides: Iterable[str]) -> tuple[Source, list[Problem]]:
    """Return *source* with each ``key=value`` laid over it, and what is wrong with those that cannot be."""
    problems: list[Problem] = []
    for text in overrides:
        place = Place(_shown(text))
        try:
            source = _apply_one(source, text, place)
        except SpecError as error:
            problems.append(from_error(error, place))
        except _MisplacedError as error:
            problems.append(problem(place, error.message, error.hint))
    return source, problems


class _MisplacedError(Exception):
    """An override's key leads nowhere."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def _shown(text: str, width: int = 72) -> str:
    return f"--set {text}" if len(text) <= width else f"--set {text[: width - 1]}…"


def _apply_one(source: Source, text: str, place: Place) -> Source:
    key, equals, written = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise _MisplacedError("an override is written key=value", "for example --set data.size=50")
    if key.count(".") >= limits.DEPTH:
        raise _MisplacedError(f"a key has at most {limits.DEPTH} parts")
    value = _value(key, written)
    tree = copy.deepcopy(source.tree) if isinstance(source.tree, dict) else {}
    swept = key.partition(".")[0] in ("editor", "wrap") and is_domain(value)
    path: KeyPath = ("space", key) if swept else _path(tree, key)
    if len(path) == 2 and path[0] == "base" and path[1] in TIED and isinstance(value, str):
        _drop_tied(tree, str(path[1]), value)
        path = (*path, "name")
    _put(tree, path, value, key)
    return source.replaced(path, tree, place, text)


def _value(key: str, written: str) -> Any:
    """Return the value of an override: YAML, but a path is taken as it stands, since it may hold ``: `` or `` #``."""
    if key.rpartition(".")[2] == "path" and written.strip()[:1] not in ("'", '"', "{", "["):
        return written.strip()
    return parse_value(written, "value")


def _drop_tied(tree: dict[str, Any], section: str, name: str) -> None:
    """Forget what was said of another model or dataset."""
    base = tree.get("base")
    if not isinstance(base, dict):
        return
    said = base.get(section)
    if isinstance(said, dict) and said.get("name") != name:
        base[section] = {k: v for k, v in said.items() if k not in TIED[section]}


def _path(tree: dict[str, Any], key: str) -> KeyPath:
    """Return where in the file *key* belongs."""
    head, _, rest = key.partition(".")
    if head == "base":
        inner, _, below = rest.partition(".")
        if rest and inner not in BASE_KEYS:
            raise _MisplacedError(f"unknown key '{inner}' in base", nearest(inner, BASE_KEYS))
        return ("base", *([inner] if rest else []), *(below.split(".") if below else []))
    if head in BASE_KEYS:
        return ("base", head, *(rest.split(".") if rest else []))
    if head == "arms" and rest:
        return _arm_path(tree, rest)
    if head == "space" and rest:
        return ("space", rest)
    if head in TOP_KEYS:
        return (head, *(rest.split(".") if rest else []))
    hint = nearest(head, (*BASE_KEYS, *TOP_KEYS))
    if head in ("editor", "wrap"):
        hint = (
            f"an arm's own keys are written arms.<arm>.{key}; of all arms only a domain can be set: {key}={{grid: […]}}"
        )
    raise _MisplacedError(f"unknown key '{head}'", hint)


def _arm_path(tree: dict[str, Any], rest: str) -> KeyPath:
    """Return the path of ``arms.<rest>``; an arm's name may have dots in it."""
    arms = tree.get("arms")
    if not isinstance(arms, dict):
        arms = {}
    names = list(arms)
    if not any(rest == n or rest.startswith(f"{n}.") for n in names):  # another Unicode form of a name is that name
        composed = unicodedata.normalize("NFC", rest)
        forms = {unicodedata.normalize("NFC", n): n for n in names}
        twin = next((f for f in sorted(forms, key=len) if composed == f or composed.startswith(f"{f}.")), None)
        rest = rest if twin is None else forms[twin] + composed[len(twin) :]
    fitting = [n for n in names if rest == n or rest.startswith(f"{n}.")]
    if not fitting:
        raise _MisplacedError(f"unknown arm '{rest.partition('.')[0]}'", nearest(rest.partition(".")[0], names))
    name = max(fitting, key=len)
    below = rest[len(name) + 1 :]
    if not below:
        return ("arms", name)
    head, _, tail = below.partition(".")
    if head == "space" and tail:
        return ("arms", name, "space", tail)
    if head == "wrap" and tail:
        return ("arms", name, *_wrap_path(arms[name], tail))
    return ("arms", name, *below.split("."))


def _wrap_path(arm: Any, tail: str) -> KeyPath:
    """Return the path of a wrapper's key, ``<wrapper>.<key>``, inside one arm."""
    wrap: Any = arm.get("wrap", []) if isinstance(arm, dict) else []
    entries: list[Any] = wrap if isinstance(wrap, list) else [wrap]
    names = [e.get("name") if isinstance(e, dict) else e for e in entries]
    wrapper, _, key = tail.partition(".")
    if wrapper not in names:
        raise _MisplacedError(f"this arm has no wrapper '{wrapper}'", nearest(wrapper, [str(n) for n in names]))
    index: KeyPath = (names.index(wrapper),) if isinstance(wrap, list) else ()
    return ("wrap", *index, *key.split(".")) if key else ("wrap", *index)


def _put(tree: Any, path: KeyPath, value: Any, key: str) -> None:
    """Set *value* at *path*, making mappings on the way; a bare name becomes ``{name: …}``."""
    here: Any = tree
    for depth, part in enumerate(path[:-1]):
        below: Any = here[part] if isinstance(part, int) else here.get(part)
        if below is None:
            below = {}
        elif isinstance(below, str) and (part in _NAMED or isinstance(part, int)):
            below = {"name": below}
        elif not isinstance(below, dict | list) or (isinstance(below, list) and not isinstance(path[depth + 1], int)):
            written = ".".join(str(p) for p in path[: depth + 1])
            raise _MisplacedError(f"'{key}' leads into '{written}', which is no mapping")
        here[part] = below
        here = below
    here[path[-1]] = value
