"""The keys of the published hyper-parameter files, by editor, and what becomes of each (quirk Q46: those that nothing reads)."""

from __future__ import annotations

from raysweep.config.theirs.rules import (
    Becomes,
    Corpus,
    Ignored,
    LastBlock,
    Matrices,
    Only,
    Part,
    Table,
    becomes,
    choice,
    false_is_null,
)
from raysweep.jsontypes import Json

ARTICLE = 500
"""Tokens of an article of Wikipedia, about; their files count articles, ours tokens."""


def _articles(value: Json) -> Json:
    # `true` would pass for the number 1.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a number of articles")
    return value * ARTICLE


DEAD = Ignored("changes no number in the published code (quirk Q46)")
_CHAT = Only((False, None), "prompts in a chat template: write data: {prompt: chat}")

EVERYWHERE: Table = {
    "device": Ignored("the device is what Ray or the machine gives (resources.gpu)"),
    "model_parallel": Ignored("on how many devices a model lies changes no number"),
    "batch_size": Ignored("records per call of the editor are protocol.batch_size"),
    "fp16": Only((False, None), "weights in fp16: write model: {dtype: float16}"),
    "bf16": Only((False, None), "weights in bf16: write model: {dtype: bfloat16}"),
    "use_chat_template": _CHAT,
    "sequential_edit": Ignored("a trial here is always one lifelong run"),
    "max_length": Ignored("rows are never cut: a record longer than the model's positions is refused"),
}

# Names of modules choose nothing here, as a layout knows its parts; they show a file for another architecture.
_PARTS: Table = {
    "layer_module_tmp": Part(("block",)),
    "mlp_module_tmp": Part(("mlp",)),
    "attn_module_tmp": Part(("attn",)),
    "ln_f_module": Part(("norm",)),
    "lm_head_module": Part(("head", "embed")),
}

_LOCATE: Table = {
    **_PARTS,
    "stats_dir": Ignored("second moments lie in the workspace; moments.files reads theirs"),
    "layers": becomes("layers"),
    "v_num_grad_steps": becomes("value.steps"),
    "v_lr": becomes("value.lr"),
    "v_weight_decay": becomes("value.weight_decay"),
    "clamp_norm_factor": becomes("value.clamp"),
    "kl_factor": becomes("value.kl"),
    "v_loss_layer": LastBlock(),
    "fact_token": Only(("subject_last",), "the key of another token than the subject's last one"),
    "rewrite_module_tmp": Part(("mlp_out",), "to edit another matrix than the MLP's last one"),
    "mom2_dataset": Corpus(("wikipedia", "wikitext")),
    "mom2_n_samples": Becomes(("moments.text.tokens",), _articles),
    "mom2_dtype": Ignored("sums are taken in fp64; moments.ref_fp32: true takes them in fp32 (quirk Q10)"),
}

ROME: Table = {
    **_LOCATE,
    "mom2_adjustment": becomes("adjust"),
    "context_template_length_params": becomes("contexts.lengths"),
}

MEMIT: Table = {
    **_LOCATE,
    "layer_selection": DEAD,
    "mom2_adjustment": DEAD,
    "mom2_update_weight": becomes("moment_weight"),
}

ALPHAEDIT: Table = {
    **_LOCATE,
    "layer_selection": DEAD,
    "mom2_adjustment": DEAD,
    "mom2_update_weight": DEAD,
    "nullspace_threshold": becomes("threshold"),
    "L2": becomes("ridge"),
    # Only SimIE's copy has the key; without it their code remembers the keys of all earlier edits.
    "Pre": Becomes(("pre",), absent=1),
    "P_loc": Ignored("projectors are computed and kept; null_space: {path: FILE} reads theirs"),
}

FT: Table = {
    **_PARTS,
    "layers": becomes("layers"),
    "num_steps": becomes("steps"),
    "lr": becomes("lr"),
    "weight_decay": becomes("weight_decay"),
    "kl_factor": DEAD,
    "norm_constraint": Becomes(("norm_constraint",), false_is_null),
    "objective_optimization": becomes("objective"),
    # Parameters are chosen by whether this is part of their name: without its end, the bias is, too (quirk Q14).
    "rewrite_module_tmp": Part(("mlp_out",), "to train another matrix than the MLP's last one", bias="train_bias"),
}

