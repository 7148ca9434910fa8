"""Gemma 3 (text): scaled embeddings, normed outputs of attention and MLP, a window in most blocks, with angles of their own."""

from dataclasses import replace
from math import sqrt
from typing import Any

from raysweep.models import attention
from raysweep.models.layouts.llama import LAYOUT as LLAMA


def embed_scale(config: Any) -> float:
    """Return √d, by which the model multiplies a row of the embedding."""
    return sqrt(config.hidden_size)


LAYOUT = replace(
    LLAMA,
    model_type="gemma3_text",
    form=None,
    mlp_out_norm="model.layers.{}.post_feedforward_layernorm",
    embed_scale=embed_scale,
    activation="hidden_activation",
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    windows=attention.patterned_windows,
    part_of="gemma3",
    renamed={r"^language_model\.model\.": "model.", r"^language_model\.lm_head": "lm_head"},
)
