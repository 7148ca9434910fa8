"""``--set key=value`` from the command line, laid over a search space before it is read.

Whatever is stated there takes effect, or is refused by name (:mod:`raysweep.config.precedence`). Order does not matter: the
broader key is laid first, and one key may not be given two values.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raysweep.config import limits, precedence
from raysweep.config.load import parse_value
from raysweep.config.merge import KEYS_OF_ONE_NAME
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.precedence import Statement
from raysweep.config.problems import from_error, problem
from raysweep.config.space import is_domain
from raysweep.errors import Problem, ProblemsError, SpecError, YamlError, nearest
from raysweep.jsontypes import Json, JsonObject
from raysweep.workspace import resolve_from_cwd

BASE_KEYS = ("model", "data", "protocol", "threads", "seed")
TOP_KEYS = ("sweep", "study", "base", "arms", "space", "search", "resources")
FILE_KEYS = ("path", "tokenizer", "file")
"""Keys whose text is a place in the file system; on the command line it counts from the current folder."""
_NAMED = ("model", "data", "editor", "wrap")


@dataclass(frozen=True, slots=True)
class Override:
    """One value laid over a tree.

    Attributes:
        key: dotted.
        value: as read; relative paths in it are absolute already.
        place: the argument, for messages.
    """

    key: str
    value: Json
    place: Place

    @property
    def text(self) -> str:
        """It as ``key=value``, which reads back."""
        return f"{self.key}={self.value if _reads_back(self.value) else json.dumps(self.value, ensure_ascii=False)}"

    @property
    def breadth(self) -> tuple[int, bool]:
        """Sorts broader keys first, and a section's name before its other keys, which are said of what is so named."""
        key = self.key.removeprefix("base.")
        return (-1 if key == "base" else key.count("."), not key.endswith(".name"))


def apply(source: Source, overrides: Iterable[str | Override]) -> tuple[Source, list[Problem]]:
    """Return *source* with each override laid over it, and what is wrong with those that cannot be."""
    read, problems = _parse_all(overrides)
    statements: dict[tuple[str | None, str], Statement] = {}
    # The broader ones first, so that `model=…` does not undo `model.dtype=…`.
    for one in sorted(read, key=lambda o: o.breadth):
        try:
            source, new_statements = _put_one(source, one)
        except SpecError as error:
            problems.append(from_error(error, one.place))
            continue
        for new in new_statements:
            old = statements.setdefault(new.target, new)
            problems += _contradiction(old.value, old.place, new.value, new.place, new.key)
    # Laying a value down is not enough: a domain or an arm's own value may still hide it.
    source, refused = precedence.enforce(source, statements)
    return source, problems + refused


def _parse_all(overrides: Iterable[str | Override]) -> tuple[list[Override], list[Problem]]:
    """Return each ``key=value`` of *overrides* as it is read, and what is wrong with those that are not of that form."""
    read: list[Override] = []
    problems: list[Problem] = []
    for one in overrides:
        if isinstance(one, Override):
            read.append(one)
            continue
        place = Place(_shown(one))
        try:
            read.append(Override(*_split(one), place))
        except SpecError as error:
            problems.append(from_error(error, place))
    return read, problems


def parse_overrides(overrides: Iterable[str | Override]) -> list[Override]:
    """Return each of *overrides*, for trees that are no search space (a recipe, a belief setting), the broader ones first.

    Raises:
        ProblemsError: one is not ``key=value``, or a key is given two values.
    """
    read, problems = _parse_all(overrides)
    values: dict[str, tuple[Json, Place]] = {}
    read.sort(key=lambda o: o.breadth)
    for one in read:
        for leaf in precedence.leaves(one.key, one.value):
            value, place = values.setdefault(leaf[0], (leaf[1], one.place))
            problems += _contradiction(value, place, leaf[1], one.place, leaf[0])
    if problems:
        raise ProblemsError(problems)
    return read


def _contradiction(old: Json, first: Place, new: Json, second: Place, key: str) -> list[Problem]:
    # 1 == True in Python, but a number and a truth value are two statements.
    if old == new and isinstance(old, bool) is isinstance(new, bool):
        return []
    return [problem(second, f"'{key}' is given two values, here and by {first.file}", "leave one of them out")]


def _split(text: str) -> tuple[str, Json]:
    """Return key and value of one ``key=value``.

    Raises:
        SpecError: it has no key or no equals sign.
        YamlError: the value is no YAML.
    """
    key, equals, written = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError("an override is written key=value", hint="for example --set data.size=50")
    if key.count(".") >= limits.DEPTH:
        raise SpecError(f"a key has at most {limits.DEPTH} parts")
    return key, absolute_paths(key, _value(key, written))


def absolute_paths(key: str, value: Json) -> Json:
    """Return the *value* of a dotted *key* with each relative path in it made absolute, from the current folder."""
    swept = is_domain(value)
    if isinstance(value, dict) and not swept:
        return {k: absolute_paths(str(k), v) for k, v in value.items()}
    if isinstance(value, list):
        # Without a key: of a list's items only mappings (texts, files) hold paths.
        return [absolute_paths("", v) for v in value]
    if key.rpartition(".")[2] not in FILE_KEYS:
        return value
    if isinstance(value, dict):
        return {k: [absolute_paths(key, v) for v in values] for k, values in value.items() if isinstance(values, list)}
    # `words` is a tokenizer of that name, and no file; an empty text names no file at all.
    return resolve_from_cwd(value, shipped=True) if isinstance(value, str) and value not in ("", "words") else value


def _reads_back(value: Json) -> bool:
    """Tell whether *value* is a text that needs no quotes."""
    try:
        return isinstance(value, str) and value != "" and bool(parse_value(value, "value") == value)
    except YamlError:
        return False


