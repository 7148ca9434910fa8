"""What a plan asks of the rest of the package, as values: tables of names, and three questions about files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, TextSpec
from raysweep.registry import Registry
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from raysweep.editors.base import BaseEditor
    from raysweep.editors.wrappers.base import BaseWrapper
    from raysweep.studies.base import Study


# A name, as in every table of components: what is installed stands above this package.
_COMPONENTS: Registry[Callable[..., Components]] = Registry(
    "set of component", {"installed": "raysweep.installed:installed"}
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a plan knows of a model that is not loaded.

    Attributes:
        blocks: how many it has; 0 = not known.
        positions: the longest row in tokens; 0 = not known.
        count: counts the tokens of a text, with special ones; None = not known before the model is loaded.
        parts: names of its parts, by what they are (``block``, ``mlp``, ``mlp_in``, ``mlp_out``, ``attn``, ``norm``, ``head``,
            ``embed``), with ``{}`` for the block's number; empty = not known.
        kind: its ``model_type``; empty = not known.
        lacks: what an editor may need and its layout does not have, with the reason (``Layout.lacks``).
    """

    blocks: int = 0
    positions: int = 0
    count: Callable[[str], int] | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)


def _nothing(spec: ModelSpec, workspace: Workspace) -> ModelFacts:
    """Know nothing of a model."""
    return ModelFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The tables and look-ups that turn names into facts; none of them loads torch.

    Attributes:
        editors: subclasses of :class:`raysweep.editors.base.BaseEditor`.
        wrappers: subclasses of :class:`raysweep.editors.wrappers.base.BaseWrapper`.
        datasets: datasets (``locate``, ``count``, ``digest``, ``version``).
        studies: subclasses of :class:`raysweep.studies.base.Study`.
        model: fills in a model's digest and BOS policy.
        text: fills in a text's digest.
        environment: the environment variables that are set and move numbers.
        row_limit: says how many tokens a row may have, and why (None: any number); raises ``ModelError`` where a model attends
            in a way that is not modelled.
        chat: the digest of a model's chat template (empty: not known here); raises ``ModelError`` where it has none.
        facts: what is known of a model before it is loaded; refuses one that cannot be loaded or edited.
    """

    editors: Registry[type[BaseEditor[Any, Any]]]
    wrappers: Registry[type[BaseWrapper[Any, Any]]]
    datasets: Registry[Any]
    studies: Registry[type[Study]]
    model: Callable[[ModelSpec, Workspace], ModelSpec]
    text: Callable[[TextSpec, DataSpec, Workspace], TextSpec]
    environment: Mapping[str, str] = field(default_factory=dict)
    row_limit: Callable[[ModelSpec, Workspace], tuple[int, str] | None] = lambda spec, workspace: None
    chat: Callable[[ModelSpec, Workspace], str] = lambda spec, workspace: ""
    facts: Callable[[ModelSpec, Workspace], ModelFacts] = _nothing

    @staticmethod
    def installed(*, fetch: bool = False) -> Components:
        """Return what this installation has; *fetch* = ask the hub about hub models that are not here."""
        # Unless *fetch* asks for it no network is used: `plan` and `validate` work offline.
        return _COMPONENTS.get("installed")(fetch=fetch)


def assemble(
    spec: EditorSpec, editors: Registry[type[BaseEditor[Any, Any]]], wrappers: Registry[type[BaseWrapper[Any, Any]]]
) -> BaseEditor[Any, Any]:
    """Return the editor of *spec* with its wrappers around it, innermost first; the classes come from the two tables."""
    editor = editors.get(spec.name)(spec.config)
    for wrap in spec.wrap:
        editor = wrappers.get(wrap.name).around(wrap.config, editor)
    return editor
