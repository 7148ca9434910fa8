"""Who wins: what is stated on the command line over what a search space says elsewhere of the same key.

In a search space a trial's value comes from the first of these that has the key: the arm's ``space``, the sweep's ``space``, the
arm, ``base``, hyper-parameter files, defaults. A stated value stands above all of them:

* of all arms (``seed=9``): the sweep's domain becomes that one value; arms' own values and domains of the key are dropped,
* of one arm (``arms.rome.seed=9``): its own domain of the key is dropped, and in that arm the sweep's becomes that one value,
* a domain takes the place of a domain in the same way,
* of two statements the arm's own is the narrower one, and holds in that arm.

The notes of a plan name what is replaced. What cannot win is refused, with the name and place of what hides it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from raysweep.config.merge import KEYS_OF_ONE_NAME
from raysweep.config.places import KeyPath, Place, Source
from raysweep.config.problems import problem
from raysweep.config.space import is_domain
from raysweep.errors import Problem
from raysweep.jsontypes import Json, JsonObject, items_of, mapping_of

_SECTIONS = ("model", "data", "protocol")
_ALONE = ("seed", "threads")
_PARTS = ("editor", "wrap")


@dataclass(frozen=True, slots=True)
class Statement:
    """That one key has one value in one arm, or in all (None); or, if *swept*, the domain that is written as *value*."""

    arm: str | None
    key: str
    value: Json
    place: Place
    swept: bool = False

    @property
    def target(self) -> tuple[str | None, str]:
        """What it is about."""
        return (self.arm, self.key)


Statements = Mapping[tuple[str | None, str], Statement]


def statements(tree: Json, path: KeyPath, value: Json, place: Place) -> Iterator[Statement]:
    """Yield what *value*, put at *path* of *tree*, states: one key at a time, mappings taken apart."""
    head, rest = path[0], path[1:]
    if head == "base":
        yield from _leaves(None, rest, value, place)
    elif head == "space":
        for key, domain in [(rest[0], value)] if rest else items_of(value):
            yield Statement(None, str(key), domain, place, swept=True)
    elif head == "arms" and not rest:
        for name, arm in items_of(value):
            yield from statements(tree, ("arms", name), arm, place)
    elif head == "arms":
        yield from _of_arm(tree, str(rest[0]), rest[1:], value, place)
    else:
        yield from _leaves(None, path, value, place)


def _of_arm(tree: Json, arm: str, path: KeyPath, value: Json, place: Place) -> Iterator[Statement]:
    """Yield what *value*, put at *path* of one arm, states."""
    if not path:
        for key, inner in items_of(value):
            yield from _of_arm(tree, arm, (key,), inner, place)
    elif path[0] == "space":
        for swept, domain in [(str(path[1]), value)] if path[1:] else items_of(value):
            yield Statement(arm, swept, domain, place, swept=True)
    elif path[0] == "wrap":
        written = mapping_of(_arm(tree, arm)).get("wrap")
        entries = list(enumerate(written)) if isinstance(written, list) else [(None, written)]
        index = path[1] if path[1:] and isinstance(path[1], int) else None
        for i, entry in entries:
            if index is not None and i != index:
                continue
            name = entry.get("name") if isinstance(entry, Mapping) else entry
            below = path[2:] if index is not None else path[1:]
            inside = value if below or index is not None or i is None else entry
            yield from _leaves(arm, ("wrap", str(name), *below), inside, place)
    else:
        yield from _leaves(arm, path, value, place)


def _leaves(arm: str | None, path: KeyPath, value: Json, place: Place) -> Iterator[Statement]:
    """Yield one statement for each key below *path*; a bare name of a section or component is its ``name``."""
    if not path:
        for key, inner in items_of(value):
            yield from _leaves(arm, (key,), inner, place)
        return
    for key, leaf in leaves(".".join(map(str, path)), value):
        parts = key.split(".")
        bare = isinstance(leaf, str) and (
            (len(parts) == 1 and key in (*KEYS_OF_ONE_NAME, "editor")) or (len(parts) == 2 and parts[0] == "wrap")
        )
        yield Statement(arm, f"{key}.name" if bare else key, leaf, place, swept=is_domain(leaf))


def leaves(key: str, value: Json) -> Iterator[tuple[str, Json]]:
    """Yield each dotted key below *key* with its value; a list, a domain and an empty mapping are values."""
    whole = is_domain(value)
    if isinstance(value, Mapping) and value and not whole:
        for inner, below in value.items():
            yield from leaves(f"{key}.{inner}", below)
    else:
        yield key, value


def enforce(source: Source, statements: Statements) -> tuple[Source, list[Problem]]:
    """Return *source* with everything removed or replaced that would hide a statement; and those that cannot win.

    Args:
        source: in which the statements stand already.
        statements: by what each is about.
    """
    enforcer = _Enforcer(source, statements)
    if isinstance(source.tree, dict):
        # Statements about all arms first: those about one arm win over them.
        for statement in sorted(statements.values(), key=lambda s: s.arm is not None):
            if statement.key.partition(".")[0] in (*_SECTIONS, *_ALONE, *_PARTS):
                enforcer.win(statement)
    return enforcer.source, enforcer.problems


class _Enforcer:
    """Changes one source, statement by statement."""

    def __init__(self, source: Source, statements: Statements) -> None:
        self.source = replace(source, tree=copy.deepcopy(source.tree))
        self.statements = statements
        self.problems: list[Problem] = []

    def win(self, statement: Statement) -> None:
        """Remove or replace what hides *statement*."""
        if statement.arm is None:
            if not statement.swept:
                self._over_sweep(statement)
            for name, arm in items_of(self.source.tree.get("arms")):
                if isinstance(arm, dict):
                    self._over_arm(statement, name, arm)
        else:
            arm = self.source.tree["arms"].get(statement.arm)
            if isinstance(arm, dict):
                self._in_arm(statement, statement.arm, arm)
        self._check_tied(statement)

    def _over_sweep(self, statement: Statement) -> None:
        """Let a value of all arms take the place of the sweep's domain of its key."""
        for key in _hiding(self.source.tree, statement.key):
            self._note(statement, ("space", key), f"the sweep's domain of '{key}'")
            if key == statement.key and _plain(statement.value):
                self._pin(("space", key), statement)
            else:
                del self.source.tree["space"][key]

    def _over_arm(self, statement: Statement, name: str, arm: JsonObject) -> None:
        """Let a statement about all arms take the place of what one arm says, but for statements about that arm."""
        for key in _hiding(arm, statement.key):
            if (name, key) not in self.statements:
                self._note(statement, ("arms", name, "space", key), f"the domain of '{key}' in arm '{name}'")
                _drop_domain(arm, key)
        # Somebody stated this arm's own value, too; the nearer statement holds.
        if (name, statement.key) in self.statements:
            return
        head, _, below = statement.key.partition(".")
        if head in KEYS_OF_ONE_NAME and below == "name":
            self._rename(statement, name, arm, head)
        elif head not in _PARTS:
            if self._drop(arm, statement.key.split(".")):
                self._note(statement, ("arms", name, *statement.key.split(".")), f"'{statement.key}' of arm '{name}'")
        elif statement.swept:
            self._drop_path(arm, statement.key)

    def _rename(self, statement: Statement, name: str, arm: JsonObject, section: str) -> None:
        """Let one model or dataset of all arms take the place of an arm's own, with what the arm says of that."""
        replaced = arm.get(section)
        before = _name(replaced)
        if before is None or before == statement.value:
            return
        self._note(statement, ("arms", name, section), f"{section} '{before}' of arm '{name}'")
        # A path or revision belongs to the model that was named beside it, not to the new one.
        tied = {k for k in KEYS_OF_ONE_NAME[section] if (name, f"{section}.{k}") not in self.statements}
        remaining = {k: v for k, v in items_of(replaced) if k != "name" and k not in tied}
        arm.pop(section)
        if remaining:
            arm[section] = remaining

    def _in_arm(self, statement: Statement, name: str, arm: JsonObject) -> None:
        """Let a statement about one arm take the place of what is swept there."""
        if statement.swept:
            if statement.key in mapping_of(arm.get("space")):  # else it stands in the editor or wrapper itself
                self._drop_path(arm, statement.key)
            return
        for key in _hiding(arm, statement.key):
            self._note(statement, ("arms", name, "space", key), f"the domain of '{key}' in arm '{name}'")
            _drop_domain(arm, key)
        for key in _hiding(self.source.tree, statement.key):
            if key == statement.key and _plain(statement.value):
                self._note(statement, ("space", key), f"the sweep's domain of '{key}' in arm '{name}'")
                self._pin(("arms", name, "space", key), statement)
                continue
            where = self.source.key(("space", key))
            message = f"'{statement.key}' of arm '{name}' is hidden by the sweep's domain of '{key}'{_at(where)}"
            self.problems.append(
                problem(statement.place, message, f"remove '{key}' from space, or set it for all arms")
            )

    def _check_tied(self, statement: Statement) -> None:
        """Note where a key of one model or dataset (``data.path``) is not used, as another is named; refuse it if everywhere."""
        section, _, key = statement.key.partition(".")
        if statement.swept or key not in KEYS_OF_ONE_NAME.get(section, ()):
            return
        tree = self.source.tree
        base = _name(mapping_of(tree.get("base")).get(section))
        used, others = False, dict[str, None]()
        for arm, tree_of_arm in items_of(tree.get("arms")):
            if statement.arm not in (None, arm) or (statement.arm is None and (arm, statement.key) in self.statements):
                continue
            arm_name = _name(mapping_of(tree_of_arm).get(section))
            expected = arm_name if statement.arm is not None and arm_name is not None else base
            if arm_name not in (None, expected):
                others[f"arm '{arm}' has {section} '{arm_name}'{_at(self.source.value(('arms', arm, section)))}"] = None
                continue
            names, path = _swept_names(tree, arm, f"{section}.name")
            used |= expected is None or not names or expected in names
            if expected is not None:
                there = _at(self.source.value(path))
                others |= dict.fromkeys(f"{section}.name is swept over '{n}'{there}" for n in names if n != expected)
        if others and used:
            note = f"{statement.place.file} is of {section} '{base}' alone: {'; '.join(others)}"
            self.source = replace(self.source, notes=(*self.source.notes, note))
        elif others:
            message = f"'{statement.key}' has no effect: {'; '.join(others)}"
            self.problems.append(problem(statement.place, message, f"set {section}.name, too, or the arm's own key"))

    def _pin(self, path: KeyPath, statement: Statement) -> None:
        """Put a domain of one value at *path*."""
        here = self.source.tree
        for part in path[:-1]:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]
        # A grid of one value: a `space` holds domains, and no plain value.
        here[path[-1]] = {"grid": [statement.value]}
        self.source = self.source.replaced(path, self.source.tree, statement.place, "")

    def _drop(self, tree: JsonObject, path: list[str]) -> bool:
        """Remove the value at *path*, and the mappings that it leaves empty; tell whether there was one."""
        if path[0] not in tree:
            return False
        if len(path) == 1:
            del tree[path[0]]
            return True
        below = tree[path[0]]
        if not isinstance(below, dict) or not self._drop(below, path[1:]):
            return False
        if not below:
            del tree[path[0]]
        return True

    def _drop_path(self, arm: JsonObject, key: str) -> None:
        """Remove a domain that is written in an arm's editor or wrapper in place of a value."""
        head, _, below = key.partition(".")
        written = arm.get(head)
        entries = written if isinstance(written, list) else [written]
        wrapper, _, inside = below.partition(".")
        for entry in (e for e in entries if isinstance(e, dict)):
            if head == "wrap" and entry.get("name") != wrapper:
                continue
            *parts, last = (inside if head == "wrap" else below).split(".")
            here: Json = entry
            for part in parts:
                here = here.get(part) if isinstance(here, dict) else None
            if isinstance(here, dict) and is_domain(here.get(last)):
                del here[last]

    def _note(self, statement: Statement, path: KeyPath, what: str) -> None:
        note = f"{statement.place.file} replaces {what}{_at(self.source.key(path))}"
        self.source = replace(self.source, notes=(*self.source.notes, note))


