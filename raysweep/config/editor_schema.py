"""The editor of a trial and the wrappers around it: each a name and a configuration of its component's own class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeVar

from pydantic import BaseModel, SerializeAsAny, ValidationInfo, model_validator

from raysweep.config.places import KeyPath
from raysweep.config.shared_specs import ContextSpec, MomentSpec
from raysweep.config.theirs.rules import Table
from raysweep.config.values import GrownSpec, Spec
from raysweep.errors import NameUnknownError
from raysweep.hashing import canonical_json
from raysweep.jsontypes import Json
from raysweep.registry import Registry

SpecT = TypeVar("SpecT", bound=BaseModel)


class _Component(Protocol):
    """What is asked of an editor's or wrapper's class here."""

    config_type: type[EditorConfig]


# Names, as in every table of components: the tables themselves stand above this package.
_TABLES: Registry[Registry[_Component]] = Registry(
    "table of component", {"editor": "raysweep.editors:EDITORS", "wrapper": "raysweep.editors.wrappers:WRAPPERS"}
)


class EditorConfig(GrownSpec):
    """Base of every editor's and wrapper's configuration: frozen, unknown keys are errors.

    A name that begins with ``ref`` brings back what the published code does, where ours does otherwise; ``quirk Q…`` in its
    description is the entry of docs/quirks.md that tells both. ``dropped`` names hyper-parameters of the published files that
    change no number there: accepted and left out (quirk Q46). ``theirs`` says what becomes of the keys of whole files of other
    programs (:mod:`raysweep.config.theirs`); empty = they are not read.
    """

    dropped: ClassVar[frozenset[str]] = frozenset()
    theirs: ClassVar[Table] = MappingProxyType({})

    @model_validator(mode="before")
    @classmethod
    def _without_dead_names(cls, data: object) -> object:
        return {k: v for k, v in data.items() if k not in cls.dropped} if isinstance(data, Mapping) else data

    def context_specs(self) -> tuple[ContextSpec, ...]:
        """Return which context templates the component puts before a prompt."""
        return tuple(spec for _, spec in parts(self, ContextSpec))

    def text_rows(self) -> Iterator[tuple[int, str]]:
        """Yield how long the rows are that the component cuts out of a text, and the key that says so."""
        for path, spec in parts(self, MomentSpec):
            yield spec.width, ".".join((*map(str, path), "width"))

    def stored_value(self, key: str) -> Json:
        """Return what is stored of *key*; None where there is no such key."""
        value: Json = self.model_dump(mode="json", include={key}).get(key)
        return value


class UnreadConfig(EditorConfig, extra="allow"):
    """A stored configuration that the component's class does not read, or not to the letter: kept as it was stored.

    The component is not installed here, or its keys have changed since. Results are still shown, under the key they had.
    """


def parts(spec: BaseModel, kind: type[SpecT], path: KeyPath = ()) -> Iterator[tuple[KeyPath, SpecT]]:
    """Yield each part of *spec* that is a *kind*, however deep, with the path of its key."""
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, kind):
            yield (*path, name), value
        elif isinstance(value, BaseModel):
            yield from parts(value, kind, (*path, name))


class _ComponentSpec(Spec):
    """A component by name, with its configuration: an object of the component's ``config_type``.

    A plan hands in the object that it has checked. Plain data, as stored, is read here, once, by the class that goes with the name.
    """

    table: ClassVar[str]

    name: str
    # Without SerializeAsAny pydantic would write the keys of the base class, which has none.
    config: SerializeAsAny[EditorConfig]

    @model_validator(mode="before")
    @classmethod
    def _with_its_class(cls, data: object, info: ValidationInfo) -> object:
        if not isinstance(data, Mapping) or isinstance(data.get("config"), EditorConfig):
            return data
        name, written = data.get("name"), data.get("config", {})
        if not isinstance(name, str):
            return data  # which pydantic refuses
        read = _as_stored if info.context == STORED else _as_written
        return {**data, "config": read(cls.table, name, written)}


STORED = {"stored": True}
"""The validation context of a specification that is read back (:meth:`raysweep.config.schema.TrialSpec.read_back`)."""


def _as_written(table: str, name: str, data: object) -> EditorConfig:
    """Return *data* as the configuration of component *name*, defaults filled in."""
    try:
        kind = _TABLES.get(table).get(name)
    except NameUnknownError as error:  # no ValueError, which is what pydantic expects of a validator
        raise ValueError(error.message) from error
    return kind.config_type.model_validate(data)


def _as_stored(table: str, name: str, data: object) -> EditorConfig:
    """Return *data* as the configuration of component *name*, if that would be stored as exactly the same data again."""
    try:
        config = _as_written(table, name, data)
        # A key added since would move the hash that this trial is filed under.
        if canonical_json(config.model_dump(mode="json")) == canonical_json(data):
            return config
    except (ValueError, ImportError, AttributeError):  # not installed, cannot be imported, or of other keys
        pass
    return UnreadConfig.model_validate(data)


class WrapSpec(_ComponentSpec):
    """One wrapper around an editor: its name and its resolved configuration."""

    table = "wrapper"


class EditorSpec(_ComponentSpec):
    """One editor with its resolved configuration, and the wrappers around it, innermost first."""

    table = "editor"

    wrap: tuple[WrapSpec, ...] = ()

    @property
    def label(self) -> str:
        """``memit+simie``."""
        return "+".join([self.name, *(w.name for w in self.wrap)])
