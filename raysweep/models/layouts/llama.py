"""Llama 2 and 3, and what shares their code (SmolLM2)."""

from raysweep.models import attention
from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="llama",
    body="model",
    blocks="model.layers",
    block="model.layers.{}",
    mlp="model.layers.{}.mlp",
    mlp_in=("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    mlp_out="model.layers.{}.mlp.down_proj",
    attn_out="model.layers.{}.self_attn.o_proj",
    norm="model.norm",
    head="lm_head",
    embed="model.embed_tokens",
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
    windows=attention.no_windows,
)
