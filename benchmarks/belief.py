"""The belief testbed at the published size: seconds and peak memory of each stage.

    python -m benchmarks.belief                       # 2 M lines, 100,000 facts, 10 relations, 5000 points
    python -m benchmarks.belief --lines 20000 --facts 2000 --points 50

A synthetic graph is written as Wikidata5m files by another process, so that its memory does not count here. Settings are those
of the published run: 10 noisy samples per fact, least true probability .6, TF, or, and, not, 10 sentences per document, 5 passes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from raysweep.belief.agent.agent import fit_agent
from raysweep.belief.corpus.generative import build_generative
from raysweep.belief.corpus.writer import build_corpus
from raysweep.belief.graph.dependencies import graph_dependencies
from raysweep.belief.graph.name_length import WordNameTokens
from raysweep.belief.graph.synthetic import SyntheticSpec
from raysweep.belief.graph.wikidata import read_wikidata
from raysweep.belief.graph.wikidata_files import TRAIN
from raysweep.belief.points.build import build_points
from raysweep.belief.points.jsonl import to_line
from raysweep.belief.spec import AgentSpec, CorpusSpec, GenerativeSpec, GraphSpec, PointSpec

TITLE = "belief testbed"
COLUMNS = ("stage", "what", "wall s", "cpu s", "peak MiB so far")
_LINES_PER_SUBJECT = 4.2
_WRITE = """
import sys
from pathlib import Path
from raysweep.belief.graph.synthetic import SyntheticSpec, write_wikidata
write_wikidata(Path(sys.argv[1]), SyntheticSpec.model_validate_json(sys.argv[2]))
"""


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure every stage once; return the rows."""
    options = _options(argv)
    about = measure.machine()
    with tempfile.TemporaryDirectory(dir=options.folder or None) as scratch:
        rows = _run(Path(scratch), options)
    measure.report(options, TITLE, about, COLUMNS, rows)
    return rows


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2_000_000, help="lines of the train file, about")
    parser.add_argument("--facts", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=20_000, help="distinct objects, about")
    parser.add_argument("--cooccurrences", type=int, default=1000)
    parser.add_argument("--folder", default="", help="for the files; else the system's temporary folder")
    parser.add_argument("--json", default="")
    return parser.parse_args(argv)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def _run(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def stage(name: str, clock: measure.Clock, what: str) -> None:
        (wall, cpu) = clock.mean()
        rows.append({"stage": name, "what": what, "wall s": wall, "cpu s": cpu, "peak MiB so far": _peak()})
        print(f"{name}: {what}, {wall:.1f} s, cpu {cpu:.1f} s, peak {_peak():.0f} MiB", flush=True)

    made = SyntheticSpec(
        subjects=int(options.lines / _LINES_PER_SUBJECT), arrows=5, pool_scale=max(1, options.objects // 160)
    )
    subprocess.run([sys.executable, "-c", _WRITE, str(folder), made.model_dump_json()], check=True)
    with (folder / TRAIN).open("rb") as lines:
        count = sum(1 for _ in lines)
    stage("start", _timed(lambda: None)[1], "imports")
    spec = GraphSpec(
        source="wikidata5m", read_n_facts=-1, relations=10, min_cooccurrences=options.cooccurrences, max_object_tokens=2
    )
    graph, clock = _timed(lambda: read_wikidata(folder, spec, WordNameTokens()))
    stage("graph", clock, f"{count} lines → {len(graph.facts)} facts, K = {len(graph.objects)}")
    generative = GenerativeSpec(min_true_prob=0.6, samples=10)
    model, clock = _timed(lambda: build_generative(graph, graph_dependencies(graph), generative, 0))
    stage("generative model", clock, f"{len(model.conditional_keys)} conditionals")
    published = CorpusSpec(
        num_atomic_facts=options.facts,
        true_false=True,
        negations=True,
        disjunctions=True,
        conjunctions=True,
        connective_instances_per_subject=20,
        max_sentences_per_doc=10,
        homogeneous=5,
    )
    corpus, clock = _timed(lambda: build_corpus(model, published, 0))
    stage("corpus, chosen", clock, f"{corpus.facts} facts, {len(corpus.statements)} sentences")
    evidence, clock = _timed(lambda: corpus.evidence)
    stage("evidence", clock, f"{evidence.items} items, {len(evidence)} different ones")
    agent, clock = _timed(lambda: fit_agent(evidence, model.arrows, len(graph.objects), AgentSpec()))
    stage("agent", clock, f"{len(agent.fitted.conditionals.keys)} conditionals")
    written, clock = _timed(lambda: sum(len(d.text) + 1 for d in corpus.documents()))
    stage("documents", clock, f"{corpus.statistics['num_documents']} documents, {written / 1e6:.0f} MB of text")
    _, clock = _timed(lambda: agent.fitted.conditional_sums)
    stage("sums", clock, "over all upstream objects, once per agent")
    points, clock = _timed(lambda: list(build_points(corpus, agent, PointSpec(size=options.points), 0)))
    stage("points", clock, f"{len(points)} points with all the agent's answers before and after")
    size, clock = _timed(lambda: sum(len(to_line(p)) for p in points))
    stage("lines", clock, f"{size / 1e6:.0f} MB of JSON")
    return rows


def _timed(call: Any) -> tuple[Any, measure.Clock]:
    clock = measure.Clock()
    with clock.timed():
        found = call()
    return found, clock


if __name__ == "__main__":
    main()
