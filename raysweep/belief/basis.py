"""Everything one belief study stands on, from a graph to its agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from raysweep.belief.agent.agent import Agent, fit_agent
from raysweep.belief.corpus.corpus import Corpus
from raysweep.belief.corpus.generative import GenerativeModel, build_generative
from raysweep.belief.corpus.writer import build_corpus
from raysweep.belief.graph.dependencies import Arrows, pair_graph
from raysweep.belief.graph.graph import KnowledgeGraph
from raysweep.belief.points.build import build_points
from raysweep.belief.points.types import EvalPoint
from raysweep.belief.spec import BeliefSpec


@dataclass(frozen=True, eq=False)
class Basis:
    """Graph, arrows, generative model, corpus and agent of one spec; all pure functions of it."""

    spec: BeliefSpec
    graph: KnowledgeGraph
    arrows: Arrows
    model: GenerativeModel
    corpus: Corpus
    agent: Agent

    def points(self, *, spares: int = 0, passed_over: Counter[str] | None = None) -> Iterator[EvalPoint]:
        """Yield the evaluation points, then *spares*; *passed_over* counts the facts that cannot be edited, by reason."""
        return build_points(
            self.corpus, self.agent, self.spec.points, self.spec.seed, spares=spares, passed_over=passed_over
        )


def build_basis(spec: BeliefSpec, graph: KnowledgeGraph) -> Basis:
    """Return the basis of *spec* on *graph*.

    Raises:
        BeliefError: see the parts.
    """
    arrows = pair_graph(graph)
    model = build_generative(graph, arrows, spec.generative, spec.seed, spec.parity)
    corpus = build_corpus(model, spec.corpus, spec.seed)
    agent = fit_agent(corpus.evidence, arrows, len(graph.objects), spec.agent, spec.parity)
    return Basis(spec, graph, arrows, model, corpus, agent)
