"""Falcon: attention and MLP side by side, queries with few keys and values, rotary positions (ALiBi is refused)."""

from dataclasses import replace

from raysweep.models import attention
from raysweep.models.layouts.gpt2 import LAYOUT as GPT2

LAYOUT = replace(
    GPT2,
    model_type="falcon",
    embed="transformer.word_embeddings",
    position_embed=None,
    positions_end=False,
    form=None,
    mlp_in=("transformer.h.{}.mlp.dense_h_to_4h",),
    mlp_out="transformer.h.{}.mlp.dense_4h_to_h",
    attn_out="transformer.h.{}.self_attention.dense",
    activation="activation",
    overwrites_mlp_output=True,
    defaults={
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "vocab_size": 65_024,
        "tie_word_embeddings": True,
    },
    windows=attention.rotary_only,
)
