"""Falcon: attention and MLP side by side, queries with few keys and values, rotary positions (ALiBi is refused)."""

from raysweep.models import attention
from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="falcon",
    body="transformer",
    blocks="transformer.h",
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.dense_h_to_4h",),
    mlp_out="transformer.h.{}.mlp.dense_4h_to_h",
    attn_out="transformer.h.{}.self_attention.dense",
    norm="transformer.ln_f",
    head="lm_head",
    embed="transformer.word_embeddings",
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
