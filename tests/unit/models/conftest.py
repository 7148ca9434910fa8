"""Tiny model folders with byte-level tokenizers, made in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace

SPECIAL = ("<s>", "</s>", "<sep>")


def byte_tokenizer(*, adds_bos: bool = False, eos: bool = True, also: str = "") -> PreTrainedTokenizerFast:
    """One token per byte after three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate((*SPECIAL, *alphabet))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        extra_special_tokens=["<sep>", *([also] if also else [])],
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, share=tmp_path / "share")


def save_tiny(folder: Path, model_type: str, *, adds_bos: bool = False, vocabulary: int = 259, also: str = "") -> Path:
    """Write a tiny model of *model_type* with a tokenizer of bytes; return its folder."""
    folder.mkdir()
    model = tiny_model(model_type, vocab_size=vocabulary, tie_word_embeddings=False)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer(adds_bos=adds_bos, also=also).save_pretrained(folder)
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(
        model_type: str = "llama", *, name: str = "tiny", adds_bos: bool = False, vocabulary: int = 259, also: str = ""
    ) -> Path:
        return save_tiny(tmp_path / name, model_type, adds_bos=adds_bos, vocabulary=vocabulary, also=also)

    return make
