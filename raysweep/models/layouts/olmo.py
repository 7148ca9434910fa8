"""OLMo: Llama's parts, norms without weights, queries, keys and values clipped where the configuration says so."""

from dataclasses import replace

from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(LLAMA, model_type="olmo", defaults={**LLAMA.defaults, "vocab_size": 50_304})
