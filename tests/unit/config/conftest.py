"""Workspaces in which every shipped search space plans: what looks like models and data to a plan, and nothing to a trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.testing.fixtures import byte_tokenizer
from raysweep.workspace import Workspace, package_share

SHARE = package_share()
FILES = {
    "ZsRE/zsre_mend_edit.json": ("ZsRE", 1000),
    "counterfact/counterfact-edit.json": ("counterfact", 1000),
    "hallucination/hallucination-edit.json": ("hallucination", 600),
}


def put_smollm2(root: Path) -> None:
    """Write something that looks like SmolLM2 to a plan below *root*."""
    folder = root / "models/smollm2-135m"
    folder.mkdir(parents=True)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    sizes |= {"num_hidden_layers": 30, "vocab_size": 49152, "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Nothing but what is shipped, and SmolLM2."""
    root = tmp_path_factory.mktemp("bare")
    put_smollm2(root)
    return Workspace(root)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Files of the published data's names and sizes, made of the samples, SmolLM2, and archives for MEND."""
    root = tmp_path_factory.mktemp("full")
    put_smollm2(root)
    for name, (folder, size) in FILES.items():
        rows = json.loads((SHARE / "data" / folder / "sample.json").read_text(encoding="utf-8"))
        file = root / "data" / name
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps((rows * size)[:size]))
    (root / "models/mend").mkdir()
    for model in ("gpt2-xl", "llama-2-7b", "mistral-7b"):
        (root / f"models/mend/{model}.safetensors").write_bytes(model.encode())
    return Workspace(root)
