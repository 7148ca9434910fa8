"""Tiny models with the tokenizers of ``folders/``, loaded as every model is."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from raysweep.config.schema import ModelSpec
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import load
from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace
from tests.tokenizers.battery import VARIANTS, Variant

VOCABULARY = 610  # rows of the embedding; the tokenizers have at most 600 tokens


def folder_of(variant: Variant, out: Path) -> Path:
    """Make a whole model folder: the variant's tokenizer and a tiny random model of its architecture."""
    variant.write(out)
    sizes = {"max_position_embeddings": 256, "n_positions": 256}
    module = tiny_model(variant.model_type, vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes)
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(out)
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out


def opened(folder: Path) -> LanguageModel:
    """Load *folder* with the BOS policy of its tokenizer."""
    return load(ModelSpec(name=folder.name, path=str(folder), bos="tokenizer"), Workspace(folder.parent))


def loaded(variant: Variant | str, out: Path) -> LanguageModel:
    """Make the folder *out* of a variant, given itself or by name, and load it."""
    return opened(folder_of(VARIANTS[variant] if isinstance(variant, str) else variant, out))
