"""Models of published shapes with random weights, made on the device in their dtype; records; artifacts of the right sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raysweep.artifacts import Artifact
from raysweep.models.joined import join
from raysweep.models.layout import layout_of
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord, Probe, ProbeKind

if TYPE_CHECKING:
    from raysweep.editors.base import AnyEditor

TOKENIZER = Path(__file__).parents[2] / "tests" / "golden" / "recorded" / "models" / "tiny-llama"
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
TEMPLATES = ("{}", *(f"{word} and so it was. {{}}" for word in ("The", "Because", "Then", "You", "Some")))
_NAMES: tuple[str, ...] = (
    *("Anna Vale", "Bor Lake", "Cid Marsh", "Dora Hill", "Edo Stone", "Fay Brook", "Gus Field", "Hal Wood", "Ida Moor"),
    *("Jon Reed", "Kim Dale", "Lea Ford", "Max Penn", "Nia Holt", "Oto Rowe", "Pia Webb", "Quin Lowe", "Rex Noble"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model, and whose hyper-parameters it is edited with.

    Attributes:
        model_type: as in ``config.model_type``.
        sizes: values of its configuration.
        hparams: model under whose name ``hparams/<editor>/`` has a file.
        steps: of every optimisation; 0 = as in those files.
        square: side of the products that the ceiling is measured with.
    """

    model_type: str
    sizes: Mapping[str, object]
    hparams: str = "llama-2-7b"
    steps: int = 0
    square: int = 8192


_LLAMA_2: Mapping[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_QWEN_3: Mapping[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
_SMALL: Mapping[str, object] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 600,
}
SHAPES: Mapping[str, Shape] = {
    "llama2-7b": Shape("llama", _LLAMA_2),
    "gpt2-xl": Shape("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}, "gpt2-xl"),
    "qwen3-8b": Shape("qwen3", _QWEN_3),
}
_SMALL_GPT = {"n_embd": 48, "n_layer": 18, "n_head": 4, "vocab_size": 600, "n_positions": 256}
TINY: Mapping[str, Shape] = {
    "llama2-7b": Shape("llama", _SMALL, steps=3, square=64),
    "gpt2-xl": Shape("gpt2", _SMALL_GPT, "gpt2-xl", steps=3, square=64),
    "qwen3-8b": Shape("qwen3", _SMALL, steps=3, square=64),
}


def random_model(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """Return a model of *shape* whose weights never were anywhere but on *device*, with a tokenizer of 600 tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # GPT-2's own ids lie beyond the vocabulary of a reduced shape.
    config = AutoConfig.for_model(shape.model_type, bos_token_id=1, eos_token_id=2, **shape.sizes)
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    module = module.eval().requires_grad_(False)
    layout = layout_of(config)
    if module.device.type != "cpu":
        # as a model is loaded on a device
        join(module, layout)
    return LanguageModel(module=module, tokenizer=tokenizer, layout=layout, digest=f"random-{name}")


def records() -> list[EditRecord]:
    """Return eighteen made-up records with an efficacy, a paraphrase and a locality probe each."""
    return [_record(i, subject) for i, subject in enumerate(_NAMES)]


def _record(i: int, subject: str) -> EditRecord:
    prompt, target = f"The town where {subject} was born and went to school is", f"new place {i}"
    probes = (
        Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target),
        Probe(kind=ProbeKind.PARAPHRASE, prompt=f"{subject} was born in the town of", target=target),
        Probe(
            kind=ProbeKind.LOCALITY,
            prompt=f"The mother tongue of somebody else than {i} is",
            target="plain old words",
            against="base",
        ),
    )
    return EditRecord(
        id=str(i), subject=subject, prompt=prompt, target=target, probes=probes, unrelated="It rained all day long."
    )


def artifacts(lm: LanguageModel, editor: AnyEditor) -> dict[str, Artifact]:
    """Return second moments and projectors that are identities: times depend on their sizes alone, and no text is read."""
    identities: dict[int, Tensor] = {}
    found = {}
    for name in editor.artifact_requests(lm):
        kind, _, layer = name.partition("/")
        width = lm.logical(f"{lm.layout.mlp_out.format(int(layer))}.weight").shape[1]
        # One tensor for all layers: the CPU need not hold gigabytes of zeros.
        identity = identities.setdefault(width, torch.eye(width))
        found[name] = Artifact(f"identity-{name}", {kind: identity}, {"kept_rank": width, "threshold": 0.0})
    return found
