"""A layout: StableLM, whose parts are called as Llama's are."""

from __future__ import annotations

from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="stablelm",
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
)
