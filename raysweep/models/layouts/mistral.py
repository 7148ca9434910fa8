"""Mistral: Llama's parts, sliding-window attention."""

from dataclasses import replace

from raysweep.models.layouts.llama import FORM
from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="mistral",
    form=replace(FORM, block_class="transformers.models.mistral.modeling_mistral.MistralDecoderLayer"),
)
