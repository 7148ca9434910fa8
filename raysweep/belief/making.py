"""From a belief spec to graph, corpus, agent and points, in one call; equal specs give equal points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raysweep.belief.agent import Agent, fit
from raysweep.belief.corpus import Corpus, build_corpus
from raysweep.belief.generative import build_generative
from raysweep.belief.graph import KnowledgeGraph, world_graph
from raysweep.belief.pairing import pair_graph
from raysweep.belief.points import EvalPoint, build_points
from raysweep.belief.spec import BeliefSpec, GraphSpec
from raysweep.belief.tokens import open_tokens
from raysweep.belief.wikidata import read_wikidata
from raysweep.world import WorldSpec, build_world


def build_graph(spec: GraphSpec, root: Path) -> KnowledgeGraph:
    """Return the graph of *spec*; relative paths count from *root*.

    Raises:
        DataError: a file is missing or broken.
        GraphError: too little is left after the filters.
    """
    if spec.source == "world":
        return world_graph(build_world(WorldSpec()))
    folder = root / Path(spec.path or "data/wikidata5m").expanduser()
    return read_wikidata(folder, spec, open_tokens(spec.tokenizer, root))


@dataclass(frozen=True, eq=False)
class Testbed:
    """Everything before the language model: what is written, what may be concluded, and what is asked.

    Attributes:
        spec: what it was made from.
        corpus: the sentences, with graph and generative model.
    """

    spec: BeliefSpec
    corpus: Corpus

    @cached_property
    def agent(self) -> Agent:
        """The ideal agent that has read the corpus."""
        model, parity = self.corpus.model, self.spec.parity
        return fit(self.corpus.evidence, model.arrows, len(model.graph.objects), self.spec.agent, parity)

    @cached_property
    def points(self) -> tuple[EvalPoint, ...]:
        """The evaluation points."""
        return tuple(build_points(self.corpus, self.agent, self.spec.points, self.spec.seed))


def make(spec: BeliefSpec, root: Path) -> Testbed:
    """Return the testbed of *spec*; relative paths count from *root*."""
    graph = build_graph(spec.graph, root)
    model = build_generative(graph, pair_graph(graph), spec.generative, spec.seed, spec.parity)
    return Testbed(spec, build_corpus(model, spec.corpus, spec.seed))
