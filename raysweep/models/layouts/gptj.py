"""GPT-J: GPT-2's parts under other names; attention and MLP side by side in a block, untied head with a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raysweep.models.layouts.gpt2 import FORM
from raysweep.models.layouts.gpt2 import LAYOUT as GPT2

if TYPE_CHECKING:
    from torch import Tensor


def angles(body: Any, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``cos`` and ``sin`` of the angles, from the table that each block holds."""
    sin, cos = body.h[0].attn.embed_positions[positions].to(like.dtype).chunk(2, -1)
    return cos, sin


def scale(block: Any) -> float:
    """Return by what scores are multiplied."""
    return 1.0 / float(block.attn.scale_attn)


LAYOUT = replace(
    GPT2,
    model_type="gptj",
    mlp_in=("transformer.h.{}.mlp.fc_in",),
    mlp_out="transformer.h.{}.mlp.fc_out",
    attn_out="transformer.h.{}.attn.out_proj",
    defaults={
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "vocab_size": 50_400,
        "n_positions": 2048,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
    },
    position_embed=None,
    form=replace(
        FORM,
        block_class="transformers.models.gptj.modeling_gptj.GPTJBlock",
        mlp_norm=None,
        qkv=("transformer.h.{}.attn.q_proj", "transformer.h.{}.attn.k_proj", "transformer.h.{}.attn.v_proj"),
        angles=angles,
        pairs=True,
        scale=scale,
    ),
)
