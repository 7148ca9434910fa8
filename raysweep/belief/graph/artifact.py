"""Where a graph comes from: the embedded world, or Wikidata5m files read once and kept as an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.belief.graph.graph import KnowledgeGraph, from_arrays, to_arrays, world_graph
from raysweep.belief.graph.name_length import NameTokens, open_tokens, tokenizer_file
from raysweep.belief.graph.wikidata import read_wikidata
from raysweep.belief.graph.wikidata_files import find_files
from raysweep.belief.spec import BeliefSpec, GraphSpec
from raysweep.errors import DataError
from raysweep.hashing import digest, file_digest
from raysweep.world import WORLD_VERSION, WorldSpec, build_world

if TYPE_CHECKING:
    from raysweep.artifacts import ArtifactRequest, Built
    from raysweep.workspace import Workspace

GRAPH_VERSION = 1  # of what the reader makes of the same files; part of the artifact's key
POINTS_VERSION = 2  # of what the same graph and spec become: evidence, agent, points
_FOLDER = "wikidata5m"

OnProgress = Callable[[str], None]


def wikidata_folder(spec: GraphSpec, workspace: Workspace) -> Path:
    """Return the folder of the Wikidata5m files: ``spec.path``, else ``data/wikidata5m``."""
    return workspace.resolve(spec.path) if spec.path else workspace.data / _FOLDER


def resolve_graph(spec: GraphSpec, workspace: Workspace) -> GraphSpec:
    """Return *spec* with the digests of the files it names.

    Raises:
        DataError: a file is missing; the message names all that are, the hint where they come from.
    """
    if spec.source == "world":
        return spec
    # All missing files in one message.
    missing: list[DataError] = []
    digests = {"digest": "", "tokenizer_digest": ""}
    try:
        files = find_files(wikidata_folder(spec, workspace))
        digests["digest"] = digest([file_digest(f) for f in files])
    except DataError as error:
        missing.append(error)
    if spec.tokenizer != "words":
        try:
            digests["tokenizer_digest"] = file_digest(tokenizer_file(workspace.resolve(spec.tokenizer)))
        except DataError as error:
            missing.append(error)
    if missing:
        raise DataError("; ".join(e.message for e in missing), hint="; ".join(e.hint for e in missing))
    return spec.model_copy(update=digests)


def graph_identity(spec: GraphSpec) -> dict[str, object]:
    """Return everything a graph depends on; *spec* is resolved."""
    if spec.source == "world":
        return {"source": "world", "version": WORLD_VERSION, "world": WorldSpec()}
    # Where a file lies changes nothing; what is in it does (its digest). An odd relation changes no graph.
    data = spec.model_dump(mode="json", exclude={"path", "tokenizer", "odd_relations"})
    return {**data, "tokens": "words" if spec.tokenizer == "words" else "file"}


def belief_identity(spec: BeliefSpec) -> dict[str, object]:
    """Return everything from graph to evaluation points depends on; ``spec.graph`` is resolved."""
    data = spec.model_dump(mode="json", exclude={"graph", "pretrain"})
    return {**data, "graph": graph_identity(spec.graph), "version": GRAPH_VERSION, "points_version": POINTS_VERSION}


def measured_identity(spec: BeliefSpec) -> dict[str, object]:
    """Return everything that what is measured on a setting depends on, but for the model: :func:`belief_identity`, how many tokens
    an answer may have, and how its model's training is logged.
    """
    # A log's cadence decides which rows a trial has, though no number of the points.
    recipe = spec.pretrain
    log = {} if recipe is None else recipe.model_dump(mode="json", include={"seed", "evals", "eval_points"})
    return {**belief_identity(spec), "max_object_tokens": spec.graph.max_object_tokens, "log": log}


def without_places(spec: BeliefSpec) -> dict[str, object]:
    """Return *spec* as plain data that says nothing of where files lie (their digests do)."""
    data = spec.model_dump(mode="json")
    data["graph"]["path"] = ""
    for part in filter(None, (data["graph"], data["pretrain"])):
        part["tokenizer"] = "words" if part["tokenizer"] == "words" else "file"
    return data


def graph_request(spec: GraphSpec) -> ArtifactRequest:
    """Return the request of a Wikidata5m graph; *spec* is resolved."""
    from raysweep.artifacts import ArtifactRequest

    return ArtifactRequest(
        kind="graph",
        inputs=graph_identity(spec),
        builder="raysweep.belief.graph.artifact:open_graph",
        model=None,
        version=GRAPH_VERSION,
    )


def graph_tokens(spec: GraphSpec, workspace: Workspace) -> NameTokens:
    """Return what measures the names of this graph."""
    return open_tokens(spec.tokenizer, workspace.root)


def open_graph(spec: GraphSpec, workspace: Workspace, report: OnProgress = lambda _: None) -> KnowledgeGraph:
    """Return the graph of *spec*; one of Wikidata5m is read once and then found in the artifact store.

    Args:
        spec: which graph.
        workspace: where its files and artifacts lie.
        report: called with what is being done.

    Raises:
        DataError, GraphError: see :func:`raysweep.belief.graph.wikidata.read_wikidata`.
    """
    if spec.source == "world":
        return world_graph(build_world())
    import torch

    from raysweep.artifacts import ArtifactStore

    # The digests of the files are part of the graph's name.
    spec = resolve_graph(spec, workspace)
    tokens = graph_tokens(spec, workspace)
    built: list[KnowledgeGraph] = []  # the graph, if this call reads it

    def build() -> Built:
        graph = read_wikidata(wikidata_folder(spec, workspace), spec, tokens, report)
        built.append(graph)
        arrays, meta = to_arrays(graph)
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, meta

    artifact = ArtifactStore(workspace.artifacts).get_or_build(graph_request(spec), build)
    if built:
        return built[0]
    report(f"the graph is {workspace.artifacts / 'graph' / artifact.digest}")
    return from_arrays({name: tensor.numpy() for name, tensor in artifact.tensors.items()}, artifact.meta)
