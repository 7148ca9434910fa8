"""``raysweep belief``: the belief-revision testbed, from a knowledge graph to evaluation points."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raysweep.belief.graph.artifact import graph_tokens, open_graph
from raysweep.belief.graph.dependencies import graph_dependencies
from raysweep.belief.graph.graph import KnowledgeGraph, graph_statistics, normalise_rows
from raysweep.belief.points import jsonl
from raysweep.belief.setting import open_setting
from raysweep.belief.spec import BeliefSpec
from raysweep.belief.testbed import TestbedParts, build_parts
from raysweep.cli.belief_report import command as report
from raysweep.cli.options import Options
from raysweep.cli.say import say
from raysweep.config.overrides import Override
from raysweep.config.places import Place
from raysweep.reports import fit
from raysweep.workspace import Workspace, resolve_from_cwd

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Build the belief-revision testbed: graph, corpus, evaluation points; report a belief sweep.",
)

app.command("report")(report)

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="[SETTING]",
        help="A setting by name (`belief-small`) or file, with keys of the belief spec; none = their defaults.",
    ),
]
WikidataOption = Annotated[
    str, typer.Option("--wikidata", metavar="DIR", help="Folder of the Wikidata5m files; else the embedded world.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Lay a value over the spec; repeatable. KEY: graph.relations, corpus.num_atomic_facts, parity.…",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="JSON lines to write; else a file named after the setting, in this folder."
    ),
]


@app.command("graph")
def graph(
    ctx: typer.Context,
    file: FileArgument = "",
    wikidata: WikidataOption = "",
    set_: SetOption = None,
    csv_: Annotated[
        Path | None, typer.Option("--csv", metavar="DIR", help="Also write both co-occurrence matrices as CSV.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Read a knowledge graph, keep it as an artifact, and print its statistics, arrows and co-occurrences.

    Example:

        raysweep belief graph belief-small
        raysweep belief graph --wikidata data/wikidata5m --set graph.read_n_facts=2e6 --csv matrices
    """
    spec, workspace = _spec(ctx, file, wikidata, set_ or ())
    graph = open_graph(spec.graph, workspace, _report)
    arrows = graph_dependencies(graph)
    told = graph_statistics(graph, graph_tokens(spec.graph, workspace).lengths)
    told["arrows"] = arrows.named(graph.relations)
    told["single_relations"] = [graph.relations[r] for r in arrows.single]
    if json_:
        print(json.dumps({**told, "cooccurrence": graph.cooccurrence.tolist()}, indent=1, ensure_ascii=False))
    else:
        _print_graph(told, graph)
    if csv_ is not None:
        _write_matrices(csv_, graph)


@app.command("corpus")
def corpus(
    ctx: typer.Context,
    file: FileArgument = "",
    out: OutOption = None,
    wikidata: WikidataOption = "",
    set_: SetOption = None,
) -> None:
    """Write the documents a language model is trained on, and print the corpus' counts as JSON.

    Example: `raysweep belief corpus belief-small --out corpus.jsonl --set corpus.num_atomic_facts=300`
    """
    basis = _basis(ctx, file, wikidata, set_ or ())
    out = out or _beside(file, "corpus")
    with _open(out) as lines:
        for document in basis.corpus.documents():
            row = {"document": document.text, "num_sentences": document.sentences}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(json.dumps({"file": str(out), **basis.corpus.statistics}, indent=1))


