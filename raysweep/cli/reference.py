"""``docs/keys.md``: every key of a search space, read from the classes that check it."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raysweep.belief.spec import BeliefSpec
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec
from raysweep.config.sweep_schema import ResourceSpec, SearchSpec
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS

COMPUTED = {"digest", "tokenizer_digest", "source"}
"""Fields that the plan fills in; nobody writes them in a file."""

_ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*)(?: \((?P<unit>[^)]*)\))?: (?P<text>.*)$")
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_PLAIN: Mapping[object, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key that a person may write.

    Attributes:
        name: dotted below its section, such as ``value.lr``.
        kind: what its value must be, in words.
        default: its value where nobody writes it, as YAML; empty = it must be written.
        unit: in which its value counts; empty = none.
        meaning: one sentence or a few.
    """

    name: str
    kind: str
    default: str
    unit: str
    meaning: str


def attribute_docs(spec: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Return ``{field: (unit, meaning)}`` from the ``Attributes:`` sections of *spec* and its bases.

    An entry is ``name: meaning`` or ``name (unit): meaning``, and may go on over indented lines.
    """
    entries: dict[str, tuple[str, str]] = {}
    # Bases first: a class may say more of a key that it inherits.
    for base in reversed(spec.__mro__):
        if not (isinstance(base, type) and issubclass(base, BaseModel) and base.__doc__):
            continue
        _, _, section = inspect.cleandoc(base.__doc__).partition("Attributes:\n")
        names: list[str] = []
        for line in section.splitlines():
            # The section ends where the indentation does.
            if line and not line.startswith("    "):
                break
            match = _ENTRY.match(line[4:])
            if match:
                names = match["names"].split(", ")
                entries |= dict.fromkeys(names, (match["unit"] or "", match["text"].strip()))
            # A further line of the entry above; `a, b: …` describes both names.
            elif line.strip():
                entries |= {n: (entries[n][0], f"{entries[n][1]} {line.strip()}") for n in names}
    return entries


def keys_of(spec: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield every key of *spec* in the order of its fields; a field that is a spec itself is followed by its own keys."""
    docs = attribute_docs(spec)
    for name, field in spec.model_fields.items():
        if name in COMPUTED:
            continue
        unit, meaning = docs.get(name, ("", ""))
        yield Key(prefix + name, _kind(field.annotation, field.metadata), _default(field), unit, meaning)
        for inner in _inner_specs(field.annotation):
            yield from keys_of(inner, f"{prefix}{name}.")


def _inner_specs(annotation: object) -> list[type[BaseModel]]:
    """Return the specs inside *annotation*; the members of a list or mapping have no dotted key of their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [spec for part in get_args(annotation) for spec in _inner_specs(part)]
    return []


def _kind(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Return what a value of *annotation* must be: ``whole number ≥ 1``, ``list of text``, ``null or number > 0``."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _kind(inner, (*metadata, *more))
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_yaml(part)}`" for part in parts)
    if origin in (Union, types.UnionType):
        # null last: "number, or null" reads better than "null, or number".
        ordered = sorted(parts, key=lambda part: part is type(None))
        return ", or ".join(_kind(part) for part in ordered)
    if origin in (tuple, list):
        members = list(dict.fromkeys(_kind(part) for part in parts if part is not Ellipsis))
        lengths = (getattr(constraint, "min_length", None) for constraint in _constraints(metadata))
        least = next(filter(None, lengths), 0)
        return f"list{f' (at least {least})' if least else ''} of {' / '.join(members)}"
    # An enumeration of texts: its members are what may be written.
    if isinstance(annotation, type) and issubclass(annotation, str) and annotation is not str:
        return " or ".join(f"`{member.value}`" for member in annotation)  # type: ignore[attr-defined]
    name = _PLAIN.get(annotation, "mapping")
    limits = [
        f"{sign} {_yaml(limit)}"
        for constraint in _constraints(metadata)
        for attribute, sign in _BOUNDS.items()
        if (limit := getattr(constraint, attribute, None)) is not None
    ]
    return f"{name} {' and '.join(limits)}" if limits else name


def _constraints(metadata: Sequence[object]) -> Iterator[object]:
    """Yield the constraints in *metadata*, those inside a ``Field(…)`` included."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "see below"
    return f"`{_yaml(value)}`"


def _yaml(value: object) -> str:
    """Return *value* in YAML's flow form.

    >>> _yaml((1, "a", None, True, 1e-05))
    '[1, a, null, true, 1e-05]'
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(v) for v in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {_yaml(v)}' for k, v in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "value", value)) or '""'


def sections() -> dict[str, type[BaseModel]]:
    """Return every section of the page that a class checks key by key, and that class."""
    specs: dict[str, type[BaseModel]] = {
        "base.model": ModelSpec,
        "base.data": DataSpec,
        "base.protocol": ProtocolSpec,
        "search": SearchSpec,
        "resources": ResourceSpec,
    }
    specs |= {f"Editor {name}": kind.config_type for name, kind in EDITORS.loadable().items()}
    specs |= {f"Wrapper {name}": kind.config_type for name, kind in WRAPPERS.loadable().items()}
    specs["Setting of a belief study"] = BeliefSpec
    return specs


FILE = (
    Key("sweep", "text", "", "", "name of the sweep and of its results folder"),
    Key("study", "text", "`lifelong`", "", "the kind of trial (`raysweep ls studies`)"),
    Key("base", "mapping", "`{}`", "", "what all trials share: `model`, `data`, `protocol`, `seed`, `threads`"),
    Key("arms", "mapping", "", "", "the arms, by name"),
    Key(
        "space", "mapping", "`{}`", "", "swept keys and their domains; an arm to which a key does not apply ignores it"
    ),
    Key("search", "mapping", "see below", "", "how points are drawn and ranked"),
    Key("resources", "mapping", "see below", "", "what a trial gets; never part of its key"),
)
ARM = (
    Key(
        "editor",
        "text or mapping",
        "",
        "",
        "an editor's name, or a mapping of `name` and the editor's own keys (below)",
    ),
    Key("wrap", "text, mapping or list", "none", "", "one wrapper or several, innermost first, written like editors"),
    Key("space", "mapping", "`{}`", "", "domains of this arm alone; they hide those of the sweep"),
    Key("model", "text or mapping", "base.model", "", "keys that this arm replaces"),
    Key("data", "text or mapping", "base.data", "", "keys that this arm replaces"),
    Key("protocol", "mapping", "base.protocol", "", "keys that this arm replaces"),
    Key("seed", "whole number", "`0`", "", "from it come the order of the records and every draw of the trial"),
    Key(
        "threads",
        "whole number ≥ 1",
        "`1`",
        "CPU threads",
        "of the numerics; part of the key, since it moves the last bits",
    ),
)


_INTRO = """# Every key

Made from the classes that check a search space; do not edit: `make docs`.
How a file is put together: [search spaces](../search_spaces/README.md).

A key without a default must be written. A default of an editor or wrapper is what holds where neither
`hparams/<editor>/<model>.yaml` nor the arm says otherwise. `editor.<key>` and `wrap.<wrapper>.<key>` sweep the keys of
editors and wrappers, `model.<key>`, `data.<key>` and `protocol.<key>` those of the base; `seed` and `threads` are swept
under their own names.
"""


def keys_page() -> str:
    """Return ``docs/keys.md``."""
    lines = [_INTRO, *_table("The file", "One search space.", FILE)]
    lines += _table("arms.NAME", "One arm; `base` takes the last five of these too.", ARM)
    for title, spec in sections().items():
        summary = (spec.__doc__ or "").strip().partition("\n")[0]
        lines += _table(title, summary, tuple(keys_of(spec)))
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, summary: str, keys: tuple[Key, ...]) -> list[str]:
    """Return one section of the page as lines of Markdown."""
    lines = [f"## {title}", "", _cell(summary), ""]
    if keys:
        lines += ["| key | value | default | unit | meaning |", "|---|---|---|---|---|"]
        lines += [f"| `{k.name}` | {' | '.join(map(_cell, (k.kind, k.default, k.unit, k.meaning)))} |" for k in keys]
        lines.append("")
    return lines


def _cell(text: str) -> str:
    """Return *text* for one cell of a Markdown table, references to code as plain names."""
    # Sphinx roles would be printed as they are.
    plain = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text.replace("``", "`"))
    return plain.replace("|", "\\|")