def hidden_values(tree: Json, source: Source) -> Iterator[str]:
    """Yield a note for each value of a search space that a domain in it hides, so that it is no trial's."""
    swept: dict[str, tuple[KeyPath, Json]] = {k: (("space", k), d) for k, d in items_of(mapping_of(tree).get("space"))}
    places: list[tuple[KeyPath, Json, str, Mapping[str, tuple[KeyPath, Json]]]] = []
    places.append((("base",), mapping_of(tree).get("base"), "base", swept))
    for name, arm in items_of(mapping_of(tree).get("arms")):
        sections = {k: v for k, v in items_of(arm) if k in (*_SECTIONS, *_ALONE, "editor")}
        of_arm = {k: (("arms", name, "space", k), d) for k, d in items_of(mapping_of(arm).get("space"))}
        places.append((("arms", name), sections, f"arm '{name}'", {**swept, **of_arm}))
    for path, values, what, domains in places:
        for section, value in items_of(values):
            for key, leaf in leaves(str(section), value):
                where, domain = domains.get(key, ((), None))
                # A pinned statement is a domain of one value; the same value elsewhere is not hidden by it.
                if is_domain(domain) and list(*domain.values()) != [leaf]:
                    at = _at(source.value((*path, *key.split("."))))
                    yield f"'{key}' of {what}{at} has no effect: it is swept{_at(source.key(where))}"


