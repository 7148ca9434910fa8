"""A model folder in two shards and an index, as large models come."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def shard(folder: Path) -> Path:
    """Split the weights of *folder* in two; return it."""
    whole = folder / "model.safetensors"
    state = load_file(whole)
    whole.unlink()
    names, table = sorted(state), {}
    half = len(names) // 2
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number}-of-2.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder
