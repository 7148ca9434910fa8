"""From an EditorSpec to an editor; from an editor's needs to artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from raysweep.config.components import assemble
from raysweep.config.schema import DataSpec, EditorSpec, TextSpec
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from raysweep.errors import ArtifactError
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from raysweep.artifacts import Artifact, ArtifactRequest, ArtifactStore, Built
    from raysweep.editors.base import AnyEditor
    from raysweep.models.lm import LanguageModel


def build_editor(spec: EditorSpec) -> AnyEditor:
    """Return the editor of *spec* with its wrappers around it, innermost first."""
    return assemble(spec, EDITORS, WRAPPERS)


def provide(
    lm: LanguageModel,
    needs: Mapping[str, ArtifactRequest],
    store: ArtifactStore,
    texts: Callable[[TextSpec], Iterator[str]],
    records: Callable[[DataSpec], Sequence[EditRecord]] | None = None,
    *,
    threads: int,
) -> dict[str, Artifact]:
    """Return every needed artifact, building the missing ones on the pristine model.

    Requests with the same builder and text are computed together (one reading of the text), then stored one by one.

    Args:
        lm: the pristine model.
        needs: requests by name.
        store: where artifacts are kept.
        texts: opens a text.
        records: opens the data of requests that name some.
        threads: CPU threads of this process; a part of every artifact's identity.

    Raises:
        ArtifactError: a request names another model than *lm*.
    """
    # Threads change sums in their last digits, so they are a part of what an artifact is.
    needs = {name: _complete(request, lm, threads) for name, request in needs.items()}
    built: dict[str, Built] = {}
    artifacts: dict[str, Artifact] = {}
    for name, request in needs.items():

        def build(name: str = name, request: ArtifactRequest = request) -> Built:
            if name not in built:
                # Siblings come from one reading of the text; each is stored under its own name.
                alike = (n for n, r in needs.items() if (r.builder, r.text) == (request.builder, request.text))
                siblings = {n: needs[n] for n in alike if n not in artifacts}
                module, _, function = request.builder.partition(":")
                material: object
                if request.sources:
                    material = _sources(lm, siblings, store, texts, threads)
                elif request.data is not None and records is not None:
                    material = records(request.data)
                else:
                    material = texts(request.text or TextSpec())
                made = getattr(import_module(module), function)(lm, list(siblings.values()), material)
                built.update(zip(siblings, made, strict=True))
            return built[name]

        artifacts[name] = store.get_or_build(request, build)
    return artifacts


def _complete(request: ArtifactRequest, lm: LanguageModel, threads: int) -> ArtifactRequest:
    """Return *request* and its sources with the number of threads, having checked whose model they name."""
    if request.model != lm.identity:
        message = f"an artifact '{request.kind}' was asked for {'another' if request.model else 'no'} model"
        raise ArtifactError(message, hint="ArtifactRequest(…, model=lm.identity)")
    sources = {name: _complete(source, lm, threads) for name, source in request.sources.items()}
    return replace(request, threads=threads, sources=sources)


def _sources(
    lm: LanguageModel,
    requests: Mapping[str, ArtifactRequest],
    store: ArtifactStore,
    texts: Callable[[TextSpec], Iterator[str]],
    threads: int,
) -> list[dict[str, Artifact]]:
    """Return what each request is computed from, built together where missing."""
    needs = {f"{name}/{key}": source for name, r in requests.items() for key, source in r.sources.items()}
    artifacts = provide(lm, needs, store, texts, threads=threads)
    return [{key: artifacts[f"{name}/{key}"] for key in r.sources} for name, r in requests.items()]
