"""Phi-1, 1.5 and 2: attention and MLP side by side, biases everywhere, also in the head; partly rotary positions."""

from dataclasses import replace

from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="phi",
    form=None,
    mlp_in=("model.layers.{}.mlp.fc1",),
    mlp_out="model.layers.{}.mlp.fc2",
    attn_out="model.layers.{}.self_attn.dense",
    defaults={
        **LLAMA.defaults,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "vocab_size": 51_200,
    },
    norm="model.final_layernorm",
)
