"""Llama 2 and 3, and what shares their code (SmolLM2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysweep.models import attention
from raysweep.models.layout import BlockForm, Layout

if TYPE_CHECKING:
    from torch import Tensor


def angles(body: Any, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``cos`` and ``sin`` of the angles, of which transformers repeats those of a head's first half in the second."""
    cos, sin = body.rotary_emb(like, positions)
    half = cos.shape[-1] // 2
    return cos[..., :half], sin[..., :half]


def scale(block: Any) -> float:
    """Return by what scores are multiplied."""
    return float(block.self_attn.scaling)


FORM = BlockForm(
    block_class="transformers.models.llama.modeling_llama.LlamaDecoderLayer",
    norm="rms",
    attention_norm="model.layers.{}.input_layernorm",
    mlp_norm="model.layers.{}.post_attention_layernorm",
    qkv=("model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.k_proj", "model.layers.{}.self_attn.v_proj"),
    angles=angles,
    scale=scale,
)
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
    form=FORM,
)
