"""Qwen3: Llama's parts, normed queries and keys."""

from dataclasses import replace

from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(LLAMA, model_type="qwen3")
