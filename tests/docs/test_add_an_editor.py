"""The page that adds an editor is executed: its file sits the contract, its sweep plans, its entry point is found."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from raysweep.config.components import Components
from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.config.sweep import load_search_space
from raysweep.editors import EDITORS, build
from raysweep.editors.wrappers import WRAPPERS
from raysweep.registry import Registry
from raysweep.testing.editor_contract import PROMISES, Exam
from raysweep.testing.fixtures import tiny_lm
from raysweep.workspace import Workspace
from tests.docs.pages import ROOT, block, blocks

PAGE = ROOT / "docs/add_an_editor.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with the page's files, its module importable and installed as a third party's would be."""
    assert "nudge" not in EDITORS.names()  # the shared table has looked for entry points before ours is there
    root = tmp_path_factory.mktemp("page")
    (root / "nudge.py").write_text(block(PAGE, "raysweep/editors/nudge.py"), encoding="utf-8")
    for title in ("hparams/nudge/embedded.yaml", "search_spaces/nudge_size.yaml"):
        (root / title).parent.mkdir(parents=True)
        (root / title).write_text(block(PAGE, title), encoding="utf-8")
    info = root / "nudge-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nudge\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_entry_points())
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    yield root
    sys.path.remove(str(root))
    sys.modules.pop("nudge", None)


def _entry_points() -> str:
    """Return the page's pyproject.toml lines as an installed package has them."""
    head, line = block(PAGE, "pyproject.toml").strip().splitlines()
    return f"{head.removeprefix('[project.entry-points.').removesuffix(']').join('[]')}\n{line}\n".replace('"', "")


@pytest.fixture(scope="module")
def nudge(folder: Path) -> ModuleType:
    return importlib.import_module("nudge")


def test_it_is_small() -> None:
    text = block(PAGE, "raysweep/editors/nudge.py").splitlines()
    assert sum(bool(line.strip()) for line in text) <= 60
    assert max(map(len, text)) <= 120


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
def test_promise(promise: Callable[[Exam], None], folder: Path, nudge: ModuleType) -> None:
    """Run the page's own test file on one promise."""
    (folder / "test_nudge.py").write_text(block(PAGE, "test_nudge.py"), encoding="utf-8")
    runpy.run_path(str(folder / "test_nudge.py"))["test_promise"](promise)


def test_simie_wraps_it(monkeypatch: pytest.MonkeyPatch, nudge: ModuleType) -> None:
    monkeypatch.setattr(build, "EDITORS", Registry("editor", {"nudge": "nudge:Nudge"}))
    spec = EditorSpec(name="nudge", config={"layer": 1}, wrap=(WrapSpec(name="simie"),))
    for promise in PROMISES:
        if promise.__name__ in ("leaves_the_model_bit_identical", "resume_equals_straight"):
            promise(
                Exam(build=lambda: build.build_editor(spec), lm=tiny_lm("gpt2"), fresh=lambda: tiny_lm("gpt2")),
            )


def test_every_promise_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{promise.__name__}` |" in text for promise in PROMISES)


def test_the_line_and_the_entry_point_name_it(folder: Path) -> None:
    (line,) = (b.text.strip() for b in blocks(PAGE) if b.language == "text")
    name, _, origin = line.rstrip(",").replace('"', "").partition(": ")
    assert (name, origin) == ("nudge", "raysweep.editors.nudge:Nudge")
    table: Registry[Any] = Registry("editor", {n: EDITORS.origin(n) for n in ("rome", "memit")})
    assert table.get("nudge").name == "nudge"
    for kind in ("editors", "wrappers", "datasets", "layouts"):
        assert f"`raysweep.{kind}`" in PAGE.read_text(encoding="utf-8")


def test_the_sweep_plans(folder: Path) -> None:
    editors: Registry[Any] = Registry("editor", {"nudge": "nudge:Nudge"})
    components = replace(Components.installed(), editors=editors, wrappers=WRAPPERS)
    workspace = Workspace(folder)
    found = plan(load_search_space("nudge_size", workspace), workspace, components)
    assert len(found.trials) == 2 * 2 * 3
    assert {t.trial.editor.config["layer"] for t in found.trials} == {1}
    assert YAML(typ="safe", pure=True).load(folder / "hparams/nudge/embedded.yaml")["source"]


def test_its_keys_are_known_without_torch(folder: Path) -> None:
    code = "import sys, nudge; nudge.NudgeConfig(layer=1); assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
