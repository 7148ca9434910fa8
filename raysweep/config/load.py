"""YAML 1.2 text → a plain tree with the place of every key and value.

Only what a specification needs is read: mappings with scalar keys, lists, and null, true/false, numbers and text.
``1e-3`` is a number and ``on`` is text, as YAML 1.2 has it; a date stays text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raysweep.config.places import KeyPath, Place, Source
from raysweep.errors import YamlError

_SCALARS = ("null", "bool", "int", "float", "str", "timestamp")
_TAG = "tag:yaml.org,2002:"


def read(path: Path) -> Source:
    """Return the tree in the file *path*.

    Raises:
        YamlError: the file cannot be read or is not well-formed; the message has file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{path}  cannot be read: {error}") from error
    return parse(text, shown(path))


def shown(path: Path) -> str:
    """Return *path* as a message names it: relative where it lies below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def parse(text: str, file: str = "<text>") -> Source:
    """Return the tree written in *text*; *file* is its name in messages.

    Raises:
        YamlError: the text is not well-formed.

    >>> parse("a: [1, 1e-3, on]").tree
    {'a': [1, 0.001, 'on']}
    """
    yaml = YAML(typ="safe", pure=True)
    reader = _Reader(yaml, file)
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        raise _syntax(error, file, text) from error
    except YAMLError as error:
        raise YamlError(f"{file}  {error}") from error
    tree = None if node is None else reader.value(node, ())
    return Source(file, text, tree, reader.keys, reader.values)


def parse_value(text: str, file: str) -> Any:
    """Return the value of one YAML expression, as after ``--set key=``; empty text is the empty string."""
    return parse(text, file).tree if text.strip() else ""


class _Reader:
    """Turns a composed node into plain values and notes their places."""

    def __init__(self, yaml: YAML, file: str) -> None:
        self.yaml = yaml
        self.file = file
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}
        self.open: set[int] = set()

    def value(self, node: Node, path: KeyPath) -> Any:
        """Return what *node*, found at *path*, says."""
        self.values[path] = self.place(node)
        if id(node) in self.open:
            raise self.error(node, "an alias inside its own anchor has no end")
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self.mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
            if isinstance(node, ScalarNode):
                return self.scalar(node)
            raise self.error(node, "this is neither text, a list nor a mapping")
        finally:
            self.open.discard(id(node))

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        """Return a mapping; a key that is not a scalar, or comes twice, is an error."""
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.error(key_node, "a key must be plain text, not a list or mapping")
            key = str(key_node.value)
            if key == "<<":
                hint = "arms already inherit everything in base"
                raise self.error(key_node, "merge keys ('<<') are not YAML 1.2", hint)
            here = (*path, key)
            if key in found:
                first = self.keys[here]
                raise self.error(
                    key_node, f"key '{key}' is written twice", f"first at line {first.line}, column {first.column}"
                )
            self.keys[here] = self.place(key_node)
            found[key] = self.value(value_node, here)
        return found

    def scalar(self, node: ScalarNode) -> Any:
        """Return a scalar of one of the plain types."""
        tag = str(node.tag)
        kind = tag.removeprefix(_TAG)
        if not tag.startswith(_TAG) or kind not in _SCALARS:
            raise self.error(node, f"tag '{tag}' is not allowed here", "write a plain value")
        if kind in ("str", "timestamp"):
            return str(node.value)
        try:
            return self.yaml.constructor.construct_object(node)
        except (YAMLError, ValueError) as error:
            raise self.error(node, f"'{node.value}' is not a valid {kind}") from error

    def place(self, node: Node) -> Place:
        """Return where *node* starts."""
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def error(self, node: Node, message: str, hint: str = "") -> YamlError:
        """Return the error *message* at *node*."""
        return _at(self.place(node), message, hint)


def _at(place: Place, message: str, hint: str = "") -> YamlError:
    return YamlError(f"{place.file}:{place.line}:{place.column}  {message}", hint=hint)


def _syntax(error: MarkedYAMLError, file: str, text: str) -> YamlError:
    """Return ruamel's complaint with the place a person would mend."""
    problem, context = str(error.problem or error), str(error.context or "")
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return YamlError(f"{file}  {problem}")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\\t" in problem or line[: mark.column + 1].lstrip(" ").startswith("\t"):
        return _at(Place(file, mark.line + 1, mark.column + 1), "a tab cannot indent YAML", "use spaces")
    unclosed = "flow" in context or "quoted scalar" in context
    if unclosed and error.context_mark is not None:
        start = error.context_mark
        what = "quote" if "quoted" in context else "bracket"
        place = Place(file, start.line + 1, start.column + 1)
        found = f"noticed at line {mark.line + 1}, column {mark.column + 1}: {problem}"
        return _at(place, f"this {what} is not closed, or holds something that does not fit", found)
    where = f"{context}: " if context else ""
    return _at(Place(file, mark.line + 1, mark.column + 1), f"{where}{problem}")