GRACE: Table = {
    "inner_params": Matrices(several=False),
    "edit_lr": becomes("lr"),
    "n_iter": becomes("steps"),
    "eps": becomes("radius"),
    "val_init": becomes("start"),
    "val_train": Only(("sgd",), "to train values under perturbed keys"),
    "replacement": Becomes(("replace",), choice(replace_last="last", replace_prompt="prompt", replace_all="all")),
    "eps_expand": Becomes(("expand",), choice(coverage="coverage", moving_avg="moving_average")),
    **dict.fromkeys(("num_pert", "reg", "val_reg", "dropout", "dist_fn"), DEAD),
}

_NO_FILE = Only((None,), "a state that was stored by their code, which only their code can read")
WISE: Table = {
    "inner_params": Matrices(several=False),
    "edit_lr": becomes("lr"),
    "n_iter": becomes("steps"),
    "norm_constraint": Becomes(("norm_constraint",), false_is_null),
    "mask_ratio": becomes("mask_ratio"),
    "act_margin": becomes("margins.alpha", "margins.beta", "margins.gamma"),
    "act_ratio": becomes("act_ratio"),
    "save_freq": becomes("shard"),
    "merge_freq": becomes("merge_every"),
    "merge_alg": becomes("merge.algorithm"),
    "densities": becomes("merge.density"),
    "weights": becomes("merge.weight"),
    "retrieve": becomes("retrieve"),
    "replay": becomes("replay"),
    "objective_optimization": Only(("only_label",), "to learn the prompt too, not the target alone"),
    "save_path": _NO_FILE,
    "load_path": _NO_FILE,
}

_NETWORK = "another hypernetwork than the published one"
_TRAINER = Ignored("is of their trainer's reports and files; here train-mend has its own")
MEND: Table = {
    "archive": Becomes(("weights.path",), lambda value: value or ""),
    "inner_params": Matrices(several=True),
    "edit_lr": becomes("edit_lr"),
    "rank": becomes("rank"),
    "shared": becomes("shared"),
    # Their file is flat; here the keys of the hypernetwork's training lie below `train`.
    "lr": becomes("train.lr"),
    "lr_lr": becomes("train.lr_lr"),
    "seed": becomes("train.seed"),
    "cedit": becomes("train.cedit"),
    "cloc": becomes("train.cloc"),
    "grad_clip": becomes("train.clip"),
    "accumulate_bs": becomes("train.batch"),
    # Their trainer counts records, ours updates of accumulate_bs records each.
    "max_iters": Becomes(("train.steps",), per="accumulate_bs"),
    "val_interval": Becomes(("train.every",), per="accumulate_bs"),
    "val_steps": becomes("train.validation"),
    "one_sided": Only((False,), _NETWORK),
    "n_hidden": Only((1,), _NETWORK),
    "init": Only(("id",), _NETWORK),
    "norm": Only((True,), _NETWORK),
    "combine": Only((True,), _NETWORK),
    "x_only": Only((False,), _NETWORK),
    "delta_only": Only((False,), _NETWORK),
    "mlp_class": Only(("IDMLP",), _NETWORK),
    "dropout": Only((0.0, 0), "to train with dropout"),
    "train_base": Only((False,), "to train the model itself too"),
    "no_grad_layers": Only((None,), "to cut the gradient below some layers"),
    "opt": Only(("Adam",), "another optimiser"),
    "half": Only((False,), "weights in fp16: write model: {dtype: float16}"),
    **dict.fromkeys(("lr_scale", "act", "hidden_dim", "cbase"), DEAD),
    "alg": Ignored("alg_name says it"),
    **dict.fromkeys(("model_class", "tokenizer_class", "tokenizer_name"), Ignored("the model's own folder says it")),
    **dict.fromkeys(
        ("model_save_pt", "silent", "log_interval", "eval_log_interval", "final_eval", "early_stop_patience", "early_stop_key",
         "eval_only", "debug", "save", "verbose", "val_batch_size", "results_dir", "task", "max_epochs"), _TRAINER
    ),
}  # fmt: skip