def _shown(text: str, width: int = 72) -> str:
    return f"--set {text}" if len(text) <= width else f"--set {text[: width - 1]}…"


def _put_one(source: Source, one: Override) -> tuple[Source, list[Statement]]:
    """Return *source* with one override in it, and what that states.

    Raises:
        SpecError: its key leads nowhere.
    """
    # A copy, since an override that is refused half-way must leave the source as it was.
    tree = copy.deepcopy(source.tree) if isinstance(source.tree, dict) else {}
    path = _path(tree, one.key, swept=is_domain(one.value))
    # `model=gpt2` is short for `model.name=gpt2`.
    if len(path) == 2 and path[0] == "base" and path[1] in KEYS_OF_ONE_NAME and isinstance(one.value, str):
        path = (*path, "name")
    if path[0] == "base" and path[2:] == ("name",):
        _drop_tied(tree, str(path[1]), one.value)
    _put(tree, path, one.value, one.key)
    statements = list(precedence.statements(tree, path, one.value, one.place))
    return source.replaced(path, tree, one.place, one.text), statements


def _value(key: str, written: str) -> Json:
    """Return the value of an override: YAML, but a path is taken as it stands, since it may hold ``: `` or `` #``."""
    if key.rpartition(".")[2] == "path" and written.strip()[:1] not in ("'", '"', "{", "["):
        return written.strip()
    return parse_value(written, "value")


def _drop_tied(tree: JsonObject, section: str, name: Json) -> None:
    """Forget what was said of another model or dataset."""
    base = tree.get("base")
    if not isinstance(base, dict):
        return
    section_values = base.get(section)
    if isinstance(section_values, dict) and section_values.get("name") != name:
        base[section] = {k: v for k, v in section_values.items() if k not in KEYS_OF_ONE_NAME[section]}


def _path(tree: JsonObject, key: str, *, swept: bool) -> KeyPath:
    """Return where in the file *key* belongs; a domain (*swept*) belongs into a ``space``."""
    head, _, rest = key.removeprefix("base.").partition(".")
    if swept and head in (*BASE_KEYS, "editor", "wrap"):
        return ("space", f"{head}.name" if head in KEYS_OF_ONE_NAME and not rest else key.removeprefix("base."))
    if key == "base" or head in BASE_KEYS:
        return ("base",) if key == "base" else ("base", head, *(rest.split(".") if rest else []))
    if key.startswith("base."):
        raise SpecError(f"unknown key '{head}' in base", hint=nearest(head, BASE_KEYS))
    if head == "arms" and rest:
        return _arm_path(tree, rest, swept=swept)
    # Keys of a `space` are dotted and never nested: what follows is one part of the path.
    if head == "space" and rest:
        return ("space", rest)
    if head in TOP_KEYS:
        return (head, *(rest.split(".") if rest else []))
    hint = nearest(head, (*BASE_KEYS, *TOP_KEYS))
    if head in ("editor", "wrap"):
        hint = (
            f"an arm's own keys are written arms.<arm>.{key}; of all arms only a domain can be set: {key}={{grid: […]}}"
        )
    raise SpecError(f"unknown key '{head}'", hint=hint)


def _arm_path(tree: JsonObject, rest: str, *, swept: bool) -> KeyPath:
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
    # An arm may be called "a.b" beside another called "a"; the longest name that fits is meant.
    fitting = [n for n in names if rest == n or rest.startswith(f"{n}.")]
    if not fitting:
        hint = nearest(rest.partition(".")[0], names)
        raise SpecError(f"unknown arm '{rest.partition('.')[0]}'", hint=hint)
    name = max(fitting, key=len)
    below = rest[len(name) + 1 :]
    if not below:
        return ("arms", name)
    head, _, tail = below.partition(".")
    if head == "space" and tail:
        return ("arms", name, "space", tail)
    if head == "wrap" and tail:
        inside = _wrap_path(arms[name], tail)
        return ("arms", name, "space", below) if swept else ("arms", name, *inside)
    return ("arms", name, "space", below) if swept and head != "space" else ("arms", name, *below.split("."))


def _wrap_path(arm: Json, tail: str) -> KeyPath:
    """Return the path of a wrapper's key, ``<wrapper>.<key>``, inside one arm."""
    wrap: Json = arm.get("wrap", []) if isinstance(arm, dict) else []
    entries: list[Json] = wrap if isinstance(wrap, list) else [wrap]
    names = [e.get("name") if isinstance(e, dict) else e for e in entries]
    wrapper, _, key = tail.partition(".")
    if wrapper not in names:
        raise SpecError(f"this arm has no wrapper '{wrapper}'", hint=nearest(wrapper, [str(n) for n in names]))
    # A single wrapper may be written without a list; then there is nothing to count.
    index: KeyPath = (names.index(wrapper),) if isinstance(wrap, list) else ()
    return ("wrap", *index, *key.split(".")) if key else ("wrap", *index)


def _put(tree: Json, path: KeyPath, value: Json, key: str) -> None:
    """Set *value* at *path*, making mappings on the way; a bare name becomes ``{name: …}``."""
    here: Any = tree  # a mapping or a list, as the next part of the path is a text or a number
    for depth, part in enumerate(path[:-1]):
        below: Json = here[part] if isinstance(part, int) else here.get(part)
        if below is None:
            below = {}
        elif isinstance(below, str) and (part in _NAMED or isinstance(part, int)):
            below = {"name": below}
        elif not isinstance(below, dict | list) or (isinstance(below, list) and not isinstance(path[depth + 1], int)):
            written = ".".join(str(p) for p in path[: depth + 1])
            raise SpecError(f"'{key}' leads into '{written}', which is no mapping")
        here[part] = below
        here = below
    here[path[-1]] = value
