"""Tiny models, toy records: what contract suites and third parties' tests start from."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from raysweep.config.schema import ModelSpec
from raysweep.models.layout import layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import load
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.testing.layout_contract import tiny_model
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

FAMILIES: Mapping[str, Mapping[str, object]] = {
    "gpt2": {},  # Conv1D, learnt positions, tied head
    "llama": {},  # Linear, rotary, grouped queries, own head
    "qwen2": {"tie_word_embeddings": True},  # Linear with biases, tied head
}


def load_folder(folder: Path, *, bos: str = "tokenizer", dtype: str = "float32") -> LanguageModel:
    """Load a local model folder for a test, with one thread."""
    # more threads would add up in an order that depends on the machine
    torch.set_num_threads(1)
    spec = ModelSpec.model_validate({"name": folder.name, "path": str(folder), "bos": bos, "dtype": dtype})
    return load(spec, Workspace(folder))


def byte_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes: id 0 ``<s>`` (prepended if *bos*), 1 ``</s>`` (also pad), 2 … 257 the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # the alphabet comes in no fixed order, and ids must be the same in every process
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # no prefix space and no regex, so that a byte is the same token wherever it stands
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", clean_up_tokenization_spaces=False
    )


@lru_cache(maxsize=2)
def _read_tokenizer(bos: bool) -> PreTrainedTokenizerBase:
    """Return the byte tokenizer as :func:`load` reads it from a model's folder: a test asks what a run would ask."""
    with TemporaryDirectory() as root:
        folder = Path(root, "bytes")
        save_tiny(folder, "llama", bos=bos)
        return load_folder(folder).tokenizer


def save_tiny(folder: Path, family: str, *, bos: bool) -> None:
    """Write a random three-block model of *family*, which has 256 positions, with a byte tokenizer, as a model's folder."""
    module = tiny_model(family, vocab_size=258, max_position_embeddings=256)
    module.config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer(bos=bos).save_pretrained(folder)


def tiny_lm(family: str, *, bos: bool = False, seed: int = 0) -> LanguageModel:
    """Return a random three-block model of *family* with a byte tokenizer, fp32, ready to be edited."""
    torch.set_num_threads(1)
    # one number under the names of several families; a configuration lets the others be
    changes = {"vocab_size": 258, "max_position_embeddings": 256, "n_positions": 256} | dict(FAMILIES.get(family, {}))
    module = tiny_model(family, seed=seed, **changes)
    return LanguageModel(
        module=module,
        # the cached one is everybody's, and a test may change its own
        tokenizer=deepcopy(_read_tokenizer(bos)),
        layout=layout_of(module.config),
        digest=f"{family}{seed}",
    )


def embedded_lm() -> LanguageModel:
    """Return the shipped model: the smallest one that has something to edit."""
    torch.set_num_threads(1)
    return load(ModelSpec(), Workspace(Path.cwd()))


_NAMES = ("Ana", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jo", "Kim", "Lea")


def toy_records(n: int = 10) -> tuple[EditRecord, ...]:
    """Return *n* short records with an efficacy, a paraphrase and a locality probe each."""
    return tuple(_toy(i, _NAMES[i % len(_NAMES)] + "x" * (i // len(_NAMES))) for i in range(n))


def _toy(i: int, name: str) -> EditRecord:
    # 7 and 11 share no factor with 26, so 26 records in a row have different targets
    target = f"{chr(97 + (7 * i) % 26)}{chr(97 + (11 * i + 3) % 26)}"
    prompt = f"The pet of {name} is"
    return EditRecord(
        id=f"toy/{i:06d}",
        subject=name,
        prompt=prompt,
        target=target,
        probes=(
            Probe(kind=ProbeKind.EFFICACY, prompt=prompt, target=target),
            Probe(kind=ProbeKind.PARAPHRASE, prompt=f"{name} has a pet, a", target=target),
            Probe(kind=ProbeKind.LOCALITY, prompt=f"The hat of Zed{i} is", target="red", against="base"),
        ),
        unrelated=f"The sky over Yak{i} was grey",
    )


def fingerprint(lm: LanguageModel) -> dict[str, object]:
    """Return everything an editor must leave as it was: every bit, flag, hook and mode."""
    module = lm.module
    modules = dict(module.named_modules())
    return {
        "tensors": {n: t.detach().clone() for n, t in module.state_dict().items()},
        # the very objects, as an optimiser or a hook of the caller may hold them
        "objects": {n: id(p) for n, p in module.named_parameters()},
        "modules": {n: id(m) for n, m in modules.items()},
        "grad": {n: (p.requires_grad, p.grad is None) for n, p in module.named_parameters()},
        "training": {n: m.training for n, m in modules.items()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for n, m in modules.items()
        },
        "rng": torch.random.get_rng_state(),
    }


def same(first: object, second: object) -> bool:
    """Tell whether two nested values are equal, tensors bit for bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping):
        return (
            isinstance(second, Mapping)
            and set(first) == set(second)
            and all(same(v, second[k]) for k, v in first.items())
        )
    if isinstance(first, list | tuple):
        if not isinstance(second, list | tuple):
            return False
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)
