"""`raysweep models probe`: a known family comes out as its layout is, the layout of an unknown one keeps the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from raysweep.cli.main import main
from raysweep.errors import ModelError
from raysweep.models.forward.device_blocks import class_of
from raysweep.models.layout import LAYOUTS, Layout
from raysweep.testing import layout_file, layout_probe
from raysweep.testing.layout_contract import check_layout_contract, tiny_model

Make = Callable[..., Path]


def saved(text: str) -> Layout:
    """Return the layout of a file with *text* in it."""
    names: dict[str, object] = {}
    exec(compile(text, "layout.py", "exec"), names)
    layout = names["LAYOUT"]
    assert isinstance(layout, Layout)
    return layout


@pytest.mark.parametrize("kind", ["falcon", "gemma3_text", "gpt2", "gpt_oss", "llama", "phi3", "qwen3", "qwen3_5_text"])
def test_a_known_family_comes_out_as_its_layout(kind: str) -> None:
    proposal, ours = layout_probe.propose(AutoConfig.for_model(kind)), LAYOUTS.get(kind)
    assert proposal.broken == ""
    found, module = saved(layout_file.layout_file(proposal)), tiny_model(kind)
    if ours.form is not None and class_of(module.get_submodule(ours.block.format(0))) != ours.form.block_class:
        ours = replace(ours, form=None)  # inherited, and never used
    for field in (f.name for f in fields(Layout) if f.name not in ("defaults", "embed_scale", "part_of", "renamed")):
        assert getattr(found, field) == getattr(ours, field), field
    assert dict(ours.defaults).items() <= dict(found.defaults).items()
    scales = [1.0 if one.embed_scale is None else one.embed_scale(module.config) for one in (found, ours)]
    assert scales[0] == scales[1]


@pytest.mark.parametrize("kind", ["gemma", "stablelm", "starcoder2"])
def test_an_unknown_family_gets_a_layout_that_keeps_the_contract(kind: str) -> None:
    assert kind not in LAYOUTS
    proposal = layout_probe.propose(AutoConfig.for_model(kind))
    found = saved(layout_file.layout_file(proposal))
    assert found.model_type == kind
    check_layout_contract(found, tiny_model(kind, seed=1))
    assert (proposal.broken, found.windows is not None) == ("", True)


def test_multiplied_outputs_and_embeddings_are_told_of() -> None:
    config = AutoConfig.for_model("granite", embedding_multiplier=12.0, residual_multiplier=0.25)
    proposal = layout_probe.propose(config)
    assert proposal.scale == "float(config.embedding_multiplier)"
    assert proposal.broken.startswith("mlp: a shift of what")
    assert any(s.startswith("mlp_out: ") for s in proposal.unsure)
    assert proposal.layout.form is None


def test_the_command_prints_a_file_and_says_what_to_do(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    folder = make_folder("stablelm")
    assert main(["models", "probe", str(folder)]) == 0
    printed = capsys.readouterr()
    assert saved(printed.out).mlp_out == "model.layers.{}.mlp.down_proj"
    assert "unsure" not in printed.err
    for said in ("LAYOUTS of raysweep/models/layout.py", '[project.entry-points."raysweep.layouts"]', "pytest"):
        assert said in printed.err
    # Weights are not needed; of those that are there, names are compared.
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()
    assert main(["models", "probe", str(folder)]) == 0
    capsys.readouterr()
    other = make_folder("gpt2", name="other")
    (other / "config.json").write_text(json.dumps(config))
    assert main(["models", "probe", str(other)]) == 0
    assert "unsure: weights: the files have no tensor of 'model.layers.0.mlp.gate_proj'" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "cohere", "tie_word_embeddings": True}))
    assert main(["models", "probe", str(folder)]) == 1
    assert (
        "not right yet: head: 'lm_head' of what 'model' puts out is not the model's logits" in capsys.readouterr().err
    )


def test_what_transformers_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobodys"}')
    with pytest.raises(ModelError, match="transformers makes no model of type 'nobodys'"):
        layout_probe.propose_for(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"bert|Bert"):
        layout_probe.propose_for(tmp_path)