@app.command("points")
def points(
    ctx: typer.Context,
    file: FileArgument = "",
    out: OutOption = None,
    wikidata: WikidataOption = "",
    set_: SetOption = None,
) -> None:
    """Write evaluation points: questions, requested updates, and what the agent believes before and after them.

    A fact that cannot be edited is passed over and the next one takes its place; how many there were is printed, by reason.

    Example: `raysweep belief points belief-small --out points.jsonl --set points.size=100`
    """
    basis = _basis(ctx, file, wikidata, set_ or ())
    out = out or _beside(file, "points")
    counts = {"points": 0, "novel": 0, "with_downstream": 0, "downstream_answer_changes": 0, "reinforcing": 0}
    passed_over: Counter[str] = Counter()
    with _open(out) as lines:
        for point in basis.points(passed_over=passed_over):
            lines.write(jsonl.to_line(point) + "\n")
            counts["points"] += 1
            counts["novel"] += not point.known
            if point.flags:
                counts["with_downstream"] += point.flags.diff_r_is_dependent_rel
                counts["downstream_answer_changes"] += point.flags.downstream_answer_changes
                counts["reinforcing"] += point.flags.new_fact_reinforces
    asked = basis.spec.points.size + basis.spec.points.novel
    print(json.dumps({"file": str(out), "asked": asked, **counts, "passed_over": dict(passed_over)}, indent=1))


def _beside(file: str, what: str) -> Path:
    """Return the file in the current folder that a command writes without ``--out``."""
    return Path(f"{Path(file).stem or 'belief'}-{what}.jsonl")


def _report(line: str) -> None:
    say(line, err=True)


def _open(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")


def _basis(ctx: typer.Context, file: str, wikidata: str, sets: Sequence[str]) -> TestbedParts:
    spec, workspace = _spec(ctx, file, wikidata, sets)
    graph = open_graph(spec.graph, workspace, _report)
    started = time.perf_counter()
    basis = build_parts(spec, graph)
    _report(f"corpus and agent: {time.perf_counter() - started:.1f} s")
    return basis


def _spec(ctx: typer.Context, file: str, wikidata: str, sets: Sequence[str | Override]) -> tuple[BeliefSpec, Workspace]:
    """Return the spec as written, with ``--wikidata`` and ``--set`` laid over the file and the graph's files found."""
    workspace = (ctx.find_object(Options) or Options()).workspace
    if wikidata:
        where, flag = resolve_from_cwd(wikidata, shipped=True), Place("--wikidata")
        sets = (Override("graph.source", "wikidata5m", flag), Override("graph.path", str(where), flag), *sets)
    return open_setting(file, sets, workspace), workspace


def _print_graph(told: Mapping[str, Any], graph: KnowledgeGraph) -> None:
    """Print the statistics line by line, then both co-occurrence matrices."""
    for name, value in told.items():
        if isinstance(value, Mapping):
            print(name.replace("_", " "))
            for key, inner in value.items():
                shown = inner if not isinstance(inner, Mapping) else ", ".join(f"{k} ({v})" for k, v in inner.items())
                text = f"{shown:.2f}" if isinstance(shown, float) else shown
                say(f"    {key.replace('_', ' '):30} {text}", hang=31)
        else:
            text = ", ".join(value) or "-" if isinstance(value, list) else value
            say(f"{name.replace('_', ' '):34} {text}", hang=35)
    for title, matrix in _matrices(graph):
        print(f"\n{_matrix(f'co-occurrence, {title}', graph.relations, matrix)}")


def _matrix(title: str, relations: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """Return a square matrix as text: rows are numbered, and columns have the numbers of the rows."""
    columns = [
        fit.Column("", [str(i + 1) for i in range(len(relations))]),
        fit.Column("relation", relations, name_column=True),
        *(fit.Column(str(i + 1), [f"{v:g}" for v in c], number=True) for i, c in enumerate(zip(*matrix, strict=True))),
    ]
    return fit.complete(columns, title=title, width=fit.terminal_width())


def _matrices(graph: KnowledgeGraph) -> tuple[tuple[str, list[list[float]]], ...]:
    counts = graph.cooccurrence
    return ("counts", counts.tolist()), ("percent", (100 * normalise_rows(counts)).round(2).tolist())


def _write_matrices(folder: Path, graph: KnowledgeGraph) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, matrix in _matrices(graph):
        with (folder / f"cooccurrence_{name}.csv").open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["", *graph.relations])
            writer.writerows([relation, *row] for relation, row in zip(graph.relations, matrix, strict=True))
