"""A layout: StableLM, whose parts are called as Llama's are; its blocks compute something else."""

from __future__ import annotations

from dataclasses import replace

from raysweep.models.layouts.llama import LAYOUT as LLAMA

LAYOUT = replace(LLAMA, model_type="stablelm", form=None)
