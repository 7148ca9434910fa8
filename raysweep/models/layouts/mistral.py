"""Mistral: Llama's parts, sliding-window attention."""

from dataclasses import replace

from raysweep.models import attention
from raysweep.models.layouts.llama import FORM
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="mistral",
    defaults={
        **LLAMA.defaults,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 131_072,
    },
    windows=attention.equal_windows,
    form=replace(FORM, block_class="transformers.models.mistral.modeling_mistral.MistralDecoderLayer"),
)
