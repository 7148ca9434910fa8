"""Qwen3: Llama's parts, normed queries and keys."""

from dataclasses import replace

from raysweep.models.layouts.llama import FORM
from raysweep.models.layouts.qwen2 import LAYOUT as QWEN2

LAYOUT = replace(
    QWEN2,
    model_type="qwen3",
    defaults={**QWEN2.defaults, "head_dim": 128},
    form=replace(
        FORM,
        block_class="transformers.models.qwen3.modeling_qwen3.Qwen3DecoderLayer",
        head_norms=("model.layers.{}.self_attn.q_norm", "model.layers.{}.self_attn.k_norm"),
    ),
)
