"""The small decoders of the testbed: published sizes, a configuration built from scratch, seeded initial weights.

Mistral's architecture (or Llama's): RMSNorm, rotary positions, SwiGLU, no biases, untied embeddings, as many key heads as heads.
With width h, MLP width m, L blocks and a vocabulary of V the number of parameters is

    2·V·h + L·(4h² + 3·h·m + 2h) + h

Initial matrices are normal with deviation 0.02, norms 1. Source: Hase et al. 2024 (arXiv 2406.19354); docs/methods/belief.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.belief.spec import ShapeSpec
from raysweep.errors import SpecError, nearest
from raysweep.lazy import lazy
from raysweep.seeds import derive

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")

SHAPES: Mapping[str, ShapeSpec] = {
    "belief-small": ShapeSpec(hidden=128, mlp=512, heads=4, layers=4, positions=512),
    "mistral-83m": ShapeSpec(hidden=512, mlp=2048, heads=8, layers=12),
    "mistral-162m": ShapeSpec(hidden=768, mlp=3072, heads=8, layers=12),
    "mistral-334m": ShapeSpec(hidden=1024, mlp=4096, heads=8, layers=16),
    "mistral-1b": ShapeSpec(hidden=1520, mlp=6080, heads=8, layers=24),
}
"""Sizes by name: ours, then the published ones."""


def named_shape(name: str) -> ShapeSpec:
    """Return the named size.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in SHAPES:
        raise SpecError(f"unknown belief model '{name}'", hint=nearest(name, SHAPES))
    return SHAPES[name]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of pad, begin and end."""

    pad: int
    bos: int
    eos: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
        """Return those of *tokenizer*."""
        return cls(tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)


def model_config(spec: ShapeSpec, vocabulary: int, special: SpecialTokens) -> PretrainedConfig:
    """Return the Hugging Face configuration of *spec*, built from scratch: no field of another model stays behind.

    Args:
        spec: size of the decoder.
        vocabulary: V, tokens of its tokenizer.
        special: ids of pad, begin and end.
    """
    from transformers import LlamaConfig, MistralConfig

    options: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.mlp,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.heads,
        # Stated, since the default of a configuration may be that of the 7B model.
        "head_dim": spec.hidden // spec.heads,
        "max_position_embeddings": spec.positions,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "dtype": "float32",
    }
    return LlamaConfig(**options) if spec.family == "llama" else MistralConfig(**options, sliding_window=4096)


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of *config* with weights nobody may rely on; global generators are left as they were."""
    from transformers import LlamaForCausalLM, MistralForCausalLM

    model_class = LlamaForCausalLM if config.model_type == "llama" else MistralForCausalLM
    # The constructor draws weights from the global generator; they are overwritten, and its state is restored.
    with torch.random.fork_rng(devices=[]):
        module: PreTrainedModel = model_class(config)
    return module.float()


def initialised_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Return a model of *config* with seeded initial weights: normal with the configured deviation, norms 1."""
    module = empty_model(config)
    generator = torch.Generator().manual_seed(derive(seed, "pretrain", "init"))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
                # As the library does: the embedding of padding is zero.
                if name.endswith("embed_tokens.weight") and config.pad_token_id is not None:
                    parameter[config.pad_token_id].zero_()
    return module


def as_language_model(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, digest: str = "") -> LanguageModel:
    """Return *module* as every editor expects it: eval mode, no gradients, with its layout.

    Args:
        module: the model; it is changed in place.
        tokenizer: its tokenizer.
        digest: what it is called in keys; empty = nothing.
    """
    from raysweep.models.layout import layout_of
    from raysweep.models.lm import LanguageModel

    module.eval().requires_grad_(False)
    return LanguageModel(module=module, tokenizer=tokenizer, layout=layout_of(module.config), digest=digest)
