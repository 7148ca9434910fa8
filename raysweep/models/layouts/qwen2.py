"""Qwen2 and Qwen2.5: Llama's parts, biased query, key and value maps."""

from dataclasses import replace

from raysweep.models.layouts.llama import FORM
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="qwen2",
    form=replace(FORM, block_class="transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer"),
)
