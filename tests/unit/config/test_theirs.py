"""Hyper-parameter files of EasyEdit, SimIE, MEMIT and AlphaEdit: made up here in their exact form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.config.components import ModelFacts
from raysweep.config.places import Source
from raysweep.config.schema import ModelSpec
from raysweep.config.theirs import tables
from raysweep.config.theirs.reading import Reading, about, is_theirs, open_file, read
from raysweep.editors import EDITORS
from raysweep.models.layout import LAYOUTS

LLAMA = ModelFacts(4, 2048, parts=LAYOUTS.get("llama").parts())
GPT2 = ModelFacts(4, 1024, parts=LAYOUTS.get("gpt2").parts())
PARTS = """
layer_module_tmp: "model.layers.{}"
mlp_module_tmp: "model.layers.{}.mlp"
attn_module_tmp: "model.layers.{}.self_attn"
ln_f_module: "model.norm"
lm_head_module: "lm_head"
"""
LOCATE = f"""
model_name: "./hugging_cache/llama-tiny"
stats_dir: "./data/stats"
device: 0
layers: [1, 2]
clamp_norm_factor: 4
fact_token: "subject_last"
v_num_grad_steps: 5
v_lr: 5e-1
v_loss_layer: 3
v_weight_decay: 1e-3
kl_factor: 0.0625
rewrite_module_tmp: "model.layers.{{}}.mlp.down_proj"
mom2_dataset: "wikipedia"
mom2_n_samples: 1000
mom2_dtype: "float32"
{PARTS}"""
MEMIT = f'alg_name: "MEMIT"\nlayer_selection: "all"\nmom2_adjustment: true\nmom2_update_weight: 15000\n{LOCATE}'
ROME = f'alg_name: "ROME"\nmom2_adjustment: false\ncontext_template_length_params: [[5, 10], [10, 10]]\n{LOCATE}'
ALPHAEDIT = f'alg_name: "AlphaEdit"\nP_loc: "./null_space_project.pt"\nnullspace_threshold: 2e-2\nL2: 10\n{LOCATE}'
FT = f"""alg_name: "FT"
layers: [2]
num_steps: 25
batch_size: 1
max_length: 40
lr: 5e-4
weight_decay: 0
kl_factor: 0
norm_constraint: false
objective_optimization: "target_new"
rewrite_module_tmp: "model.layers.{{}}.mlp.down_proj.weight"
model_parallel: false
{PARTS}"""
GRACE = """alg_name: "GRACE"
inner_params:
- model.layers[2].mlp.down_proj.weight
edit_lr: 1.0
n_iter: 50
eps: 5.0
dist_fn: euc
val_init: cold
val_train: sgd
val_reg: None
reg: early_stop
replacement: replace_last
eps_expand: moving_avg
num_pert: 8
dropout: 0.0
"""
WISE = """alg_name: "WISE"
mask_ratio: 0.2
edit_lr: 1.0
n_iter: 70
norm_constraint: 1.0
act_margin: [5.0, 20.0, 10.0]
act_ratio: 0.88
save_freq: 500
merge_freq: 1000
merge_alg: 'ties'
objective_optimization: 'only_label'
inner_params:
- model.layers[3].mlp.gate_proj.weight
densities: 0.53
weights: 1.0
retrieve: True
replay: False
"""
MEND = """alg_name: "MEND"
archive: {archive}
model_class: LlamaForCausalLM
inner_params:
- model.layers.2.mlp.gate_proj.weight
- model.layers.2.mlp.up_proj.weight
- model.layers.2.mlp.down_proj.weight
- model.layers.3.mlp.gate_proj.weight
- model.layers.3.mlp.up_proj.weight
- model.layers.3.mlp.down_proj.weight
lr: 1e-6
edit_lr: 1e-4
lr_scale: 1.0
mlp_class: IDMLP
rank: 1920
shared: True
batch_size: 1
max_iters: 100000
val_interval: 1000
accumulate_bs: 10
grad_clip: 100.
"""
LORA = """alg_name: "LoRA"
lora_type: "lora"
layers: []
num_steps: 30
lr: 5e-3
weight_decay: 0
kl_factor: 0
rank: 8
lora_alpha: 32
lora_dropout: 0.0
norm_constraint: false
target_modules: ["down_proj"]
"""
VALUE = {"steps": 5, "lr": 0.5, "weight_decay": 1e-3, "clamp": 4, "kl": 0.0625}
MOMENTS = {"text": {"name": "wikipedia", "tokens": 500_000}, "width": 2048}
SHARED = {"layers": [1, 2], "value": VALUE, "moments": MOMENTS}
TRAIN = {"lr": 1e-6, "batch": 10, "steps": 10_000, "every": 100, "clip": 100.0}
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rome": ("rome", ROME, {**SHARED, "adjust": False, "contexts": {"lengths": [[5, 10], [10, 10]]}}),
    "memit": ("memit", MEMIT, {**SHARED, "moment_weight": 15000}),
    "alphaedit": ("alphaedit", ALPHAEDIT, {**SHARED, "threshold": 0.02, "ridge": 10, "pre": 1}),
    "alphaedit of simie": ("alphaedit", f"{ALPHAEDIT}Pre: 0\n", {**SHARED, "threshold": 0.02, "ridge": 10, "pre": 0}),
    "ft": (
        "ft", FT,
        {"layers": [2], "steps": 25, "lr": 5e-4, "weight_decay": 0, "norm_constraint": None, "objective": "target_new"},
    ),
    "grace": (
        "grace",
        GRACE,
        {"layer": 2, "matrix": "out", "lr": 1.0, "steps": 50, "radius": 5.0, "start": "cold", "replace": "last",
         "expand": "moving_average"},
    ),
    "wise": (
        "wise",
        WISE,
        {"layer": 3, "matrix": "in", "lr": 1.0, "steps": 70, "norm_constraint": 1.0, "mask_ratio": 0.2, "act_ratio": 0.88,
         "margins": {"alpha": 5.0, "beta": 20.0, "gamma": 10.0}, "shard": 500, "merge_every": 1000,
         "merge": {"algorithm": "ties", "density": 0.53, "weight": 1.0}, "retrieve": True, "replay": False},
    ),
    "mend": (
        "mend",
        MEND.format(archive="./results/models/MEND/llama"),
        {"layers": [2, 3], "modules": ["mlp_in", "mlp_out"], "weights": {"path": "./results/models/MEND/llama"},
         "edit_lr": 1e-4, "rank": 1920, "shared": True, "train": TRAIN},
    ),
    "mend to train": (
        "mend",
        MEND.format(archive="null"),
        {"layers": [2, 3], "modules": ["mlp_in", "mlp_out"], "weights": {"path": ""}, "edit_lr": 1e-4, "rank": 1920, "shared": True,
         "train": TRAIN},
    ),
    "lora": ("lora", LORA, {"steps": 30, "lr": 5e-3, "weight_decay": 0, "rank": 8, "alpha": 32}),
}  # fmt: skip


def reading_of(text: str, editor: str, tmp_path: Path, facts: ModelFacts = LLAMA, name: str = "theirs.yaml") -> Reading:
    (tmp_path / name).write_text(text)
    source, problems = open_file(tmp_path / name)
    assert problems == []
    return read(source, editor, EDITORS.get(editor).config_type.theirs, facts)


@pytest.mark.parametrize("case", FILES)
def test_every_key_becomes_ours(case: str, tmp_path: Path) -> None:
    editor, text, wanted = FILES[case]
    found = reading_of(text, editor, tmp_path)
    assert [str(p) for p in found.problems] == []
    assert found.source.tree == wanted
    EDITORS.get(editor).config_type.model_validate(found.source.tree)


def test_each_editor_with_a_table_has_a_file_here() -> None:
    assert {editor for editor, _, _ in FILES.values()} == {
        name for name in EDITORS if EDITORS.get(name).config_type.theirs
    }


def test_json_with_tabs_and_without_a_name(tmp_path: Path) -> None:
    text = '{\n\t"model_name": "gpt2-xl",\t"layers": [1],\n\t"v_lr": 5e-1,\n\t"mom2_update_weight": 20000\n}'
    found = reading_of(text, "memit", tmp_path, name="gpt2-xl.json")
    assert found.problems == []
    assert found.source.tree == {"layers": [1], "value": {"lr": 0.5}, "moment_weight": 20000}


def test_a_value_has_the_place_of_theirs(tmp_path: Path) -> None:
    found = reading_of("alg_name: ROME\nv_lr: 5e-1\n", "rome", tmp_path)
    place = found.source.value(("value", "lr"))
    assert (Path(place.file).name, place.line, place.column) == ("theirs.yaml", 2, 7)


def test_the_bias_is_trained_where_their_name_takes_it_in(tmp_path: Path) -> None:
    # Their code trains every parameter whose name holds this text.
    template = 'rewrite_module_tmp: "transformer.h.{}.mlp.c_proj'
    plain, weight = (reading_of(f'layers: [1]\n{template}{end}"\n', "ft", tmp_path, GPT2) for end in ("", ".weight"))
    assert (plain.source.tree.get("train_bias"), weight.source.tree.get("train_bias")) == (True, None)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = """alg_name: "ROME"
