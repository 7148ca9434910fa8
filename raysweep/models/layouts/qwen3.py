"""Qwen3: Llama's parts, normed queries and keys."""

from dataclasses import replace

from raysweep.models.layouts.qwen2 import LAYOUT as QWEN2

LAYOUT = replace(QWEN2, model_type="qwen3", defaults={**QWEN2.defaults, "head_dim": 128})
