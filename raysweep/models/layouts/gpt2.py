"""GPT-2: ``Conv1D`` weights stored as ``[d_in, d_out]``, learnt positions, tied head."""

from __future__ import annotations

from typing import Any

from raysweep.models.layout import BlockForm, Layout


def scale(block: Any) -> float:
    """Return by what scores are multiplied."""
    return float(block.attn.scaling)


FORM = BlockForm(
    block_class="transformers.models.gpt2.modeling_gpt2.GPT2Block",
    norm="layer",
    attention_norm="transformer.h.{}.ln_1",
    mlp_norm="transformer.h.{}.ln_2",
    qkv=("transformer.h.{}.attn.c_attn",),
    scale=scale,
    activation="activation_function",
)
LAYOUT = Layout(
    model_type="gpt2",
    body="transformer",
    blocks="transformer.h",
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.c_fc",),
    mlp_out="transformer.h.{}.mlp.c_proj",
    attn_out="transformer.h.{}.attn.c_proj",
    norm="transformer.ln_f",
    head="lm_head",
    embed="transformer.wte",
    position_embed="transformer.wpe",
    form=FORM,
)
