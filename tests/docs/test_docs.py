"""Command lines in the documentation are what the real parser accepts; links and named files are there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from raysweep.cli.errors import EXIT_CODES
from raysweep.cli.main import COMMANDS, app
from raysweep.config.components import Components
from raysweep.config.plan import plan
from raysweep.config.sweep import find_file, load_search_space
from raysweep.workspace import Workspace
from tests.docs.pages import PAGES, ROOT, SPACES, blocks, commands, prose, spans

LINES = [(path, argv) for path in (*PAGES, *SPACES) for argv in commands(path)]
FREE_NAMES = {"NAME", "FILE", "my_sweep", "nudge_size", "space.yaml"}  # search spaces a reader writes


def name(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(getattr(value, "name", value))


def parse(argv: list[str]) -> list[tuple[str, Any]]:
    """Parse a command line with the program's own parser, executing nothing; return (command, values) per level."""
    command: Any = typer.main.get_command(app)
    found: list[tuple[str, Any]] = []
    parent, label = None, "raysweep"
    while True:
        if hasattr(command, "commands") and not argv:
            return found  # a group alone prints its help
        parent = command.make_context(label, list(argv), parent=parent)
        found.append((label, parent.params))
        if not hasattr(command, "commands"):
            return found
        label, command, argv = command.resolve_command(parent, [*parent._protected_args, *parent.args])


def test_there_is_something_to_parse() -> None:
    assert len(LINES) > 40
    readme = {argv[0] for path, argv in LINES if path == ROOT / "README.md"}
    assert set(COMMANDS) <= readme, "the README leaves a command out"


@pytest.mark.parametrize(("path", "argv"), LINES, ids=name)
def test_command_line_is_accepted(path: Path, argv: list[str]) -> None:
    if len(argv) == 1 or argv[-1] == "…":  # the command is only named
        assert argv[0] in COMMANDS
        return
    label, values = parse(argv)[-1]
    space = values.get("file")
    if label in ("run", "plan", "validate") and space not in FREE_NAMES:
        assert find_file(space, Workspace(ROOT)), path


def test_a_wrong_line_would_be_noticed() -> None:
    for wrong in (["shwo", "demo"], ["show", "demo", "--bogus"], ["ls", "editor"], ["compare", "demo", "--at", "x"]):
        with pytest.raises(Exception, match=r"(?i)no such|not one of|valid integer"):
            parse(wrong)


def test_overrides_of_embedded_sweeps_plan(tmp_path: Path) -> None:
    workspace, seen = Workspace(tmp_path), 0
    for path, argv in LINES:  # those of search spaces: tests/unit/config/test_paper_spaces.py
        if path not in SPACES and argv[0] in ("run", "plan", "validate") and len(argv) > 1:
            values = parse(argv)[-1][1]
            if values["set_"] and "smollm2" not in values["file"]:
                seen += bool(plan(load_search_space(values["file"], workspace, values["set_"]), workspace).trials)
    assert seen


def test_the_example_search_space_plans(tmp_path: Path) -> None:
    (text,) = (b.text for b in blocks(ROOT / "search_spaces/README.md") if "sweep: my_sweep" in b.text)
    (tmp_path / "my_sweep.yaml").write_text(text, encoding="utf-8")
    workspace = Workspace(tmp_path)
    found = plan(load_search_space("my_sweep.yaml", workspace), workspace, Components.installed())
    assert {t.arm for t in found.trials} == {a.name for a in found.sweep.arms}


def slugs(page: Path) -> set[str]:
    """Return the anchors GitHub gives to the headings of *page*."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = Path(os.path.normpath(page.parent / file)) if file else page
        assert there.exists(), f"{page.name} links to {target}"
        assert ROOT in there.parents, f"{page.name} links outside the repository: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in slugs(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_and_tests_exist(page: Path) -> None:
    new = {b.title for b in blocks(page)} | {f"raysweep/{f}.py" for f in NEW}
    for span in spans(page):
        if re.fullmatch(r"(raysweep|tests|docs|search_spaces|hparams|benchmarks)/[\w./-]+\.(py|md|yaml)", span):
            assert span in new or (ROOT / span).is_file(), f"{page.name} names {span}"
        elif re.fullmatch(r"test_\w+", span):
            assert any(f"def {span}(" in text for text in every_test()), f"{page.name} names {span}"


NEW = ("editors/wrappers/bar", "data/baz", "models/layouts/qux")  # files a reader writes


def every_test() -> list[str]:
    return [p.read_text(encoding="utf-8") for p in sorted((ROOT / "tests").rglob("test_*.py"))]


def test_every_document_is_listed() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(([^)#]+)\)", index))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in PAGES if ROOT / "docs" in p.parents}
    assert pages - {"README.md"} <= listed


def test_decisions_have_one_shape() -> None:
    files = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [p.name[:3] for p in files] == [f"{i:03d}" for i in range(1, len(files) + 1)]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:3]} · "), path
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Choice", "Price"], path


def test_exit_codes_in_the_readme() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(r) for r in rows] == sorted(EXIT_CODES)
