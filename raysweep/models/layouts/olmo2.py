"""OLMo 2: Llama's parts, but outputs of attention and MLP are normed, not what enters them; queries and keys are normed, too."""

from dataclasses import replace

from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(
    LLAMA,
    model_type="olmo2",
    form=None,
    mlp_out_norm="model.layers.{}.post_feedforward_layernorm",
    defaults={**LLAMA.defaults, "vocab_size": 50_304},
)
