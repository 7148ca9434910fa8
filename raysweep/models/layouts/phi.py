"""Phi-1, 1.5 and 2: attention and MLP side by side, biases everywhere, also in the head; partly rotary positions."""

from raysweep.models import attention
from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="phi",
    body="model",
    blocks="model.layers",
    block="model.layers.{}",
    mlp="model.layers.{}.mlp",
    mlp_in=("model.layers.{}.mlp.fc1",),
    mlp_out="model.layers.{}.mlp.fc2",
    attn_out="model.layers.{}.self_attn.dense",
    norm="model.final_layernorm",
    head="lm_head",
    embed="model.embed_tokens",
    defaults={
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "vocab_size": 51_200,
        "tie_word_embeddings": False,
    },
    windows=attention.no_windows,
)
