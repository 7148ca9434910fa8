"""From an EditorSpec to an editor; from an editor's needs to artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raysweep.config.schema import EditorSpec
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS

if TYPE_CHECKING:
    from raysweep.artifacts import Artifact, ArtifactStore, Built
    from raysweep.editors.base import ArtifactRequest, Editor
    from raysweep.models.lm import LanguageModel


def build_editor(spec: EditorSpec) -> Editor[Any]:
    """Return the editor of *spec* with its wrappers around it, innermost first."""
    kind = EDITORS.get(spec.name)
    editor: Editor[Any] = kind(kind.config_type.model_validate(dict(spec.config)))
    for wrap in spec.wrap:
        wrapper = WRAPPERS.get(wrap.name)
        editor = wrapper(wrapper.config_type.model_validate(dict(wrap.config)), editor)
    return editor


def provide(
    lm: LanguageModel,
    needs: Mapping[str, ArtifactRequest],
    store: ArtifactStore,
    texts: Callable[[], Iterator[str]],
) -> dict[str, Artifact]:
    """Return every needed artifact, building the missing ones on the pristine model.

    Requests with the same builder are computed together (one reading of the text), then stored one by one.
    """
    built: dict[str, Built] = {}
    found: dict[str, Artifact] = {}
    for name, request in needs.items():

        def build(name: str = name, request: ArtifactRequest = request) -> Built:
            if name not in built:
                siblings = {n: r for n, r in needs.items() if r.builder == request.builder and n not in found}
                module, _, function = request.builder.partition(":")
                made = getattr(import_module(module), function)(lm, list(siblings.values()), texts())
                built.update(zip(siblings, made, strict=True))
            return built[name]

        found[name] = store.get_or_build(request, build)
    return found
