"""YAML 1.2 text → a plain tree with the place of every key and value.

Only what a specification needs is read: mappings with scalar keys, lists, and null, true/false, numbers and text.
``1e-3`` is a number and ``on`` is text, as YAML 1.2 has it; a date stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, Event, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raysweep.config import limits
from raysweep.config.places import KeyPath, Place, Source
from raysweep.errors import Problem, YamlError
from raysweep.jsontypes import Json, JsonObject

# What ruamel may take a plain scalar for; a timestamp is let through and stays the text that was written.
_SCALARS = ("null", "bool", "int", "float", "str", "timestamp")
_TAG = "tag:yaml.org,2002:"
# Control characters but tab and line ends, halves of surrogate pairs, and the two that are no characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


def read(path: Path) -> Source:
    """Return the tree in the file *path*.

    Raises:
        YamlError: the file cannot be read, is too large, or is not well-formed; the message has file, line and column.
    """
    return parse(_text(path), shown(path))


def examine(path: Path) -> tuple[Source, list[Problem]]:
    """Return what can be read of the file *path*, and every mistake in it that does not end the reading.

    Raises:
        YamlError: the file cannot be read, is too large, or its syntax is broken.
    """
    return _examine(_text(path), shown(path))


def _text(path: Path) -> str:
    try:
        # The size is asked first, so that a file of records given by mistake is not read as a whole.
        size = path.stat().st_size
        if size > limits.FILE_BYTES:
            raise YamlError(
                f"{shown(path)}  {size:,} bytes; a YAML file has at most {limits.FILE_BYTES:,}",
                hint="is it a search space? records and texts belong into files of their own, named by data.path",
            )
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise YamlError(f"{shown(path)}  cannot be read: {error}") from error
    try:
        # Some editors begin a file with a byte order mark, which would else be a part of the first key.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise YamlError(
            f"{shown(path)}:{line}:1  cannot be read: byte {error.start} is not UTF-8", hint="save the file as UTF-8"
        ) from error


def parse_json(path: Path) -> tuple[Source, list[Problem]]:
    """Return the tree of the JSON file at *path*, which is YAML but for tabs between its parts, and what is wrong with it.

    Raises:
        YamlError: it cannot be read at all.
    """
    # No string of JSON holds a bare tab.
    return _examine(_text(path).replace("\t", " "), shown(path))


def shown(path: Path) -> str:
    """Return *path* as a message names it: relative where it lies below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def parse(text: str, file: str = "<text>") -> Source:
    """Return the tree written in *text*; *file* is its name in messages.

    Raises:
        YamlError: the text is not well-formed, or larger than :mod:`raysweep.config.limits` allows.

    >>> parse("a: [1, 1e-3, on]").tree
    {'a': [1, 0.001, 'on']}
    """
    source, problems = _examine(text, file)
    for one in problems:
        raise YamlError(f"{one.file}:{one.line}:{one.column}  {one.message}", hint=one.hint)
    return source


def _examine(text: str, file: str) -> tuple[Source, list[Problem]]:
    _check_text(text, file)
    yaml = YAML(typ="safe", pure=True)
    reader = _Reader(yaml, file)
    try:
        # Events come one at a time: what is too deep or too large is refused before a tree of it is built ("billion laughs").
        _check_size(YAML(typ="safe", pure=True).parse(text), file)
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        raise _syntax(error, file, text) from error
    except YAMLError as error:
        raise YamlError(f"{file}  {' '.join(str(error).split())}") from error
    except YamlError:
        raise
    except Exception as error:  # a third party's parser on a stranger's text
        raise YamlError(f"{file}  not readable as YAML ({type(error).__name__}: {error})") from error
    tree = None if node is None else reader.value(node, ())
    return Source(file, text, tree, reader.keys, reader.values), reader.problems