def _hiding(tree: Mapping[str, Json], key: str) -> list[str]:
    """Return the keys of the ``space`` of *tree* whose domain would hide a value of *key*."""
    return [swept for swept in mapping_of(tree.get("space")) if _overlap(swept, key)]


def _name(section: Json) -> Json:
    """Return the name that a section gives, bare or in a mapping; None without one."""
    return section.get("name") if isinstance(section, Mapping) else section


def _swept_names(tree: Mapping[str, Json], arm: str, key: str) -> tuple[list[Json], KeyPath]:
    """Return the values over which *key* is swept in *arm*, none if it is not, and where that is written."""
    in_arm: KeyPath = ("arms", arm, "space", key)
    for path, space in ((in_arm, mapping_of(_arm(tree, arm)).get("space")), (("space", key), tree.get("space"))):
        if key in mapping_of(space):
            domain = mapping_of(space)[key]
            return (list(*domain.values()), path) if is_domain(domain) else ([], path)
    return [], in_arm


def _arm(tree: object, name: str) -> Json:
    """Return what is written of the arm called *name*; None without one."""
    return mapping_of(mapping_of(tree).get("arms")).get(name)


def _drop_domain(arm: JsonObject, key: str) -> None:
    """Remove the domain of *key* from the ``space`` of *arm*, in place."""
    space = arm.get("space")
    if isinstance(space, dict):
        del space[key]


def _overlap(swept: str, key: str) -> bool:
    """Tell whether a domain of *swept* sets *key*, a part of it, or what it is a part of."""
    return swept == key or swept.startswith(f"{key}.") or key.startswith(f"{swept}.")


def _plain(value: Json) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _at(place: Place) -> str:
    """Return where something stands, in brackets; nothing if that is not known."""
    return f" ({place.file}:{place.line}:{place.column})" if place.line else f" ({place.file})" if place.file else ""
