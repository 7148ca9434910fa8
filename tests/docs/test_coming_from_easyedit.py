"""docs/coming_from_easyedit.md: its commands run on a tiny Llama, and their file gives the numbers of our own format."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli import main
from raysweep.config.plan import open_plan
from raysweep.results.tables import open_results
from raysweep.testing.fixtures import save_tiny
from raysweep.workspace import Workspace
from tests.docs.pages import ROOT, block

PAGE = ROOT / "docs/coming_from_easyedit.md"
THEIRS = """alg_name: "MEMIT"
model_name: "./hugging_cache/tiny-llama"
stats_dir: "./data/stats"
device: 0
layers: [1, 2]
clamp_norm_factor: 4
layer_selection: "all"
fact_token: "subject_last"
v_num_grad_steps: 4
v_lr: 5e-1
v_loss_layer: 2
v_weight_decay: 1e-3
kl_factor: 0.0625
mom2_adjustment: true
mom2_update_weight: 15000
rewrite_module_tmp: "model.layers.{}.mlp.down_proj"
layer_module_tmp: "model.layers.{}"
mlp_module_tmp: "model.layers.{}.mlp"
attn_module_tmp: "model.layers.{}.self_attn"
ln_f_module: "model.norm"
lm_head_module: "lm_head"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
"""
OURS = """source: a test
layers: [1, 2]
value: {steps: 4, lr: 0.5, weight_decay: 1.0e-3, clamp: 4, kl: 0.0625}
moment_weight: 15000
moments: {text: {name: wikipedia, tokens: 50000000}, width: 256}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_ROOT", raising=False)
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    save_tiny(tmp_path / "models/tiny-llama", "llama", bos=True)
    for name, text in {"EasyEdit/hparams/MEMIT/tiny-llama.yaml": THEIRS, "ours.yaml": OURS}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(line: str) -> None:
    assert main.main(shlex.split(line)[1:]) == 0, line


def facts(root: Path, sweep: str) -> tuple[tuple[str, ...], list[dict[str, Any]], list[dict[str, Any]]]:
    found = open_results(sweep, Workspace(root))
    return found.keys, found.probes().to_pylist(), found.stats().to_pylist()


def test_their_file_gives_the_numbers_of_ours(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = block(PAGE, "edit").strip()
    run(line)
    theirs = "--hparams EasyEdit/hparams/MEMIT/tiny-llama.yaml"
    assert theirs in line
    run(line.replace(theirs, "--hparams ours.yaml --editor MEMIT --name ours"))
    edited = facts(root, "edit")
    assert edited == facts(root, "ours")
    assert len(edited[1]) > 10
    # The search space of the page names the file at its arm.
    (root / "space.yaml").write_text(block(PAGE, "space.yaml"))
    capsys.readouterr()
    run(block(PAGE, "plan").strip())
    assert "1 trial" in capsys.readouterr().out
    (planned,) = open_plan("space.yaml", Workspace(root)).trials
    stored = json.loads((root / f"results/edit/{edited[0][0]}/trial.json").read_text())
    assert planned.trial.editor.model_dump(mode="json") == stored["trial"]["editor"]


def test_their_results_stand_beside_each_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        {
            "case_id": i,
            "pre": {"rewrite_acc": [0.0]},
            "requested_rewrite": {"prompt": "Who?", "target_new": "Ann", "subject": "W"},
            "post": {
                "rewrite_acc": [1.0],
                "rephrase_acc": [0.5],
                "locality": {"neighborhood_acc": [1.0]},
                "portability": {},
            },
        }
        for i in range(2)
    ]
    lines = block(PAGE, "import").strip().splitlines()
    for line in lines[:2]:
        (name,) = (word for word in shlex.split(line) if word.endswith(".json"))
        (root / name).write_text(json.dumps(cases))
    for line in lines:
        run(line)
    said = capsys.readouterr()
    assert "measured by another protocol than the reference" in said.out + said.err
