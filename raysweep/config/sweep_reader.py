"""A tree of plain values → a :class:`SweepSpec`; every mistake of form is noted, and reading goes on behind it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError

from raysweep.config import limits
from raysweep.config.hints import nested_domains, quoted
from raysweep.config.load import codepoint
from raysweep.config.overrides import BASE_KEYS, TOP_KEYS
from raysweep.config.places import KeyPath, Source
from raysweep.config.problems import from_error, from_validation, problem, unknown_keys
from raysweep.config.schema import Spec
from raysweep.config.space import Domain, is_domain, parse
from raysweep.config.sweep_schema import ArmSpec, ResourceSpec, SearchSpec, SweepSpec, WrittenComponent, WrittenEditor
from raysweep.config.theirs import reading as theirs
from raysweep.errors import Problem, YamlError
from raysweep.jsontypes import Json, JsonObject
from raysweep.workspace import Workspace

ARM_KEYS = ("editor", "wrap", "space", *BASE_KEYS)
_SECTIONS = ("model", "data", "protocol")
_BIDI_CONTROLS = frozenset(
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c"
)  # turn the writing's direction
_NAME = re.compile(r"\w[\w.+-]*")

P = TypeVar("P", bound=Spec)


class SweepReader:
    """Reads one tree; notes problems instead of stopping at the first."""

    def __init__(self, source: Source, workspace: Workspace | None = None) -> None:
        self.source = source
        self.workspace = workspace or Workspace.here(None)
        self.problems: list[Problem] = []
        self.unread: set[str] = set()
        self.files: dict[str, Source] = {}

    def sweep(self) -> SweepSpec | None:
        """Return the sweep as far as it can be read, or None if nothing of it can."""
        tree = self.source.tree
        if not isinstance(tree, dict):
            hint = "a search space starts with 'sweep: name'; see search_spaces/README.md"
            self.say((), "the file is empty" if tree is None else "a search space is a mapping of keys", hint)
            return None
        self.unknown(tree, (), TOP_KEYS, "a search space")
        name = self.name(tree)
        study = tree.get("study", "lifelong")
        if not isinstance(study, str):
            self.say(("study",), f"study must be a name, got {study!r}")
        base = self.base(self.mapping(tree, ("base",)), ("base",), BASE_KEYS, "base")
        arms = self.arms(tree)
        space = self.space(tree, ("space",))
        search = self.part(tree, "search", SearchSpec)
        resources = self.part(tree, "resources", ResourceSpec)
        return SweepSpec(
            name=name,
            study=study if isinstance(study, str) else "lifelong",
            base=base,
            arms=arms,
            space=space,
            search=search or SearchSpec(),
            resources=resources or ResourceSpec(),
            source=replace(self.source, tree=tree),
            unread=frozenset(self.unread),
        )

    def name(self, tree: JsonObject) -> str:
        """Return the sweep's name, which is also a folder's."""
        name = tree.get("sweep")
        if name is None:
            self.say((), "a search space needs the key 'sweep' (its name, and that of its results folder)")
        elif not isinstance(name, str):
            self.say(("sweep",), f"sweep: {name!r} is no folder name: a name is text", quoted("sweep", name))
        elif not _NAME.fullmatch(name):
            self.say(("sweep",), f"sweep: {name!r} is no folder name", "use letters, digits, '_', '-', '+' and '.'")
        elif len(name.encode()) > limits.NAME_BYTES:
            self.say(("sweep",), f"sweep: a name has at most {limits.NAME_BYTES} bytes, this one {len(name.encode())}")
        return str(name)

    def arms(self, tree: JsonObject) -> tuple[ArmSpec, ...]:
        """Return the arms that can be read."""
        arms = self.mapping(tree, ("arms",))
        # A scalar or list there was noted by `mapping` already.
        if not arms and not isinstance(tree.get("arms"), str | int | float | list):
            self.say(("arms",), "a search space needs at least one arm", "arms: {rome: {editor: rome}}")
        shown: dict[str, str] = {}
        for name in arms:
            # "é" is one character or two; a reader sees the same name either way.
            twin = shown.setdefault(unicodedata.normalize("NFC", name), name)
            if twin != name:
                message = f"arms '{twin}' and '{name}' have the same name in two Unicode forms"
                self.say(("arms", name), message, "give them names that can be told apart", key=True)
        specs = (self.arm(name, arms[name], ("arms", name)) for name in arms)
        return tuple(arm for arm in specs if arm is not None)

    def arm(self, name: str, tree: Json, path: KeyPath) -> ArmSpec | None:
        """Return one arm, or None if its editor or a section of it cannot be told."""
        self.arm_name(name, path)
        if not isinstance(tree, dict):
            self.say(path, f"arm '{name}' must be a mapping", f"{name}: {{editor: {tree or '…'}}}")
            return None
        self.unknown(tree, path, ARM_KEYS, f"arm '{name}'")
        if "editor" not in tree:
            self.say(path, f"arm '{name}' needs the key 'editor'", "raysweep ls editors", key=True)
        editor = self.editor(name, tree["editor"], (*path, "editor")) if "editor" in tree else None
        wraps = tree.get("wrap", [])
        listed: list[tuple[KeyPath, Json]] = [((*path, "wrap"), wraps)]
        if isinstance(wraps, list):
            listed = [((*path, "wrap", i), w) for i, w in enumerate(wraps)]
        wrappers = [self.named(w, here, "wrapper") for here, w in listed]
        names = [str(w["name"]) for w in wrappers if w]
        for twice in sorted({n for n in names if names.count(n) > 1}):
            self.say((*path, "wrap"), f"wrapper '{twice}' is written twice in arm '{name}'")
        base = self.base(tree, path, (*BASE_KEYS, *ARM_KEYS), f"arm '{name}'", report=False)
        space = self.space(tree, (*path, "space"))
        if editor is not None:
            editor = self.without_paths(editor, (*path, "editor"), "editor.", space)
        wrappers = [
            w and self.without_paths(w, here, f"wrap.{w['name']}.", space)
            for (here, _), w in zip(listed, wrappers, strict=True)
        ]
        # An arm that cannot be read whole would only breed complaints that follow from this one.
        if editor is None or None in wrappers or any(tree.get(k) is not None and k not in base for k in _SECTIONS):
            return None
        around = tuple(WrittenComponent(name=str(w["name"]), config=_rest(w)) for w in wrappers if w)
        spec = WrittenEditor(name=str(editor["name"]), config=_rest(editor), wrap=around, file=self.files.get(name))
        return ArmSpec(name=name, editor=spec, base=base, space=space)

    def editor(self, arm: str, value: Json, path: KeyPath) -> JsonObject | None:
        """Return the editor *value* of *arm* without the hyper-parameter file it names, which is read, and may tell its name.

        None after noting what is wrong with it, or why the file cannot be read.
        """
        if not isinstance(value, dict) or "file" not in value:
            return self.named(value, path, "editor")
        named = value["file"]
        if not isinstance(named, str) or not named:
            self.say((*path, "file"), f"file must be the path of a hyper-parameter file, got {named!r}")
            return None
        try:
            source, problems = theirs.open_file(self.workspace.resolve(named))
        except YamlError as error:
            self.problems.append(from_error(error, self.source.value((*path, "file"))))
            return None
        self.problems += problems
        self.files[arm] = source
        rest = {k: v for k, v in value.items() if k != "file"}
        told = theirs.editor_of(source)
        if "name" not in rest and not told:
            hint = f"write editor: {{name: memit, file: {named}}}"
            self.say((*path, "file"), f"'{named}' does not say of which editor it is (alg_name, or its folder)", hint)
            return None
        return self.named({"name": told, **rest}, path, "editor")

    def arm_name(self, name: str, path: KeyPath) -> None:
        """Note a name that a table or a message cannot show as it is."""
        odd = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI_CONTROLS), "")
        if not any(c.isprintable() and not c.isspace() for c in name):
            self.say(path, "an arm needs a name that can be seen", "rome: {editor: rome}", key=True)
        elif odd:
            self.say(path, f"the name of an arm holds the character {codepoint(odd)}, which cannot be shown", key=True)
        elif len(name.encode()) > limits.NAME_BYTES:
            message = f"the name of an arm has at most {limits.NAME_BYTES} bytes, this one {len(name.encode())}"
            self.say(path, message, key=True)

    def without_paths(self, tree: JsonObject, path: KeyPath, prefix: str, space: dict[str, Domain]) -> JsonObject:
        """Return a component's keys without those whose value is a ``{path: […]}``, which join the arm's *space*."""
        remaining: JsonObject = {}
        for key, value in tree.items():
            here, swept = (*path, key), f"{prefix}{key}"
            # Only {path: […]} may stand in place of a value; other domains belong under `space`.
            if not (is_domain(value) and "path" in value):
                inside = self.without_paths(value, here, f"{swept}.", space) if isinstance(value, dict) else value
                if inside or inside == value:  # else there was nothing in it but a path
                    remaining[key] = inside
                continue
            if swept in space:
                self.say(here, f"{swept} is written twice: here and in the arm's space")
            try:
                space[swept] = parse(value)
            except ValueError as error:
                self.say(here, f"{key}: {error}")
            # Messages about the swept key should point to where the domain was written.
            self.source = self.source.also(here, (*path[:2], "space", swept))
        return remaining

    def base(
        self, tree: JsonObject, path: KeyPath, known: Iterable[str], what: str, *, report: bool = True
    ) -> JsonObject:
        """Return the sections of ``base`` that *tree* has, names spelt out."""
        if report:
            self.unknown(tree, path, known, what)
        sections: JsonObject = {}
        for section in (k for k in BASE_KEYS if k in tree):
            value, here = tree[section], (*path, section)
            if section in ("model", "data"):
                value = self.named(value, here, section, need_name=False)
            elif section == "protocol" and not isinstance(value, dict):
                hint = "protocol: {rounds: [0, 10], batch_size: 1}"
                self.say(here, f"protocol must be a mapping, got {value!r}", hint)
                value = None
            # A digest written by hand would stand in the key without anybody having read the file.
            if isinstance(value, dict) and "digest" in value:
                self.say((*here, "digest"), f"'{section}.digest' is filled in by the plan", "remove it", key=True)
            if value is not None:
                sections[section] = value
            elif report and tree[section] is not None:
                self.unread.add(section)
        return sections

    def named(self, value: Json, path: KeyPath, what: str, *, need_name: bool = True) -> JsonObject | None:
        """Return ``{name: …, …}`` for a bare name or a mapping with one."""
        if isinstance(value, str) and value:
            return {"name": value}
        if isinstance(value, dict) and (isinstance(value.get("name"), str) or (not need_name and "name" not in value)):
            return value
        if isinstance(value, dict) and "name" not in value:
            self.say(path, f"this {what} needs the key 'name'", f"{{name: …, {', '.join(value)}}}")
        elif isinstance(value, dict):
            message = f"the name of this {what} must be text, got {value['name']!r}"
            self.say((*path, "name"), message, quoted("name", value["name"]))
        else:
            hint = quoted(what, value)
            self.say(path, f"this {what} must be a name or a mapping with one, got {value!r}", hint)
        return None

    def space(self, tree: JsonObject, path: KeyPath) -> dict[str, Domain]:
        """Return the domains that can be read."""
        by_key: dict[str, Domain] = {}
        for key, value in self.mapping(tree, path).items():
            try:
                by_key[key] = parse(value)
            except ValueError as error:
                nested = [] if is_domain(value) else list(nested_domains(value, key))
                hint = f"keys of a space are dotted: {', '.join(nested[:3])}" if nested else ""
                message = f"{key}: {'a mapping, not a domain' if nested else error}"
                self.say((*path, key), message, hint)
                self.unread.add("space")
        return by_key

    def part(self, tree: JsonObject, key: str, spec: type[P]) -> P | None:
        """Return the section *key* as a *spec*, or None after noting what is wrong."""
        try:
            return spec.model_validate(self.mapping(tree, (key,)))
        except ValidationError as error:
            self.problems += from_validation(
                error, spec, key, lambda p, k: self.source.key((key, *p)) if k else self.source.value((key, *p))
            )
            return None

    def mapping(self, tree: JsonObject, path: KeyPath) -> JsonObject:
        """Return the mapping under the last part of *path*; nothing written is an empty one."""
        value = tree.get(str(path[-1]))
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.say(path, f"{path[-1]} must be a mapping, got {value!r}")
            return {}
        return value

    def unknown(self, tree: JsonObject, path: KeyPath, known: Iterable[str], what: str) -> None:
        """Note each key of *tree* that is not known."""
        self.problems += unknown_keys(tree, known, what, lambda k: self.source.key((*path, k)))

    def say(self, path: KeyPath, message: str, hint: str = "", *, key: bool = False) -> None:
        """Note a problem with what stands at *path*."""
        place = self.source.key(path) if key else self.source.value(path)
        self.problems.append(problem(place, message, hint))


def _rest(named: Mapping[str, Json]) -> JsonObject:
    return {k: v for k, v in named.items() if k != "name"}