fact_token: "last"
v_loss_layer: 31
rewrite_module_tmp: "model.layers.{}.mlp.up_proj"
ln_f_module: "transformer.ln_f"
fp16: true
mom2_dataset: "pile"
mom2_n_samples: many
v_lrr: 1
"""
    found = [f"{p.line}: {p.message}" for p in reading_of(text, "rome", tmp_path).problems]
    assert [line.split()[:2] for line in found] == [
        ["2:", "fact_token:"], ["3:", "v_loss_layer:"], ["4:", "rewrite_module_tmp:"], ["5:", "ln_f_module:"], ["6:", "fp16:"],
        ["7:", "mom2_dataset:"], ["8:", "mom2_n_samples:"], ["9:", "v_lrr:"],
    ]  # fmt: skip
    assert "the key of another token than the subject's last one" in found[0]
    assert "block 31 is not the last one, 3" in found[1]
    assert "to edit another matrix than the MLP's last one" in found[2]
    assert "write model: {dtype: float16}" in found[4]


REFUSED = """
grace | inner_params: ['a.layers[2].mlp.x.weight'] | is no matrix of an MLP of this model
grace | inner_params: [model.norm.weight] | has no number of a block
grace | inner_params: [] | must be a list of weight matrices
grace | inner_params: ['model.layers[2].mlp.down_proj.weight', 'model.layers[2].mlp.down_proj.weight'] | there can be one matrix
grace | eps_expand: decay | coverage or moving_avg is
mend | inner_params: [model.layers.1.mlp.up_proj, model.layers.2.mlp.down_proj] | same matrices
wise | act_margin: 5.0 | must be a list of 3 numbers
lora | target_modules: [q_proj, v_proj] | adapters at other maps
lora | lora_type: adalora | AdaLoRA
rome | alg_name: MEMIT | this file is of MEMIT, not of 'rome'
null | v_lr: 1 | are not read for 'null'
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_what_is_not_offered_is_refused_by_name(line: str, tmp_path: Path) -> None:
    editor, text, words = line.split(" | ")
    (only,) = reading_of(f"{text}\n", editor, tmp_path).problems
    assert words in only.message


