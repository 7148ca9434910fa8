"""The keys of EasyEdit's files of LoRA, and what becomes of each."""

from __future__ import annotations

from raysweep.config.theirs.rules import Only, Part, Table, becomes
from raysweep.config.theirs.tables import DEAD

LORA: Table = {
    "lora_type": Only(("lora",), "AdaLoRA, whose ranks are pruned while training"),
    "layers": Only(([],), "adapters in some blocks; here every block has one"),
    "target_modules": Part(("mlp_out",), "adapters at other maps than the MLP's last one, where they are here"),
    "num_steps": becomes("steps"),
    "lr": becomes("lr"),
    "weight_decay": becomes("weight_decay"),
    "rank": becomes("rank"),
    "lora_alpha": becomes("alpha"),
    "lora_dropout": Only((0.0, 0), "to train with dropout"),
    "kl_factor": DEAD,
    "norm_constraint": Only((False,), "to keep each entry near its old value"),
}
