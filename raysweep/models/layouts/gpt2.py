"""GPT-2: ``Conv1D`` weights stored as ``[d_in, d_out]``, learnt positions, tied head."""

from __future__ import annotations

from typing import Any

from raysweep.models import attention
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
    defaults={
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "vocab_size": 50_257,
        "n_positions": 1024,
        "tie_word_embeddings": True,
    },
    positions_end=True,
    windows=attention.no_windows,
    position_embed="transformer.wpe",
    activation="activation_function",
    form=FORM,
)
