"""Every shipped search space plans, and every shipped hyper-parameter file fits its editor."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from raysweep.belief.spec import BeliefSpec
from raysweep.config.hparams import layers
from raysweep.config.load import read
from raysweep.config.plan import plan
from raysweep.config.sweep import load_search_space
from raysweep.data import DATASETS
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from raysweep.workspace import Workspace

ROOT = Path(__file__).parents[3]
HPARAMS = sorted((ROOT / "hparams").glob("*/*.yaml"))
EMBEDDED = ("smoke", "demo", "demo_lambda")


@pytest.mark.parametrize("path", HPARAMS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_hyper_parameters_fit_their_editor(path: Path) -> None:
    values = dict(YAML(typ="safe", pure=True).load(path))
    assert values.pop("source"), "say where the values come from"
    values.pop("notes", None)
    name = path.parent.name
    if name == "belief":
        BeliefSpec.model_validate(values)
        return
    kind = EDITORS.get(name) if name in EDITORS else WRAPPERS.get(name)
    entries = values.pop("for", [])
    kind.config_type.model_validate(values)
    for entry in entries:
        fits = {key: entry.pop(key) for key in ("editor", "data") if key in entry}
        assert fits.get("editor", "rome") in EDITORS
        assert fits.get("data", "zsre") in DATASETS
        kind.config_type.model_validate({**values, **entry})


def test_simie_around_memit_takes_its_keys_after_the_edit_on_smollm2() -> None:
    """docs/lambda_units.md: over MEMIT's five layers keys taken before the edit lose it, whatever λ is."""
    file = read(ROOT / "hparams/simie/smollm2-135m.yaml")
    keys = {
        editor: dict(pair for tree, _ in layers(file, editor=editor, data="zsre") for pair in tree.items()).get("keys")
        for editor in ("memit", "rome")
    }
    assert keys == {"memit": "after", "rome": None}


@pytest.mark.parametrize("name", EMBEDDED)
def test_shipped_spaces_on_the_embedded_model_plan(name: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert plan(load_search_space(name, workspace), workspace).trials


def test_every_space_says_how_to_run_it() -> None:
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        first, *rest = path.read_text().splitlines()
        assert first.startswith("# raysweep "), path
        assert any(line.startswith("# Question:") for line in rest), path
