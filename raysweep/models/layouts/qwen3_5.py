"""Qwen3.5 (text): Llama's parts, but in three of four blocks linear attention, whose state is more than keys and values."""

from dataclasses import replace

from raysweep.models import attention
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="qwen3_5_text",
    form=None,
    linear_attn_out="model.layers.{}.linear_attn.out_proj",
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 248_320,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
    windows=attention.full_or_linear,
    shares_prefixes=False,
    part_of="qwen3_5",
)
