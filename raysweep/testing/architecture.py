"""The import law as data, and the import graph that it is held against.

A module may import from its own layer's package, from the layers below it, and the *interfaces* of any layer: modules called
``base``, which hold abstract classes and types. Every import counts: at the top, inside functions, under ``TYPE_CHECKING``, and
by ``lazy("raysweep.…")``. Names in the tables of components (``"rome": "raysweep.editors.rome:Rome"``) are no imports: the tables
are how a lower layer runs what a higher one has, and how other people's packages add to it.

``tests/test_architecture.py`` holds the law; ``python -m raysweep.cli.docs architecture`` draws it (``docs/architecture.svg``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import raysweep


@dataclass(frozen=True, slots=True)
class Layer:
    """Some packages (or modules) of ``raysweep`` that stand side by side.

    Attributes:
        packages: by their first name below ``raysweep``; they may not import each other.
        about: what they do, for the picture.
    """

    packages: tuple[str, ...]
    about: str


# From the bottom to the top.
LAYERS: tuple[Layer, ...] = (
    Layer(
        ("atomic", "errors", "lazy", "hashing", "runtime", "measures", "processes", "artifact_kinds", "jsontypes"),
        "one idea each, nothing of ours below",
    ),
    Layer(
        (
            "environment",
            "intervals",
            "pytree",
            "records",
            "registry",
            "rows",
            "seeds",
            "workspace",
            "packageindex",
            "downloads",
            "judge",
        ),
        "what everything is told in: records, rows, names, seeds, folders",
    ),
    Layer(
        ("metrics", "protocols", "retention", "summarize", "verdicts", "world"),
        "what a row measures; from rows to Rel, Gen, Loc, to retention and verdicts; the made-up world",
    ),
    Layer(("config",), "from YAML to a plan of TrialSpecs with keys"),
    Layer(("artifacts",), "expensive inputs, found by what they depend on"),
    Layer(("models",), "what a model is, where it comes from, how a pass is made cheap"),
    Layer(("editors", "evals"), "propose a patch · ask a question"),
    Layer(("belief",), "graph, corpus, exact agent, evaluation points, small model"),
    Layer(("data",), "files to records and texts"),
    Layer(("studies",), "a kind of trial: edit, measure, yield a round"),
    Layer(("results",), "rounds to Parquet and back; the state of a trial"),
    Layer(("reports",), "tables and figures as pure functions"),
    Layer(("exports",), "finished trials given back: models, tensors, adapters, answers"),
    Layer(("installed",), "which components this installation has"),
    Layer(("tune",), "trials as Ray Tune trials: actors, shards, sessions"),
    Layer(("library",), "the same from Python: edit a model, plan, run and read a sweep"),
    Layer(("testing",), "contracts for components of your own; this law"),
    Layer(("cli",), "the command line: flags in, tables out"),
    Layer(("__main__", "__init__"), "python -m raysweep · the public names"),
)
INTERFACES = frozenset({"base"})
_ROOT = Path(raysweep.__file__).resolve().parent


def modules(root: Path = _ROOT) -> dict[str, Path]:
    """Return the path of every module of the package at *root*, by dotted name."""
    named = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        if "_share" not in parts:
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of everything that *tree* imports, wherever and however."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy" and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value), node.lineno


def import_graph(root: Path = _ROOT) -> dict[str, dict[str, int]]:
    """Return, for every module, the modules of the package that it imports, with the line of one such import."""
    known = modules(root)
    graph: dict[str, dict[str, int]] = {}
    for module, path in known.items():
        edges = graph[module] = {}
        for name, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
            while name and name not in known:  # a function or class: its module
                name = name.rpartition(".")[0]
            if name and name not in (module, root.name):
                edges.setdefault(name, line)
    return graph


def package_of(module: str) -> str:
    """Return the part of the house that *module* belongs to.

    >>> package_of("raysweep.editors.rome"), package_of("raysweep.records"), package_of("raysweep")
    ('editors', 'records', '__init__')
    """
    return [*module.split("."), "__init__"][1]


def breaches(graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the imports of *graph* that the law forbids, as ``module:line imports module``."""
    level = {package: i for i, layer in enumerate(LAYERS) for package in layer.packages}
    return [
        f"{module}:{line} imports {other}"
        for module, edges in graph.items()
        for other, line in edges.items()
        if package_of(module) != package_of(other)
        and level[package_of(other)] >= level[package_of(module)]
        and other.rpartition(".")[2] not in INTERFACES
    ]


def circles(graph: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others (Tarjan's components of two and more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph.get(module, {}):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            component = []
            while module not in component:
                component.append(stack.pop())
            if len(component) > 1:
                components.append(sorted(component))

    for module in graph:
        if module not in index:
            visit(module)
    return components


def picture() -> str:
    """Return ``docs/architecture.svg``: the layers from top to bottom, each with its packages and the parts of these."""
    known = modules()
    width, row, rows = 1060, 46, []
    for number, layer in enumerate(reversed(LAYERS)):
        y = 10 + number * row
        names = ", ".join(layer.packages)
        parts = " ".join(
            sorted({m.split(".")[2] for m in known if m.count(".") >= 2 and package_of(m) in layer.packages})
        )
        parts = parts if len(parts) <= 160 else f"{parts[:158].rpartition(' ')[0]} …"
        # A layer of single modules has many names and no parts: what it is about goes below them.
        right, below = (layer.about, parts) if parts else ("", layer.about)
        rows.append(
            f'<rect x="10" y="{y}" width="{width - 20}" height="{row - 6}" rx="5" class="box"/>'
            f'<text x="22" y="{y + 17}" class="name">{escape(names)}</text>'
            f'<text x="{width - 22}" y="{y + 17}" text-anchor="end" class="about">{escape(right)}</text>'
            f'<text x="22" y="{y + 33}" class="parts">{escape(below)}</text>'
        )
    height = 20 + len(LAYERS) * row
    style = (
        "text{font-family:monospace;font-size:12px;fill:#1f2328}.name{font-weight:bold}.about{fill:#57606a}"
        ".parts{fill:#57606a;font-size:10px}.box{fill:#f6f8fa;stroke:#d0d7de}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    background = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, f"<style>{style}</style>", background, *rows, "</svg>", ""])
