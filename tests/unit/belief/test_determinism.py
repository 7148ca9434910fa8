"""The same bytes whatever Python's hash seed: files, graph, pairing, corpus, evidence, points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import hashlib, tempfile
from pathlib import Path
from raysweep.belief.agent.agent import fit_agent
from raysweep.belief.corpus.writer import build_corpus
from raysweep.belief.corpus.generative import build_generative
from raysweep.belief.graph.graph import world_graph
from raysweep.belief.graph.dependencies import graph_dependencies
from raysweep.belief.points.jsonl import to_line
from raysweep.belief.points.build import build_points
from raysweep.belief.spec import CorpusSpec, GenerativeSpec, GraphSpec, PointSpec
from raysweep.belief.graph.synthetic import SyntheticSpec, write_wikidata
from raysweep.belief.graph.name_length import WordNameTokens
from raysweep.belief.graph.wikidata import read_wikidata
from raysweep.world import WorldSpec, build_world

folder = Path(tempfile.mkdtemp())
write_wikidata(folder, SyntheticSpec(subjects=80))
spec = GraphSpec(source="wikidata5m", relations=8, min_cooccurrences=5, max_object_tokens=2)
for graph in (read_wikidata(folder, spec, WordNameTokens()), world_graph(build_world(WorldSpec(people=30)))):
    model = build_generative(graph, graph_dependencies(graph), GenerativeSpec(min_true_prob=0.6, samples=5), 0)
    types = {k: True for k in ("true_false", "negations", "disjunctions", "conjunctions", "implications")}
    corpus = build_corpus(model, CorpusSpec(num_atomic_facts=150, heterogeneous=1, **types), 0)
    agent = fit_agent(corpus.evidence, model.arrows, len(graph.objects))
    hasher = hashlib.sha256(graph.digest.encode())
    for document in corpus.documents():
        hasher.update(document.text.encode())
    print(graph.digest, hasher.hexdigest())
    for point in build_points(corpus, agent, PointSpec(size=20, novel=2), 0):
        print(to_line(point))
"""


@pytest.mark.slow
def test_nothing_depends_on_the_hash_seed() -> None:
    written = []
    for seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stderr
        written.append(done.stdout)
    assert written[0].count("\n") == 2 * 23
    assert written[0] == written[1]
