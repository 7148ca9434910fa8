"""gpt-oss: each token chooses some of many MLPs (experts); every other block has a window, each head a score that nobody gets."""

from dataclasses import replace

from raysweep.models import attention
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="gpt_oss",
    form=None,
    experts="num_local_experts",
    mlp_in=(),
    fused_gate=True,
    mlp_out="model.layers.{}.mlp.experts",
    defaults={
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "vocab_size": 201_088,
        "max_position_embeddings": 131_072,
        "sliding_window": 128,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": False,
    },
    windows=attention.patterned_windows,
)
