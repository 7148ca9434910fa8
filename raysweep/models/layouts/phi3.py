"""Phi-3, 3.5 and 4-mini: Llama's parts, with gate and values of the MLP from one map; windows, and longrope beyond 4096 tokens."""

from dataclasses import replace

from raysweep.models import attention
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="phi3",
    mlp_in=("model.layers.{}.mlp.gate_up_proj",),
    fused_gate=True,
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32_064,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    windows=attention.equal_windows,
)