def test_of_an_unknown_model_names_are_not_compared_but_matrices_must_be_told(tmp_path: Path) -> None:
    assert reading_of(ROME, "rome", tmp_path, ModelFacts()).problems == []
    (only,) = reading_of(GRACE, "grace", tmp_path, ModelFacts()).problems
    assert "cannot be told before the model is here" in only.message


def test_what_has_no_effect_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(MEMIT)
    source, _ = open_file(tmp_path / "theirs.yaml")
    line = about(source, read(source, "memit", tables.MEMIT, LLAMA), None)
    assert "written for llama-tiny" in line
    assert "layer_selection, mom2_adjustment (changes no number in the published code (quirk Q46))" in line
    assert "stats_dir (second moments lie in the workspace" in line


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ("meta-llama/Llama-2-7b-hf", ModelSpec(name="llama-2-7b"), True),
        ("./hugging_cache/gpt2-xl/", ModelSpec(name="mine", path="/models/GPT2-XL"), True),
        ("gpt2-xl", ModelSpec(name="mine", hparams="gpt2-xl"), True),
        ("gpt2-xl", ModelSpec(name="gpt2"), False),
        ("./hugging_cache/llama-7b", ModelSpec(name="embedded"), False),
    ],
)
def test_a_file_written_for_another_model_is_said(theirs: str, ours: ModelSpec, same: bool) -> None:
    source = Source("theirs.yaml", tree={"alg_name": "ROME", "model_name": theirs})
    line = about(source, Reading(source), ours)
    named = theirs.rstrip("/").rpartition("/")[2]
    assert line == f"hyper-parameters of theirs.yaml, written for {named}" + (
        "" if same else f" and used on {ours.name}: see that layers and rates fit it"
    )


def test_files_of_ours_are_told_from_theirs() -> None:
    assert not is_theirs({"source": "here", "layers": [5], "steps": 3, "lr": 0.1, "rank": 4})
    assert is_theirs({"layers": [5], "num_steps": 3})
