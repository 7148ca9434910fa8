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
import torch
from ruamel.yaml import YAML

from raysweep.config.components import Components
from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.config.sweep import load_search_space
from raysweep.editors import EDITORS, build
from raysweep.editors.locate import target_value
from raysweep.editors.wrappers import WRAPPERS
from raysweep.registry import Registry
from raysweep.testing.editor_contract import PROMISES, Exam
from raysweep.testing.fixtures import tiny_lm, toy_records
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
    sys.modules.pop("rebuilt_rome", None)


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
    spec = EditorSpec(name="nudge", config=nudge.Nudge.config_type(layer=1), wrap=(WrapSpec(name="simie"),))
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
    for kind in ("editors", "wrappers", "datasets", "layouts", "metrics", "studies"):
        assert f"`raysweep.{kind}`" in PAGE.read_text(encoding="utf-8")


def test_the_sweep_plans(folder: Path) -> None:
    editors: Registry[Any] = Registry("editor", {"nudge": "nudge:Nudge"})
    components = replace(Components.installed(), editors=editors, wrappers=WRAPPERS)
    workspace = Workspace(folder)
    found = plan(load_search_space("nudge_size", workspace), workspace, components)
    assert len(found.trials) == 2 * 2 * 3
    assert {t.trial.editor.config.layer for t in found.trials} == {1}
    assert YAML(typ="safe", pure=True).load(folder / "hparams/nudge/embedded.yaml")["source"]


def test_its_keys_are_known_without_torch(folder: Path) -> None:
    code = "import sys, nudge; nudge.NudgeConfig(layer=1); assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def rebuilt_rome(folder: Path) -> ModuleType:
    (folder / "rebuilt_rome.py").write_text(block(PAGE, "raysweep/editors/rebuilt_rome.py"), encoding="utf-8")
    return importlib.import_module("rebuilt_rome")


def test_a_variant_is_small() -> None:
    text = block(PAGE, "raysweep/editors/rebuilt_rome.py").splitlines()
    assert sum(bool(line.strip()) for line in text) <= 40


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
def test_promise_of_a_variant(promise: Callable[[Exam], None], rebuilt_rome: ModuleType) -> None:
    config = {"layers": [1], "value": {"steps": 6, "lr": 0.5, "weight_decay": 0.001, "batch": 2}}
    shipped = YAML(typ="safe", pure=True).load(ROOT / "hparams/rome/embedded.yaml")
    learner = {k: v for k, v in shipped.items() if k not in ("source", "notes")}

    def built(values: dict[str, Any]) -> Any:
        return rebuilt_rome.RebuiltRome(rebuilt_rome.RebuiltRome.config_type.model_validate(values))

    promise(
        Exam(
            build=lambda: built(config),
            lm=tiny_lm("gpt2"),
            fresh=lambda: tiny_lm("gpt2"),
            learner=lambda: built(learner),
        )
    )


def test_a_variant_maps_the_averaged_key_to_the_value(rebuilt_rome: ModuleType) -> None:
    """``(W + ΔW) k̄ = v*`` for the key averaged over contexts, where ROME has it for the bare prompt's."""
    lm = tiny_lm("gpt2")
    config = rebuilt_rome.RebuiltRome.config_type.model_validate(
        {"layers": [1], "adjust": False, "value": {"steps": 3}, "contexts": {"templates": ["Yes. {}", "So, {}"]}}
    )
    name, record = f"{lm.layout.mlp_out.format(1)}.weight", toy_records(1)[0]
    values: list[target_value.Value] = []
    optimise = target_value.optimise

    def spy(*args: Any, **kwargs: Any) -> list[target_value.Value]:
        values[:] = optimise(*args, **kwargs)
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_value, "optimise", spy)
        step = rebuilt_rome.RebuiltRome(config).edit(lm, [record], None, artifacts={}, rng=torch.Generator())
    (value,) = values
    keys = value.keys.double()
    weight = lm.logical(name).double()
    bias = value.output.double() - weight @ keys[0]
    after = (weight + step.patch.deltas[name].dense().double()) @ keys.mean(0) + bias
    torch.testing.assert_close(after, (value.origin + value.shift).double(), rtol=1e-5, atol=1e-5)
