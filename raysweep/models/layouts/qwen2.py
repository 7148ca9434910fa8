"""Qwen2 and Qwen2.5: Llama's parts, biased query, key and value maps."""

from dataclasses import replace

from raysweep.models import attention
from raysweep.models.layouts.llama import FORM
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="qwen2",
    defaults={
        **LLAMA.defaults,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "vocab_size": 151_936,
        "sliding_window": 4096,
        "max_position_embeddings": 32_768,
    },
    windows=attention.switched_windows,
    form=replace(FORM, block_class="transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer"),
)
