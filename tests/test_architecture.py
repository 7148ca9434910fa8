"""The import law and the habits that a reviewer should not have to look for, as a walk over the syntax trees."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from raysweep.testing.architecture import breaches, circles, import_graph, imports, package_of, picture

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raysweep"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "_share" not in p.parts)

# Which heavy packages the modules of a package may load at once; the others load them where they are used.
HEAVY = {"torch", "transformers", "ray", "pyarrow", "safetensors", "matplotlib", "networkx", "pandas", "scipy"}
LOADS: dict[str, set[str]] = {
    "runtime": {"torch"},
    "models": {"torch", "transformers", "safetensors"},
    "editors": {"torch"},
    "evals": {"torch"},
    "exports": {"torch", "transformers", "safetensors"},
    "results": {"pyarrow"},
    "reports": {"pyarrow"},
    "library": {"torch"},
    "tune": {"ray", "torch", "transformers", "pyarrow"},
    "testing": {"ray", "torch", "transformers", "pyarrow", "safetensors"},
}
NAMED = {table.origin(n).partition(":")[0] for table in (EDITORS, WRAPPERS) for n in table.names()}
VOCABULARY = {
    PACKAGE / "cli/edit_space.py",  # translates the reference's own words (FT-L, --simie) into ours
    PACKAGE / "results/theirs/files.py",  # names of programs whose results are read, and of their files
}


def loaded_at_once(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of each import that runs when the module is loaded."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from loaded_at_once(other)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from loaded_at_once(node)


def part_of(path: Path) -> str:
    return package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_go_downwards():
    """Every import, also inside functions, under TYPE_CHECKING and by ``lazy``; ``LAYERS`` has the layers."""
    assert not breaches(import_graph())


def test_no_modules_import_each_other():
    assert not circles(import_graph())


def test_the_law_sees_every_import(tmp_path):
    """One module of a made-up package per way to import."""
    ways = {
        "top": "from raysweep.cli import main",
        "inside": "def f():\n    import raysweep.cli.main",
        "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from raysweep.cli.main import main",
        "late": 'from raysweep.lazy import lazy\nmain = lazy("raysweep.cli.main")',
    }
    root = tmp_path / "raysweep"
    for package in ("models", "cli"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "__init__.py").touch()
    (root / "cli/main.py").write_text("def main(): ...")
    for name, code in ways.items():
        (root / f"models/{name}.py").write_text(code)
    found = breaches(import_graph(root))
    assert {line.split(":")[0].rpartition(".")[2] for line in found} == set(ways)


def test_the_picture_is_true():
    """``python -m raysweep.cli.docs architecture > docs/architecture.svg`` after a module has come, gone or moved."""
    assert (ROOT / "docs/architecture.svg").read_text(encoding="utf-8") == picture()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_a_module_loads_at_once(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    # listing editors must not load torch; the algebra that they share may
    may = set() if module in NAMED or path.name == "base.py" else LOADS.get(part_of(path), set())
    loads = [n for n in loaded_at_once(parsed(path)) if n.split(".")[0] in HEAVY - may]
    assert not loads, f"{path.name} may not load {loads} at once; use raysweep.lazy or import inside a function"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_ray_stays_in_the_shell_and_arrow_in_the_results(path):
    part = part_of(path)
    names = {name.split(".")[0] for name, _ in imports(parsed(path))}
    if part not in ("tune", "cli", "testing"):
        assert "ray" not in names
    if part not in ("tune", "cli", "results", "reports", "testing", "data", "belief"):
        assert "pyarrow" not in names


def test_only_the_command_line_prints():
    for path in FILES:
        if part_of(path) == "cli":
            continue
        calls = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        lines = [n.lineno for n in calls if n.func.id == "print"]
        assert not lines, f"{path.relative_to(ROOT)} prints in lines {lines}"


def test_no_list_of_editors_but_the_table():
    names = {n for table in (EDITORS, WRAPPERS) for n in table.names()} - {"null"}
    tables = {PACKAGE / "editors/__init__.py", PACKAGE / "editors/wrappers/__init__.py"}
    for path in FILES:
        if path in tables | VOCABULARY or part_of(path) == "testing":
            continue
        strings = {n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not (strings & names) - {path.stem, path.parent.name}, (
            f"{path.relative_to(ROOT)} names {strings & names}"
        )


def test_only_the_lifelong_study_edits():
    edits = PACKAGE / "studies/proposals.py"
    for path in FILES:
        if path == edits or part_of(path) in ("testing", "editors"):
            continue
        calls = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        lines = [n.lineno for n in calls if n.func.attr == "edit" and "artifacts" in {k.arg for k in n.keywords}]
        assert not lines, f"{path.relative_to(ROOT)} calls Editor.edit in lines {lines}"


def test_tables_match_their_classes():
    for table in (EDITORS, WRAPPERS):
        for name in table.names():
            assert table.get(name).name == name


def test_every_file_opens_with_a_docstring():
    without = [str(p.relative_to(ROOT)) for p in FILES if not ast.get_docstring(parsed(p)) and p.read_text().strip()]
    assert not without


def modules_after(*argv: str, root: Path = ROOT) -> set[str]:
    """Return the top-level modules that are loaded after running Python with *argv* code in the workspace *root*."""
    code = "\n".join(
        [*argv, "import sys", "sys.stderr.write('\\n@' + ' '.join({m.split('.')[0] for m in sys.modules}))"]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "RAYSWEEP_ROOT": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "@" in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rsplit("@", 1)[1].split())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace that knows the embedded model's tokenizer: it is opened, with transformers, by the first plan with a model."""
    from raysweep.config.schema import ModelSpec
    from raysweep.models.sources.catalogue import resolve
    from raysweep.workspace import Workspace

    folder = tmp_path_factory.mktemp("root")
    resolve(ModelSpec(), Workspace(folder))
    return folder


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import raysweep.studies, raysweep.studies.base, raysweep.studies.lifelong", {"torch", "ray", "pyarrow"}),
        ("import raysweep.config.plan, raysweep.config.sweep", {"torch", "ray", "pyarrow", "rich", "typer"}),
        (
            "from raysweep.cli.main import main; main(['ls'])",
            {"torch", "ray", "pyarrow", "numpy", "scipy", "matplotlib"},
        ),
        (
            "from raysweep.cli.main import main; assert main(['validate', 'smoke']) in (0, 2)",
            {"torch", "ray", "pyarrow", "numpy", "transformers", "scipy", "pandas", "matplotlib", "networkx"},
        ),
        (
            "from raysweep.cli.main import main; assert main(['plan', 'smoke']) in (0, 2)",
            {"torch", "ray", "numpy", "transformers", "scipy", "pandas", "matplotlib", "networkx"},
        ),
        (  # where a plot is drawn and relations are paired, but nobody has asked for it yet
            "import raysweep.reports.plot, raysweep.reports.plot_style, raysweep.reports.belief_plots, "
            "raysweep.belief.graph.dependencies",
            {"matplotlib", "networkx"},
        ),
        ("from raysweep.cli.main import main; main(['--help'])", {"torch", "ray", "pyarrow", "numpy"}),
    ],
)
def test_what_stays_unloaded(code, forbidden, root):
    assert not modules_after(code, root=root) & forbidden