def _check_text(text: str, file: str) -> None:
    """Refuse a text of too many bytes, and the characters that YAML does not allow, by place."""
    # Arguments that are no UTF-8 reach us as lone surrogates, which plain UTF-8 cannot encode; they are refused below.
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > limits.FILE_BYTES:
        raise YamlError(f"{file}  {size:,} bytes; a YAML text has at most {limits.FILE_BYTES:,}")
    odd = _UNPRINTABLE.search(text)
    if odd is not None:
        before = text[: odd.start()]
        place = Place(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise _at(place, f"the character {codepoint(odd[0])} is not allowed", "remove it; YAML is printable text")


def _check_size(events: Iterable[Event], file: str) -> None:
    """Refuse what is nested too deep or has too many parts, before anything of it is built.

    Raises:
        YamlError: the text is beyond a limit, or declares another version of YAML than 1.2.
    """
    depth = parts = 0
    for event in events:
        place = Place(file, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            version = ".".join(map(str, event.version))
            raise _at(place, f"this is YAML {version} by its own word; 1.2 is read here", "remove the %YAML line")
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        parts += isinstance(event, NodeEvent)
        if depth > limits.DEPTH:
            raise _at(place, f"lists and mappings are nested more than {limits.DEPTH} deep")
        if parts > limits.NODES:
            raise _at(place, f"the file has more than {limits.NODES:,} keys and values")


def codepoint(character: str) -> str:
    """Return how a message names *character* without printing it.

    >>> codepoint("\\0")
    'U+0000'
    """
    return f"U+{ord(character):04X}"


def parse_value(text: str, file: str) -> Json:
    """Return the value of one YAML expression, as after ``--set key=``; empty text is the empty string."""
    return parse(text, file).tree if text.strip() else ""


class _Reader:
    """Turns a composed node into plain values and notes their places, and what is wrong with them."""

    def __init__(self, yaml: YAML, file: str) -> None:
        self.yaml = yaml
        self.file = file
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.parts = 0

    def value(self, node: Node, path: KeyPath) -> Json:
        """Return what *node*, found at *path*, says.

        Raises:
            YamlError: it has no end, or with its aliases written out it is beyond a limit.
        """
        self.values[path] = self.place(node)
        self.parts += 1
        # Aliases make a graph of the file; a node that is open already is inside itself.
        if id(node) in self.open:
            raise self.error(node, "an alias inside its own anchor has no end")
        if self.parts > limits.NODES or len(path) > limits.DEPTH:
            bound = f"{limits.NODES:,} keys and values, {limits.DEPTH} deep"
            raise self.error(node, f"with its aliases written out the file is beyond the limit of {bound}")
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
            # Another alias of the same node may follow beside it: only inside itself it has no end.
            self.open.discard(id(node))

    def mapping(self, node: MappingNode, path: KeyPath) -> JsonObject:
        """Return a mapping without the keys that are not scalars or come twice, which are noted."""
        values: JsonObject = {}
        inherited: JsonObject = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.note(key_node, "a key must be plain text, not a list or mapping")
                continue
            key = self.text(key_node)
            # Merge keys of YAML 1.1 are ordinary keys in 1.2: a sweep that relies on them would silently lack what they merge.
            if key == "<<":
                self.note(key_node, "merge keys ('<<') are not YAML 1.2", "arms already inherit everything in base")
                merged = self.value(value_node, (*path, key))  # as meant, so that no key is missed for this reason
                inherited |= merged if isinstance(merged, dict) else {}
                continue
            here = (*path, key)
            if key in values:
                first = self.keys[here]
                hint = f"first at line {first.line}, column {first.column}"
                self.note(key_node, f"key '{key}' is written twice", hint)
                continue
            self.keys[here] = self.place(key_node)
            values[key] = self.value(value_node, here)
        return {**inherited, **values}

    def scalar(self, node: ScalarNode) -> Json:
        """Return a scalar of one of the plain types; None after noting that it is none."""
        tag = str(node.tag)
        kind = tag.removeprefix(_TAG)
        if not tag.startswith(_TAG) or kind not in _SCALARS:
            self.note(node, f"tag '{tag}' is not allowed here", "write a plain value")
            return None
        if kind in ("str", "timestamp"):
            return self.text(node)
        try:
            # The tag was checked above, so the constructor makes nothing but null, booleans and numbers.
            value: Json = self.yaml.constructor.construct_object(node)
            return value
        except (YAMLError, ValueError, ArithmeticError, TypeError):
            self.note(node, f"'{_short(node.value)}' is not a valid {kind}")
            return None

    def text(self, node: ScalarNode) -> str:
        """Return a scalar as text, having noted a character that no name, path or prompt can hold."""
        text = str(node.value)
        odd = _UNPRINTABLE.search(text)
        if odd is not None:  # an escape such as "\\0" in double quotes: not in the file, but in what it says
            self.note(node, f"the character {codepoint(odd[0])} is not allowed", "remove the escape")
            return _UNPRINTABLE.sub("", text)
        return text

    def note(self, node: Node, message: str, hint: str = "") -> None:
        """Keep the problem *message* at *node*."""
        place = self.place(node)
        self.problems.append(
            Problem(
                code=YamlError.code,
                message=message,
                file=place.file,
                line=place.line,
                column=place.column,
                hint=hint,
            )
        )

    def place(self, node: Node) -> Place:
        """Return where *node* starts."""
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def error(self, node: Node, message: str, hint: str = "") -> YamlError:
        """Return the error *message* at *node*."""
        return _at(self.place(node), message, hint)


def _short(text: str, width: int = 40) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


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
    # ruamel marks where it noticed; a person mends where the bracket or quote was opened.
    unclosed = "flow" in context or "quoted scalar" in context
    if unclosed and error.context_mark is not None:
        start = error.context_mark
        what = "quote" if "quoted" in context else "bracket"
        place = Place(file, start.line + 1, start.column + 1)
        noticed_at = f"noticed at line {mark.line + 1}, column {mark.column + 1}: {problem}"
        return _at(place, f"this {what} is not closed, or holds something that does not fit", noticed_at)
    where = f"{context}: " if context else ""
    hint = "quote a value that holds ': '" if "mapping values are not allowed" in problem else ""
    return _at(Place(file, mark.line + 1, mark.column + 1), f"{where}{problem}", hint)
