"""Tiny models, toy records: what contract suites and third parties' tests start from."""

from __future__ import annotations

from pathlib import Path

import torch

from raysweep.config.schema import ModelSpec
from raysweep.models.lm import LanguageModel
from raysweep.models.load import load
from raysweep.workspace import Workspace


def load_folder(folder: Path, *, bos: str = "tokenizer", dtype: str = "float32") -> LanguageModel:
    """Load a local model folder for a test, with one thread."""
    torch.set_num_threads(1)
    spec = ModelSpec.model_validate({"name": folder.name, "path": str(folder), "bos": bos, "dtype": dtype})
    return load(spec, Workspace(folder))
